#include "qat/ops/packed_linear.h"

#include <ATen/Parallel.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <vector>

#include "qat/ops/arguments.h"
#include "qat/ops/checks.h"
#include "qat/ops/cpu/panel_input.h"
#include "qat/ops/cpu/panel_tile_bf16.h"

namespace qat {
namespace {

// Vectors of weight rows that a tile of `rows` rows of x takes, so that its sums fill `registers`.
constexpr int vectors_for(int rows, int lanes, int registers) {
  int vectors = 1;
  while (2 * vectors * rows <= registers && 2 * vectors * lanes <= kBlockRows) vectors *= 2;
  return vectors;
}

template <int kLanes, int kRegisters, int kRows, int kBits>
QAT_BODY inline void multiply_floats(const PanelBlock& block, const TileInput& input,
                                     float* total) {
  constexpr int kVectors = vectors_for(kRows, kLanes, kRegisters);
  for (int64_t row = 0; row < kBlockRows; row += kVectors * kLanes)
    float_tile<kLanes, kRows, kVectors, kBits>(block, row, input, total);
}

// All weight rows of a block for one tile of x, compiled for each processor.
using Multiply = void (*)(const PanelBlock&, const TileInput&, float*);

template <int kRows, int kBits>
void multiply_portable(const PanelBlock& block, const TileInput& input, float* total) {
  multiply_floats<4, 8, kRows, kBits>(block, input, total);
}

#if defined(__x86_64__) && defined(__GNUC__)

template <int kRows, int kBits>
__attribute__((target("avx2,fma"))) void multiply_avx2(const PanelBlock& block,
                                                       const TileInput& input, float* total) {
  multiply_floats<8, 10, kRows, kBits>(block, input, total);
}

template <int kRows, int kBits>
__attribute__((target(QAT_AVX512_TARGET ",fma"))) void multiply_avx512(const PanelBlock& block,
                                                                       const TileInput& input,
                                                                       float* total) {
  multiply_floats<16, 24, kRows, kBits>(block, input, total);
}

template <int kRows, int kBits>
QAT_BF16_TARGET void multiply_bf16(const PanelBlock& block, const TileInput& input, float* total) {
  constexpr int kVectors = vectors_for(kRows, 16, 24);
  for (int64_t row = 0; row < kBlockRows; row += kVectors * 16)
    bf16_tile<kRows, kVectors, kBits>(block, row, input, total);
}

bool has_bf16_products() {
  static const bool has = __builtin_cpu_supports("avx512bf16");
  return has && capability() == Capability::avx512;
}

template <int kRows, int kBits>
Multiply multiply_for(bool pairs) {
  if (pairs) return &multiply_bf16<kRows, kBits>;
  if (capability() == Capability::avx512) return &multiply_avx512<kRows, kBits>;
  if (capability() == Capability::avx2 && __builtin_cpu_supports("fma"))
    return &multiply_avx2<kRows, kBits>;
  return &multiply_portable<kRows, kBits>;
}

#else

bool has_bf16_products() { return false; }

template <int kRows, int kBits>
Multiply multiply_for(bool) {
  return &multiply_portable<kRows, kBits>;
}

#endif

template <int kBits>
Multiply multiply_for(int rows, bool pairs) {
  switch (rows) {
    case 1:
      return multiply_for<1, kBits>(pairs);
    case 2:
      return multiply_for<2, kBits>(pairs);
    case 3:
      return multiply_for<3, kBits>(pairs);
    case 4:
      return multiply_for<4, kBits>(pairs);
    case 6:
      return multiply_for<6, kBits>(pairs);
    default:
      return multiply_for<8, kBits>(pairs);
  }
}

// A weight in panels, block by block. The panels of a block lie far apart, so that the next block
// goes on where this one ends: each of kBlockPanels streams is read from its beginning to its end.
struct PanelWeight {
  PanelLayout layout;
  at::Tensor panels;
  at::Tensor scale;
  std::optional<at::Tensor> zero_point;

  int64_t blocks() const { return (layout.panels() + kBlockPanels - 1) / kBlockPanels; }
  // Panels of a block that are there, and which they are.
  int64_t panels_of(int64_t block) const {
    return (layout.panels() - block + blocks() - 1) / blocks();
  }
  int64_t panel(int64_t block, int64_t index) const { return block + index * blocks(); }
  // The weight rows of a panel.
  int64_t first_row(int64_t panel) const { return panel * PanelLayout::kRows; }
  int64_t rows(int64_t panel) const {
    return std::min(PanelLayout::kRows, layout.rows - first_row(panel));
  }
};

PanelBlock block_of(const PanelWeight& weight, int64_t block) {
  const PanelLayout& layout = weight.layout;
  PanelBlock view{};
  view.half_scales = weight.scale.scalar_type() == at::kBFloat16;
  view.groups = layout.groups();
  view.words_per_group = layout.words_per_group();
  const int64_t words = layout.words() * PanelLayout::kRows;
  const int64_t values = layout.groups() * PanelLayout::kRows;
  for (int64_t i = 0; i < kBlockPanels; ++i) {
    const int64_t panel = weight.panel(block, i < weight.panels_of(block) ? i : 0);
    view.words[i] = weight.panels.const_data_ptr<int32_t>() + words * panel;
    view.scale[i] = static_cast<const std::byte*>(weight.scale.const_data_ptr()) +
                    values * panel * static_cast<int64_t>(weight.scale.element_size());
    if (weight.zero_point)
      view.zero_point[i] = weight.zero_point->const_data_ptr<int8_t>() + values * panel;
  }
  return view;
}

// Bytes of x that stay in the cache while the weight passes.
constexpr int64_t kCachedInput = 512 << 10;

template <typename x_t>
void multiply_in_tiles(const at::Tensor& x, const PanelWeight& weight,
                       const std::optional<at::Tensor>& bias, at::Tensor& result) {
  const PanelLayout& layout = weight.layout;
  const bool pairs = std::is_same_v<x_t, c10::BFloat16> && has_bf16_products();
  const PanelInput input(x.const_data_ptr<x_t>(), x.numel() / layout.cols, layout, pairs,
                         weight.zero_point.has_value());
  const Multiply run = layout.bits == 4 ? multiply_for<4>(input.per_tile(), pairs)
                                        : multiply_for<8>(input.per_tile(), pairs);
  const int64_t together = std::max<int64_t>(1, kCachedInput / input.tile_bytes());
  const x_t* add = data_or_null<x_t>(bias);
  x_t* out = result.mutable_data_ptr<x_t>();

  const auto write = [&](const float* total, int64_t tile, int64_t block) {
    for (int64_t m = 0; m < input.rows_of(tile); ++m)
      for (int64_t i = 0; i < weight.panels_of(block); ++i) {
        const int64_t panel = weight.panel(block, i), first = weight.first_row(panel);
        const float* from = total + m * kBlockRows + i * PanelLayout::kRows;
        x_t* to = out + (tile * input.per_tile() + m) * layout.rows + first;
        for (int64_t n = 0; n < weight.rows(panel); ++n)
          to[n] = static_cast<x_t>(from[n] + (add ? static_cast<float>(add[first + n]) : 0.0f));
      }
  };
  at::parallel_for(0, weight.blocks(), 1, [&](int64_t begin, int64_t end) {
    std::vector<float> total(static_cast<size_t>(input.per_tile() * kBlockRows));
    for (int64_t first = 0; first < input.tiles(); first += together)
      for (int64_t index = begin; index < end; ++index) {
        const PanelBlock block = block_of(weight, index);
        for (int64_t tile = first; tile < std::min(input.tiles(), first + together); ++tile) {
          run(block, input.tile(tile), total.data());
          write(total.data(), tile, index);
        }
      }
  });
}

// Where the processor's own products are slow beside those of torch's library: a block of the
// weight at a time is dequantized, in float32, and multiplied there.
void multiply_dequantized(const at::Tensor& x, const PanelWeight& weight,
                          const std::optional<at::Tensor>& bias, at::Tensor& result) {
  const PanelLayout& layout = weight.layout;
  const at::Tensor rows = x.view({-1, layout.cols}).to(at::kFloat);
  const auto add = bias ? std::optional(bias->to(at::kFloat)) : std::nullopt;
  at::Tensor out = result.view({-1, layout.rows});
  at::parallel_for(0, weight.blocks(), 1, [&](int64_t begin, int64_t end) {
    const at::AutoDispatchBelowADInplaceOrView below;  // which is a thread's own
    const at::Tensor tile = at::zeros({kBlockRows, layout.cols}, rows.options());
    for (int64_t index = begin; index < end; ++index) {
      const int64_t panels = weight.panels_of(index);
      dequantize_block(block_of(weight, index), panels, layout, tile.mutable_data_ptr<float>());
      at::Tensor products = at::linear(rows, tile);
      for (int64_t i = 0; i < panels; ++i) {
        const int64_t panel = weight.panel(index, i), first = weight.first_row(panel);
        at::Tensor part = products.narrow(1, i * PanelLayout::kRows, weight.rows(panel));
        if (add) part.add_(add->narrow(0, first, weight.rows(panel)));
        out.narrow(1, first, weight.rows(panel)).copy_(part);
      }
    }
  });
}

// From how many rows of x on that is quicker.
constexpr int64_t kManyRows = 64;

// Returns the layout of the weight.
PanelLayout check_packed_linear(const at::Tensor& x, const at::Tensor& panels,
                                const at::Tensor& scale,
                                const std::optional<at::Tensor>& zero_point,
                                const std::optional<at::Tensor>& bias, int64_t bits,
                                int64_t group_size, int64_t out) {
  check_input("packed_linear", x);
  TORCH_CHECK_VALUE(x.dim() >= 1, "[packed_linear] x must be [..., in], but is a scalar.");
  check_panel_layout("packed_linear", bits, group_size, x.sym_size(-1));
  check_float("packed_linear", "scale", scale.scalar_type());
  const PanelLayout layout{out, x.size(-1), group_size, static_cast<int>(bits)};
  const int64_t rows = PanelLayout::kRows;
  TORCH_CHECK_TYPE(panels.scalar_type() == at::kInt,
                   "[packed_linear] panels must be int32, but is ", panels.scalar_type(), ".");
  TORCH_CHECK_VALUE(panels.sizes() == at::IntArrayRef({layout.panels(), layout.words(), rows}),
                    "[packed_linear] panels must be [", layout.panels(), ", ", layout.words(), ", ",
                    rows, "] for ", out, " rows and inputs of ", layout.cols, " features, but is ",
                    panels.sizes(), ".");
  const auto grid = {layout.panels(), layout.groups(), rows};
  TORCH_CHECK_VALUE(scale.sizes() == at::IntArrayRef(grid), "[packed_linear] scale must be [",
                    layout.panels(), ", ", layout.groups(), ", ", rows, "], but is ", scale.sizes(),
                    ".");
  TORCH_CHECK_VALUE(!zero_point || (zero_point->scalar_type() == at::kChar &&
                                    zero_point->sizes() == scale.sizes()),
                    "[packed_linear] zero_point must be int8 and shaped like scale.");
  TORCH_CHECK_VALUE(
      !bias || (bias->scalar_type() == x.scalar_type() && bias->dim() == 1 && bias->size(0) == out),
      "[packed_linear] bias must be [", out, "] in the dtype of x.");
  return layout;
}

at::Tensor packed_linear_cpu(const at::Tensor& x, const at::Tensor& panels, const at::Tensor& scale,
                             const std::optional<at::Tensor>& zero_point,
                             const std::optional<at::Tensor>& bias, int64_t bits,
                             int64_t group_size, int64_t out) {
  const PanelLayout layout =
      check_packed_linear(x, panels, scale, zero_point, bias, bits, group_size, out);
  c10::DimVector sizes(x.sizes().begin(), x.sizes().end());
  sizes.back() = out;
  at::Tensor result = at::empty(sizes, x.options());
  if (result.numel() == 0) return result;
  if (layout.cols == 0) return bias ? result.copy_(*bias) : result.zero_();
  // Float16 scales are widened as a whole: few have them, and they are a 16th of the weight or
  // less.
  const at::Tensor scales = scale.scalar_type() == at::kHalf ? scale.to(at::kFloat) : scale;
  const PanelWeight weight{layout, panels.contiguous(), scales.contiguous(),
                           contiguous(zero_point)};
  const at::Tensor input = x.contiguous();
  const bool many = capability() == Capability::portable && x.numel() / layout.cols >= kManyRows;
  if (many) {
    multiply_dequantized(input, weight, bias, result);
  } else {
    QAT_DISPATCH_FLOAT(x.scalar_type(), "packed_linear", [&] {
      multiply_in_tiles<scalar_t>(input, weight, contiguous(bias), result);
    });
  }
  return result;
}

}  // namespace

TORCH_LIBRARY_IMPL(qat, CPU, m) { m.impl("packed_linear", &packed_linear_cpu); }

}  // namespace qat
