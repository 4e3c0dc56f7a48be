// A classifier of handwritten digits: trained in floating point, rounded to 4 bits as it is,
// fine-tuned to 4 bits by a recipe, exported.
//
//   digits_train DIGITS_CSV RECIPE OUTPUT_FOLDER

#include <qat/qat.h>
#include <torch/nn/functional/loss.h>
#include <torch/optim/adam.h>

#include <cstdio>
#include <filesystem>
#include <functional>
#include <stdexcept>
#include <vector>

#include "../program.h"
#include "classifier.h"

namespace {

// A torch::nn::Linear lets its weight be quantized; a qat::QuantLinear, its drop-in, its input too.
using Classifier = digits::Classifier<qat::QuantLinear>;

// Moved by up to a pixel to the side, where images have a margin: the classifier then does not
// learn places by heart.
torch::Tensor shifted(const torch::Tensor& images) {
  const int64_t by = torch::randint(-1, 2, {}).item<int64_t>();
  return images.view({-1, 8, 8}).roll(by, 2).flatten(1);
}

// Takes steps on loss(images, labels) of random batches, while the optimizer's rates go down to
// nothing; calls `after` after each.
template <typename Loss>
void for_batches(
    const digits::Data& data, int64_t steps, int64_t batch_size, torch::optim::Optimizer& optimizer,
    const Loss& loss, const std::function<void()>& after = [] {}) {
  std::vector<double> rates;
  for (const auto& group : optimizer.param_groups()) rates.push_back(group.options().get_lr());
  for (int64_t i = 0; i < steps; ++i) {
    const double left = 1.0 - static_cast<double>(i) / static_cast<double>(steps);
    for (size_t group = 0; group < rates.size(); ++group)
      optimizer.param_groups()[group].options().set_lr(left * rates[group]);
    const torch::Tensor picked = torch::randint(data.labels.size(0), {batch_size});
    optimizer.zero_grad();
    loss(shifted(data.images.index_select(0, picked)), data.labels.index_select(0, picked))
        .backward();
    optimizer.step();
    after();
  }
}

// Prepares the classifier and lets it see some images, for the ranges of its inputs.
void quantize(Classifier& classifier, const qat::Plan& plan, const std::string& method,
              const digits::Data& data) {
  qat::prepare(classifier, plan, method);
  qat::Initialize initialize;
  qat::parse_method(method, &initialize);
  qat::calibrate(
      classifier, {data.images.narrow(0, 0, 256)},
      [&](const torch::Tensor& images) { classifier.forward(images); }, initialize);
}

void train_in_float(Classifier& classifier, const digits::Data& data) {
  torch::optim::Adam optimizer(classifier.parameters(), 3e-3);
  for_batches(data, 1500, 64, optimizer,
              [&](const torch::Tensor& images, const torch::Tensor& labels) {
                return torch::nn::functional::cross_entropy(classifier.forward(images), labels);
              });
}

// Towards what the float classifier says of each image, which tells more than the label alone.
void fine_tune(Classifier& classifier, Classifier& teacher, const digits::Data& data,
               const qat::Recipe& recipe) {
  const torch::optim::AdamOptions options(1e-3);
  torch::optim::Adam optimizer(
      qat::parameter_groups(classifier, options, /*scale_learning_rate=*/1e-3), options);
  qat::Schedule schedule(classifier, recipe, recipe.train.steps, &optimizer);
  for_batches(
      data, recipe.train.steps, 64, optimizer,
      [&](const torch::Tensor& images, const torch::Tensor&) {
        const torch::Tensor wanted = teacher.forward(images).detach().softmax(1);
        const torch::Tensor found = classifier.forward(images);
        return torch::nn::functional::cross_entropy(found, wanted);
      },
      [&] { schedule.step(); });
}

Classifier copy_of(const Classifier& classifier) {
  Classifier copy;
  const torch::NoGradGuard no_grad;
  auto parameters = copy.named_parameters();
  for (const auto& item : classifier.named_parameters()) parameters[item.key()].copy_(item.value());
  return copy;
}

void run(const std::string& csv, const std::string& recipe_path, const std::string& output) {
  torch::manual_seed(0);
  const digits::Data all = digits::read(csv);
  const digits::Data data = digits::train_part(all), test = digits::test_part(all);
  const qat::Recipe recipe = qat::load_recipe(recipe_path);

  Classifier original;
  train_in_float(original, data);
  int64_t parameters = 0;
  for (const torch::Tensor& one : original.parameters()) parameters += one.numel();
  std::printf("float       %.2f %%  %6.1f kB\n", digits::accuracy(original, test),
              4e-3 * static_cast<double>(parameters));

  Classifier naive = copy_of(original);
  quantize(naive, qat::plan(naive, recipe), "rtn", data);  // by range, without training
  std::printf("naive INT4  %.2f %%\n", digits::accuracy(naive, test));

  Classifier classifier = copy_of(original);
  const qat::Plan plan = qat::plan(classifier, recipe);
  std::printf("%s", qat::to_text(plan).c_str());
  quantize(classifier, plan, recipe.initialize.method, data);
  fine_tune(classifier, original, data, recipe);
  classifier.eval();
  qat::export_folder(classifier, output);
  const auto size = std::filesystem::file_size(output + "/model.safetensors");
  std::printf("INT4 QAT    %.2f %%  %6.1f kB in %s\n", digits::accuracy(classifier, test),
              1e-3 * static_cast<double>(size), output.c_str());

  const qat::Verification verification = qat::verify(classifier, output);
  for (const std::string& difference : verification.differences)
    std::printf("%s\n", difference.c_str());
  if (!verification.equal())
    throw std::runtime_error("The checkpoint differs from what was trained.");
  std::printf("verified: %lld layers, bit for bit\n", static_cast<long long>(verification.layers));
}

}  // namespace

int main(int argc, char** argv) {
  return run_program(argc, argv, 3, "DIGITS_CSV RECIPE OUTPUT_FOLDER",
                     [&] { run(argv[1], argv[2], argv[3]); });
}
