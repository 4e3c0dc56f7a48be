#include "qat/recipe/distill_reader.h"

#include <string>
#include <vector>

namespace qat {

// An encoder's answers are embeddings, whose distance is trained on; others give probabilities.
DistillSection read_distill(YamlSection section, const std::string& kind) {
  const bool encodes = kind == "sentence_encoder";
  DistillSection distill;
  distill.loss = encodes ? "cosine" : distill.loss;
  distill.teacher = section.text("teacher", distill.teacher);
  distill.loss = section.one_of("loss", distill.loss,
                                encodes ? std::vector<std::string>{"cosine"}
                                        : std::vector<std::string>{"forward_kl", "cross_entropy"});
  distill.temperature = section.number("temperature", distill.temperature, 0.01, 100.0);
  distill.weight = section.number("weight", distill.weight, 0.0, 1.0);
  const DistillSection usual;  // given at their defaults, keys claim nothing
  if (distill.temperature != usual.temperature && distill.loss != "forward_kl")
    section.reject("temperature", "must be left out unless loss is forward_kl");
  if (distill.weight != usual.weight && distill.loss == "cross_entropy")
    section.reject("weight", "must be left out where loss is cross_entropy, which is all of it");
  section.finish();
  return distill;
}

}  // namespace qat
