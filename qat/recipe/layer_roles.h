#pragma once

#include <cstdint>
#include <string>

#include "qat/ops/api.h"
#include "qat/recipe/plan.h"

namespace qat {

// What a layer does in its block, by the names that transformers' models have.
enum class Role {
  embedding,
  head,
  key,
  value,
  query_key_value,  // in one matrix
  attention_output,
  down,  // the second matrix of an MLP, or those of its experts
  other,
};

QAT_API Role role_of(const LayerInfo& layer);

// The number of the block that a layer is in, -1 where its name has none.
QAT_API int64_t block_of(const std::string& name);

// How many experts there are beside that of this layer, as far as it tells: the matrices of one that holds
// all of them, or its own number and one; 0 where it is no expert's.
QAT_API int64_t experts_of(const LayerInfo& layer);

}  // namespace qat
