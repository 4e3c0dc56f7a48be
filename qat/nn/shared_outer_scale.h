#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <vector>

namespace qat {

class LayerQuantizer;

// The outer scale of layers that engines fuse into one (LayerPlan::shares): the largest that a weight
// among them needs, so that all reach all of their numbers.
class SharedOuterScale {
 public:
  explicit SharedOuterScale(std::vector<std::weak_ptr<LayerQuantizer>> members)
      : members_(std::move(members)) {}

  // What the weights need at `bits`.
  at::Tensor needed(int bits) const;
  // The same as it was when it was first asked for since unsettle(): members that are rounded one
  // after the other, which moves their weights, come under one.
  at::Tensor settled(int bits) const;
  void unsettle() const { settled_.reset(); }
  // What the weights, or learned scales, need now; undefined where scales are fixed.
  at::Tensor in_force() const;
  // Moves whenever one of those is written.
  int64_t version() const;
  // Rounds every member anew.
  void refresh() const;

 private:
  std::vector<std::weak_ptr<LayerQuantizer>> members_;
  mutable at::Tensor settled_;
};

}  // namespace qat
