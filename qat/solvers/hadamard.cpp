#include "qat/solvers/hadamard.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "qat/error.h"

namespace qat::solvers {
namespace {

bool is_prime(int64_t n) {
  if (n < 2) return false;
  for (int64_t d = 2; d * d <= n; ++d)
    if (n % d == 0) return false;
  return true;
}

// Q_ij = 1 where i - j is a square of the field of q elements, -1 where it is none, 0 on the
// diagonal.
at::Tensor jacobsthal(int64_t q) {
  std::vector<double> character(static_cast<size_t>(q), -1.0);
  character[0] = 0.0;
  for (int64_t x = 1; x < q; ++x) character[static_cast<size_t>(x * x % q)] = 1.0;
  const at::Tensor matrix = at::empty({q, q}, at::kDouble);
  auto entries = matrix.accessor<double, 2>();
  for (int64_t i = 0; i < q; ++i)
    for (int64_t j = 0; j < q; ++j) entries[i][j] = character[static_cast<size_t>((i - j + q) % q)];
  return matrix;
}

// Q with a border: `corner_row` along the top, `corner_col` down the side.
at::Tensor bordered(const at::Tensor& inner, double row, double col) {
  const int64_t size = inner.size(0) + 1;
  at::Tensor matrix = at::zeros({size, size}, at::kDouble);
  matrix.slice(0, 1).slice(1, 1).copy_(inner);
  matrix.select(0, 0).slice(0, 1).fill_(row);
  matrix.select(1, 0).slice(0, 1).fill_(col);
  return matrix;
}

// Paley's first construction, of order q + 1 for a prime q that leaves 3 when divided by 4.
at::Tensor first_paley(int64_t q) {
  return at::eye(q + 1, at::kDouble) + bordered(jacobsthal(q), 1.0, -1.0);
}

// His second, of order 2(q + 1) for a prime q that leaves 1.
at::Tensor second_paley(int64_t q) {
  const at::Tensor core = bordered(jacobsthal(q), 1.0, 1.0);
  const at::Tensor zero = at::tensor({1.0, -1.0, -1.0, -1.0}, at::kDouble).view({2, 2});
  const at::Tensor one = at::tensor({1.0, 1.0, 1.0, -1.0}, at::kDouble).view({2, 2});
  return at::kron(core, one) + at::kron(at::eye(q + 1, at::kDouble), zero);
}

// A matrix of ±1 whose rows are orthogonal; undefined where the constructions reach none.
at::Tensor hadamard(int64_t size) {
  if (size == 1) return at::ones({1, 1}, at::kDouble);
  if (size % 2 != 0) return {};
  if (size % 4 == 0 && is_prime(size - 1)) return first_paley(size - 1);
  if (size % 4 == 0 && size / 2 % 4 == 2 && is_prime(size / 2 - 1))
    return second_paley(size / 2 - 1);
  const at::Tensor half = hadamard(size / 2);
  if (!half.defined()) return {};
  const at::Tensor two = at::tensor({1.0, 1.0, 1.0, -1.0}, at::kDouble).view({2, 2});
  return at::kron(two, half);
}

}  // namespace

bool has_hadamard(int64_t size) { return hadamard(size).defined(); }

at::Tensor random_rotation(int64_t size, uint64_t seed) {
  if (size < 1)
    throw InvalidArgument("A rotation must have a size of at least 1, but has " +
                          std::to_string(size) + ".");
  auto generator = at::detail::createCPUGenerator(seed);
  const at::Tensor matrix = hadamard(size);
  if (!matrix.defined())
    return std::get<0>(at::linalg_qr(at::randn({size, size}, generator, at::kDouble)));
  const at::Tensor signs = at::randint(0, 2, {size, 1}, generator, at::kDouble) * 2.0 - 1.0;
  return matrix * signs / std::sqrt(static_cast<double>(size));
}

}  // namespace qat::solvers
