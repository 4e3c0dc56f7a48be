#!/usr/bin/env bash
# Lines of ops/ and qat/ that the C++ tests run. Needs gcovr, which it installs into the environment.
set -euo pipefail
cd "$(dirname "$0")/.."
torch=$(python -c 'import torch; print(torch.utils.cmake_prefix_path)')
python -c 'import gcovr' 2>/dev/null || python -m pip install -q gcovr
cmake -S . -B build/coverage -DCMAKE_PREFIX_PATH="$torch" -DQAT_BUILD_PYTHON=OFF -DQAT_BUILD_TESTS=ON -DQAT_COVERAGE=ON \
  -DCMAKE_BUILD_TYPE=Debug >build/coverage.log || { cat build/coverage.log; exit 1; }
cmake --build build/coverage --parallel "$(nproc)" --target qat_ops_tests qat_tests
find build/coverage -name '*.gcda' -delete
for suite in qat_ops_tests qat_tests; do "build/coverage/tests/$suite" --gtest_brief=1; done
# Loops that are compiled once for each kind of processor.
for capability in avx2 portable; do TORCHQAT_CPU_CAPABILITY=$capability build/coverage/tests/qat_ops_tests --gtest_brief=1; done
python -m gcovr --root . --filter 'ops/' --filter 'qat/' --merge-lines --exclude-throw-branches --print-summary --fail-under-line 95 \
  build/coverage "$@"
