#include "qat/nn/shared_outer_scale.h"

#include <ATen/ops/maximum.h>

#include "qat/nn/layer_quantizer.h"

namespace qat {
namespace {

// Calls `visit` with the members that are still there.
template <typename Visit>
void for_each(const std::vector<std::weak_ptr<LayerQuantizer>>& members, const Visit& visit) {
  for (const auto& member : members)
    if (const auto held = member.lock()) visit(*held);
}

template <typename Of>
at::Tensor largest(const std::vector<std::weak_ptr<LayerQuantizer>>& members, const Of& of) {
  at::Tensor found;
  for_each(members, [&](LayerQuantizer& member) {
    const at::Tensor own = of(member);
    found = found.defined() ? at::maximum(found, own.to(found.device())) : own;
  });
  return found;
}

}  // namespace

at::Tensor SharedOuterScale::needed(int bits) const {
  return largest(members_, [&](LayerQuantizer& member) {
    return member.weight()->needed_outer_scale(member.master(), bits);
  });
}

at::Tensor SharedOuterScale::settled(int bits) const {
  if (!settled_.defined()) settled_ = needed(bits);
  return settled_;
}

at::Tensor SharedOuterScale::in_force() const {
  return largest(members_, [](LayerQuantizer& member) {
    const WeightQuantizer& weight = *member.weight();
    if (weight.learned()) return weight.needed_outer_scale();
    return weight.spec().range == Range::fixed
               ? weight.outer_scale()
               : weight.needed_outer_scale(member.master(), weight.bits());
  });
}

int64_t SharedOuterScale::version() const {
  int64_t sum = 0;
  for_each(members_, [&](LayerQuantizer& member) { sum += member.version(); });
  return sum;
}

void SharedOuterScale::refresh() const {
  for_each(members_, [](LayerQuantizer& member) { member.refresh(); });
}

}  // namespace qat
