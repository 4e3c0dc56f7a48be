#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace qat::solvers {

// Codes on a grid whose scales are settled.
struct Assignment {
  at::Tensor codes;     // [rows, cols], in quantize's dtype
  at::Tensor error;     // float32 [rows, cols]: the weight less what its codes stand for
  at::Tensor residual;  // float32 [rows, cols]: what was rounded less what it was rounded to
};

// Puts each code where the error of the output is least while all others stay, one after the other:
// numerics.md (16a). What GPTQ rounded early, it rounded before it knew what came after.
class CoordinateDescent {
 public:
  // `hessian`: float32 [cols, cols], with a positive diagonal. `row_hessian`: float32 [rows, rows], of
  // the output; rows of a block of `together` then move at once, else all do. `quantizer`: a
  // Quantizer's text. `scale`, `zero_point`: [rows, cols].
  CoordinateDescent(const at::Tensor& hessian, const std::optional<at::Tensor>& row_hessian,
                    int64_t together, std::string quantizer, const at::Tensor& scale,
                    const at::Tensor& zero_point);

  // One pass over all codes of a weight, float32 [rows, cols]; returns whether any moved. The error
  // of the output does not grow.
  bool pass(const at::Tensor& weight, Assignment& found) const;

 private:
  // Rows [from, to), and what they are rounded to.
  struct Rows {
    int64_t from, to;
    at::Tensor codes, rounded, residual = {};
  };

  void move(const at::Tensor& weight, Assignment& found, int64_t from, int64_t to) const;
  bool lowers(const at::Tensor& own, const at::Tensor& pull, const at::Tensor& moves) const;
  Rows moved(const Rows& rows, const at::Tensor& missed) const;

  at::Tensor hessian_;
  std::optional<at::Tensor> row_hessian_;
  int64_t together_;
  std::string quantizer_;
  at::Tensor scale_, zero_point_;
  std::vector<at::Tensor> own_;  // of each block of columns, H_ij / H_jj within it
  std::vector<at::Tensor>
      others_;  // [cols, width]: of columns outside it, and after each within it
};

}  // namespace qat::solvers
