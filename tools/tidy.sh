#!/usr/bin/env bash
# clang-tidy over ops/ and qat/, with the checks of .clang-tidy; any finding is an error.
#
#   tools/tidy.sh [REGEX]    of files
set -euo pipefail
cd "$(dirname "$0")/.."
command -v run-clang-tidy >/dev/null || { echo "needs clang-tidy and clang's OpenMP: apt-get install clang clang-tidy libomp-dev" >&2; exit 1; }
torch=$(python -c 'import torch; print(torch.utils.cmake_prefix_path)')
cmake -S . -B build/tidy -DCMAKE_CXX_COMPILER=clang++ -DCMAKE_PREFIX_PATH="$torch" -DQAT_BUILD_PYTHON=OFF -DQAT_PRECOMPILE_HEADERS=OFF -DQAT_TOGETHER=OFF \
  -DCMAKE_EXPORT_COMPILE_COMMANDS=ON >build/tidy.log || { cat build/tidy.log; exit 1; }
run-clang-tidy -quiet -p build/tidy -j "$(nproc)" "${1:-^$PWD/(ops|qat)/.*\.cpp$}"
