// A transformer over the characters of a text file: trained in floating point, rounded to few bits
// as it is, rounded by GPTQ, fine-tuned by a recipe, exported, and read back into packed layers,
// which write some text.
//
//   characters TEXT_FILE RECIPE OUTPUT_FOLDER

#include <qat/qat.h>
#include <torch/nn/functional/loss.h>
#include <torch/optim/adamw.h>

#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

#include "../program.h"
#include "transformer.h"

namespace {

namespace F = torch::nn::functional;
using Model = characters::Transformer<torch::nn::Linear>;
using characters::kContext;
using characters::kVocabulary;

// The bytes of a file, int64. The last tenth is for testing.
struct Text {
  torch::Tensor train, test;
};

Text read(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error(path + " could not be opened.");
  const std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
  if (bytes.size() < 20 * kContext)
    throw std::runtime_error(path + " must have at least " + std::to_string(20 * kContext) +
                             " bytes, but has " + std::to_string(bytes.size()) + ".");
  const auto count = static_cast<int64_t>(bytes.size());
  const torch::Tensor all =
      torch::from_blob(const_cast<char*>(bytes.data()), {count}, torch::kByte).to(torch::kLong);
  return {all.narrow(0, 0, count - count / 10), all.narrow(0, count - count / 10, count / 10)};
}

// Random pieces, each a byte longer than the context: int64 [count, kContext + 1].
torch::Tensor pieces(const torch::Tensor& text, int64_t count) {
  const torch::Tensor first = torch::randint(text.size(0) - kContext, {count, 1});
  return text.index({first + torch::arange(kContext + 1)});
}

torch::Tensor inputs(const torch::Tensor& batch) { return batch.narrow(1, 0, kContext); }

torch::Tensor cross_entropy(const torch::Tensor& logits, const torch::Tensor& batch) {
  return F::cross_entropy(logits.flatten(0, 1), batch.narrow(1, 1, kContext).flatten());
}

// Of the text kept for testing, per character.
template <typename Any>
double bits(Any& model, const torch::Tensor& text) {
  const torch::NoGradGuard no_grad;
  const int64_t count = std::min<int64_t>(64, text.size(0) / (kContext + 1));
  const torch::Tensor batch = text.narrow(0, 0, count * (kContext + 1)).view({count, -1});
  return cross_entropy(model.forward(inputs(batch)), batch).template item<double>() / std::log(2.0);
}

void train_in_float(Model& model, const torch::Tensor& text, int64_t steps) {
  torch::optim::AdamW optimizer(model.parameters(), 3e-3);
  for (int64_t step = 0; step < steps; ++step) {
    optimizer.param_groups()[0].options().set_lr(3e-3 * (1.0 - static_cast<double>(step) / steps));
    const torch::Tensor batch = pieces(text, 16);
    optimizer.zero_grad();
    const torch::Tensor loss = cross_entropy(model.forward(inputs(batch)), batch);
    loss.backward();
    optimizer.step();
    if (step % 200 == 0)
      std::printf("  step %3lld  %.2f bits\n", static_cast<long long>(step),
                  loss.item<double>() / std::log(2.0));
  }
}

// The distance to what the float model says of the next character, KL(teacher || model).
void fine_tune(Model& model, Model& teacher, const torch::Tensor& text, const qat::Recipe& recipe) {
  const auto options = torch::optim::AdamWOptions(5e-4).weight_decay(0.0);
  torch::optim::AdamW optimizer(qat::parameter_groups(model, options, /*scale_learning_rate=*/1e-4),
                                options);
  qat::Schedule schedule(model, recipe, recipe.train.steps, &optimizer);
  for (int64_t step = 0; step < recipe.train.steps; ++step) {
    const torch::Tensor batch = inputs(pieces(text, 16));
    const torch::Tensor wanted = teacher.forward(batch).detach().log_softmax(2).flatten(0, 1);
    const torch::Tensor found = model.forward(batch).log_softmax(2).flatten(0, 1);
    optimizer.zero_grad();
    F::kl_div(found, wanted, F::KLDivFuncOptions().reduction(torch::kBatchMean).log_target(true))
        .backward();
    optimizer.step();
    schedule.step();
  }
}

void copy(const Model& from, Model& to) {
  const torch::NoGradGuard no_grad;
  auto parameters = to.named_parameters();
  for (const auto& item : from.named_parameters()) parameters[item.key()].copy_(item.value());
}

// A sample may mix the bytes of two characters, which no terminal shows: those beyond ASCII become '?'.
std::string printable(std::string text) {
  for (char& one : text)
    if (static_cast<unsigned char>(one) > 0x7f) one = '?';
  return text;
}

void run(const std::string& path, const std::string& recipe_path, const std::string& output) {
  torch::manual_seed(0);
  const Text text = read(path);
  const qat::Recipe recipe = qat::load_recipe(recipe_path);

  Model original;
  train_in_float(original, text.train, 4 * recipe.train.steps);
  int64_t parameters = 0;
  for (const torch::Tensor& one : original.parameters()) parameters += one.numel();
  std::printf("float   %.3f bits per character  %7.1f kB\n", bits(original, text.test),
              4e-3 * static_cast<double>(parameters));

  Model model;
  copy(original, model);
  const qat::Plan plan = qat::plan(model, recipe);
  std::printf("%s", qat::to_text(plan).c_str());
  Model naive;
  copy(original, naive);
  qat::prepare(naive, plan, "rtn");
  std::printf("naive   %.3f\n", bits(naive, text.test));

  qat::prepare(model, plan, recipe.initialize);
  std::vector<torch::Tensor> batches;
  for (int i = 0; i < 8; ++i) batches.push_back(inputs(pieces(text.train, 16)));
  qat::calibrate(
      model, batches, [&](const torch::Tensor& batch) { model.forward(batch); }, recipe.initialize);
  std::printf("GPTQ    %.3f\n", bits(model, text.test));
  fine_tune(model, original, text.train, recipe);
  model.eval();
  qat::export_folder(model, output);
  const auto size = std::filesystem::file_size(output + "/model.safetensors");
  std::printf("QAT     %.3f                      %7.1f kB in %s\n", bits(model, text.test),
              1e-3 * static_cast<double>(size), output.c_str());

  characters::Transformer<qat::PackedLinear> deployed;
  qat::load(deployed, output);
  if (!qat::verify(model, output).equal() || !qat::verify(deployed, output).equal())
    throw std::runtime_error("The checkpoint differs from what was trained.");
  std::printf("packed  %.3f, verified bit for bit\n\n%s\n", bits(deployed, text.test),
              printable(characters::continued(deployed, "The ", 300)).c_str());
}

}  // namespace

int main(int argc, char** argv) {
  return run_program(argc, argv, 3, "TEXT_FILE RECIPE OUTPUT_FOLDER",
                     [&] { run(argv[1], argv[2], argv[3]); });
}
