#include "qat/checkpoint/formats/minifloat.h"

#include <ATen/Functions.h>

#include <cmath>

#include "qat/ops/quantize.h"
#include "qat/ops/quantizer.h"

namespace qat {
namespace {

// The numbers that are not negative, in the order of their bits, which is that of their size.
at::Tensor magnitudes(Grid grid) {
  const Levels levels = levels_of(grid, named_bits(grid));
  std::vector<float> numbers{0.0f};
  while (numbers.back() < levels.max) {
    // The step from a number on is that of its binade; from 0 on, of the least one.
    const int exponent = numbers.size() == 1
                             ? levels.least_exponent
                             : std::max(std::ilogb(numbers.back()), levels.least_exponent);
    numbers.push_back(numbers.back() + std::ldexp(1.0f, exponent - levels.mantissa_bits));
  }
  return at::tensor(numbers);
}

}  // namespace

at::Tensor minifloat_bits(const at::Tensor& codes, Grid grid) {
  const at::Tensor numbers = codes.to(at::kFloat);
  const at::Tensor table = magnitudes(grid).to(codes.device());
  const at::Tensor bits = at::searchsorted(table, numbers.abs().contiguous(), /*out_int32=*/true);
  const int64_t sign = int64_t{1} << (named_bits(grid) - 1);
  return bits.add(at::signbit(numbers).to(at::kInt).mul(sign)).to(at::kByte);
}

at::Tensor minifloat_of_bits(const at::Tensor& bits, Grid grid) {
  const int64_t sign = int64_t{1} << (named_bits(grid) - 1);
  const at::Tensor index = bits.to(at::kInt);
  const at::Tensor magnitude = magnitudes(grid).to(bits.device()).index({index.remainder(sign)});
  const at::Tensor negative = index.ge(sign);
  return at::where(negative, magnitude.neg(), magnitude).to(code_dtype(grid));
}

}  // namespace qat
