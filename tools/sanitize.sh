#!/usr/bin/env bash
# The C++ tests, and an example, under the address and undefined-behaviour sanitizers, then under the thread sanitizer.
set -euo pipefail
cd "$(dirname "$0")/.."
torch=$(python -c 'import torch; print(torch.utils.cmake_prefix_path)')

# built NAME SANITIZERS [OPTIONS]: the tests, in build/NAME.
built() {
  cmake -S . -B "build/$1" -DCMAKE_PREFIX_PATH="$torch" -DQAT_BUILD_PYTHON=OFF -DQAT_BUILD_TESTS=ON -DQAT_BUILD_EXAMPLES=ON \
    -DQAT_SANITIZE="$2" "${@:3}" \
    >"build/$1.log" || { cat "build/$1.log"; exit 1; }
  cmake --build "build/$1" --parallel "$(nproc)" --target qat_ops_tests qat_tests digits_train digits_classify
}
# tested NAME: the tests, and a program from training to packed layers.
tested() {
  for suite in qat_ops_tests qat_tests; do "build/$1/tests/$suite" --gtest_brief=1; done
  python examples/cpp/digits/export_digits.py "build/$1/digits.csv"
  "build/$1/examples/cpp/digits_train" "build/$1/digits.csv" examples/cpp/digits/recipe.yaml "build/$1/digits"
  "build/$1/examples/cpp/digits_classify" "build/$1/digits.csv" "build/$1/digits"
}

built asan address,undefined
# What torch allocates for as long as the process lives is no leak of ours.
export LSAN_OPTIONS="suppressions=$PWD/tests/sanitizers/leaks.txt:print_suppressions=0"
export UBSAN_OPTIONS=print_stacktrace=1
tested asan

# Which thread waits for which is known of clang's OpenMP, by its tool Archer, and not of gcc's.
archer=$(find /usr/lib/llvm-*/lib -name libarcher.so 2>/dev/null | sort -V | tail -n 1)
command -v clang++ >/dev/null && [ -n "$archer" ] ||
  { echo "the thread sanitizer needs clang and its OpenMP: apt-get install clang libomp-dev" >&2; exit 1; }
built tsan thread -DCMAKE_CXX_COMPILER=clang++
export OMP_TOOL_LIBRARIES="$archer"
# torch is not built for it: what happens between its own threads cannot be seen.
export TSAN_OPTIONS="suppressions=$PWD/tests/sanitizers/races.txt:ignore_noninstrumented_modules=1"
tested tsan
