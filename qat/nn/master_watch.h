#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "qat/recipe/recipe.h"

namespace qat {

// Whether a master weight, its scale or its width has changed since it was rounded: by the versions
// of the tensors. Some optimizers, such as LibTorch's SGD, write past these, through data(). While a
// layer trains, a sample of the master is therefore compared as well, which waits for the device,
// until its optimizer was seen to move the version.
class MasterWatch {
 public:
  // Where the master lies, and how often all that it is rounded by was written.
  struct Stamp {
    const void* master = nullptr;
    int64_t master_version = -1, scale_version = -1, zero_point_version = -1, shared_version = -1;
    int bits = kFloat;
    bool operator==(const Stamp&) const = default;
  };

  // `master` was rounded at `now`.
  void rounded(const Stamp& now, const at::Tensor& master);
  bool changed(const Stamp& now, const at::Tensor& master, bool training) const;

  // A gradient reached the master: what writes to it next is its optimizer, as a rule.
  void gradient_came() { gradient_came_ = true; }
  // Unless this is called: what moves the version next is no optimizer.
  void forget_gradient() { gradient_came_ = false; }

 private:
  Stamp stamp_;
  at::Tensor sample_;           // of the master, when it was rounded
  bool gradient_came_ = false;  // since it was rounded
  bool versions_tell_ = false;  // the optimizer was seen to move the version of the master
};

// How often a tensor was written.
int64_t version_of(const at::Tensor& tensor);

}  // namespace qat
