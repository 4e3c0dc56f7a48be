#include "qat/recipe/keys.h"

#include <algorithm>

#include "qat/recipe/key_log.h"

namespace qat {
namespace {

void unite(std::vector<std::string>& into, const std::vector<std::string>& more) {
  for (const std::string& word : more)
    if (std::find(into.begin(), into.end(), word) == into.end()) into.push_back(word);
}

// Readers ask for some keys only where another one is given, or has some value. Between them, these
// recipes have all of those; most are at fault, which does not matter here.
const std::vector<std::string>& probes() {
  static const std::vector<std::string> kProbes{
      "layers: []\nmodel: {scratch: {}}\ndata: {train: {}}\nkv_cache: {}\nsize: {}\n"
      "evaluate: {accept: {}}\n",
      "layers: {weight: {dtype: fp8_e4m3, outer_scale: {}}, input: {dtype: int8, outer_scale: "
      "{}}}\n"
      "data: {train: text}\n",
      "layers: {weight: {dtype: nvfp4}, input: {dtype: mxfp4, scale_dtype: e8m0_even}}\n"
      "mode: auto\nengine: transformers\ndata: {train: [{}]}\nkv_cache: {dtype: int4}\n",
      "layers: [{weight: {dtype: int4, group_size: 32}, input: {dtype: int8, granularity: "
      "tensor}}]\n"
      "mode: auto\nengine: transformers\nmodel: {kind: classifier}\nschedule: [{}]\n"
      "kv_cache: {dtype: fp8_e4m3, keys: head}\n",
      "layers: [{match: a, weight: {dtype: mxfp4, scale_dtype: e8m0_even}}]\n"
      "model: {kind: sentence_encoder}\ninitialize: {method: gptq}\ntrain: {strategy: fsdp}\n",
      "layers: {weight: {dtype: int4, block: [8, 8]}, input: {dtype: int8, group_size: 32}}\n",
      "layers: {weight: {mix: q4_k_m}}\nkv_cache: {dtype: mxfp4}\n",
      "layers: {weight: {dtype: int4}}\nkv_cache: {dtype: nvfp4}\n",
  };
  return kProbes;
}

}  // namespace

void KeyLog::add(const RecipeKey& asked) {
  const auto known = std::find_if(keys_.begin(), keys_.end(), [&asked](const RecipeKey& key) {
    return key.path == asked.path;
  });
  if (known == keys_.end()) {
    keys_.push_back(asked);
    return;
  }
  unite(known->types, asked.types);
  unite(known->words, asked.words);
  unite(known->fallbacks, asked.fallbacks);
  if (asked.least) known->least = std::min(*asked.least, known->least.value_or(*asked.least));
  if (asked.greatest)
    known->greatest = std::max(*asked.greatest, known->greatest.value_or(*asked.greatest));
  known->required |= asked.required;
}

std::vector<RecipeKey> recipe_keys() {
  KeyLog log;
  for (const std::string& probe : probes()) log_keys(probe, &log);
  std::vector<RecipeKey> keys = log.keys();
  for (RecipeKey& key : keys) key.meaning = meaning_of(key.path);
  const std::vector<std::string> order = explained_keys();
  const auto place = [&order](const RecipeKey& key) {
    return std::find(order.begin(), order.end(), key.path);
  };
  std::stable_sort(keys.begin(), keys.end(), [&place](const RecipeKey& a, const RecipeKey& b) {
    return place(a) < place(b);
  });
  return keys;
}

}  // namespace qat
