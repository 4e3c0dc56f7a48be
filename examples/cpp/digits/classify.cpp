// The program that is deployed: it reads the checkpoint into packed layers and has no training
// code.
//
//   digits_classify DIGITS_CSV CHECKPOINT_FOLDER

#include <qat/nn/deploy.h>
#include <qat/nn/packed_linear.h>

#include <cstdio>

#include "../program.h"
#include "classifier.h"

namespace {

void run(const std::string& csv, const std::string& folder) {
  const digits::Data test = digits::test_part(digits::read(csv));
  digits::Classifier<qat::PackedLinear> classifier;
  qat::load(classifier, folder);
  int64_t bytes = 0;
  for (const auto& layer : {classifier.third, classifier.last}) bytes += layer->bytes();
  std::printf("deployed    %.2f %%  %6.1f kB in memory\n", digits::accuracy(classifier, test),
              1e-3 * static_cast<double>(bytes));
}

}  // namespace

int main(int argc, char** argv) {
  return run_program(argc, argv, 2, "DIGITS_CSV CHECKPOINT_FOLDER", [&] { run(argv[1], argv[2]); });
}
