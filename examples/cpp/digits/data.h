#pragma once

#include <torch/types.h>

#include <fstream>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace digits {

struct Data {
  torch::Tensor images;  // float32 [count, 64], pixels from 0 to 1
  torch::Tensor labels;  // int64 [count]
};

// Reads what export_digits.py wrote: 64 pixels from 0 to 16 and the digit in each line.
inline Data read(const std::string& path) {
  std::ifstream file(path);
  if (!file) throw std::runtime_error(path + " could not be opened.");
  std::vector<float> pixels;
  std::vector<int64_t> labels;
  for (std::string line, field; std::getline(file, line);) {
    std::istringstream fields(line);
    for (int i = 0; i < 64 && std::getline(fields, field, ','); ++i)
      pixels.push_back(std::stof(field) / 16.0f);
    std::getline(fields, field);
    labels.push_back(std::stoll(field));
  }
  const auto count = static_cast<int64_t>(labels.size());
  if (count == 0 || static_cast<int64_t>(pixels.size()) != 64 * count)
    throw std::runtime_error(path + " must have 65 numbers in each line.");
  return {torch::tensor(pixels).view({count, 64}), torch::tensor(labels)};
}

// Every second image is for testing.
inline Data part(const Data& all, int64_t first) {
  const auto every_second = [first](const torch::Tensor& x) {
    return x.slice(0, first, std::nullopt, 2).contiguous();
  };
  return {every_second(all.images), every_second(all.labels)};
}
inline Data train_part(const Data& all) { return part(all, 0); }
inline Data test_part(const Data& all) { return part(all, 1); }

}  // namespace digits
