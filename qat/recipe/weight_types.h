#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "qat/ops/api.h"
#include "qat/recipe/plan.h"

namespace qat {

// What `spec` becomes as another number type: "int2" to "int8", a preset such as "nvfp4", or its own
// name. Where its scale comes from stays. An integer in place of a preset has groups of 32 under
// scales in `scale`, which all engines of integers have kernels for. Throws InvalidArgument for
// another name.
QAT_API QuantSpec weight_of_type(const QuantSpec& spec, const std::string& type,
                                 ScaleCode scale = ScaleCode::bfloat16);

// Why a layer cannot have its weight in `spec`, such as columns that its groups do not divide; or
// nothing.
QAT_API std::string misfit(const QuantSpec& spec, const LayerPlan& layer);

// The same layer with its weight in another type, of weight_of_type. An input in blocks, such as
// NVFP4's, takes the type of a weight that has one, under the rule of the engines' kernels; others
// stay where the levels of the weight are of the same kind, and are left in floating point where
// they are not. Throws InvalidArgument where the layer cannot have the type.
QAT_API LayerPlan retyped(const LayerPlan& layer, const std::string& type,
                          ScaleCode scale = ScaleCode::bfloat16);

// The same plan with the named layers retyped; "float" leaves them in floating point. Throws
// InvalidArgument for a layer that is not planned, or cannot have its type.
QAT_API Plan with_types(const Plan& plan, const std::map<std::string, std::string>& types,
                        ScaleCode scale = ScaleCode::bfloat16);

// Puts the layers of `plan` that engines fuse under one outer scale, as they multiply them: they
// train under one.
void share_outer_scales(Plan& plan);

// The same plan with scales that are searched for once, whatever they come from in training, and no
// schedule: to compare types.
QAT_API Plan searched_plan(const Plan& plan);

// Bits that a checkpoint spends on a weight [rows, cols] under `spec`, scales, zero points, offsets
// and outer scales included. `scale_bits`: of a scale that is a number; 0 for those of its dtype.
QAT_API int64_t size_of_weight(const QuantSpec& spec, int64_t rows, int64_t cols,
                               int64_t scale_bits = 0);

}  // namespace qat
