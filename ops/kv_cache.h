#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string_view>

#include "qat/ops/api.h"

namespace qat {

// What a cache of keys or values gives back of what was put in; numerics.md (28).
//
//   x            [batch, heads, tokens, head_size], float32, float16 or bfloat16: keys (after the
//                rotary embedding) or values
//   scale        float32 [1] for granularity "tensor", [heads] for "head", given beforehand; none
//                for the others, which find theirs in the call; float32 [1] or none for "group" with
//                scales in e4m3: the outer scale, of which they are multiples
//   granularity  "tensor", "head", "token" (a head of a token), "group" (group_size channels of it)
//                or "channel" (a channel over group_size tokens in turn)
//   group_size   for "group", which must divide head_size, and "channel"; else not read
//   bits         2 to 8; not read for floats
//   grid         "narrow", "full", "signed", a float such as "fp8_e4m3" or "fp4_e2m1"; or
//                "asymmetric", whose lowest level is the smallest element of the block itself rather
//                than a multiple of the scale, as engines store caches
//   first        tokens at the beginning that stay as they are (attention sinks)
//   scale_code   what scales that are found are stored in (quantizer.h)
//
// On return a tensor like x. Tokens of a group of "channel" that is not complete stay as they are.
// Differentiable in x, straight through.
QAT_API at::Tensor fake_quantize_cache(const at::Tensor& x, const std::optional<at::Tensor>& scale,
                                       std::string_view granularity, int64_t group_size,
                                       int64_t bits, std::string_view grid, int64_t first,
                                       std::string_view scale_code = "float32");

// Which tokens each query finds quantized: bool [queries, keys], on the device of `like`. The
// queries are the last of the tokens. A token is quantized once the last of its group of
// `group_size` (counted after the first ones) is more than `recent` tokens back; a query's own
// token is 0 back.
QAT_API at::Tensor quantized_pairs(const at::Tensor& like, c10::SymInt queries, c10::SymInt keys,
                                   int64_t group_size, int64_t recent, int64_t first);

}  // namespace qat
