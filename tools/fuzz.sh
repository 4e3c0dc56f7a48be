#!/usr/bin/env bash
# Fuzzes the readers of files with libFuzzer under the address and undefined-behaviour sanitizers, from the corpus in tests/fuzz.
#
#   tools/fuzz.sh [SECONDS]    for each target; 600 when not given
#
# What is found is kept as crash-* in build/fuzz; an input that shows a fault goes into tests/fuzz/corpus with the fix, and
# `make test` reads all of it (tests/qat/test_corpus.cpp).
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${1:-600}
command -v clang++ >/dev/null || { echo "fuzzing needs clang and its OpenMP: apt-get install clang libomp-dev" >&2; exit 1; }
torch=$(python -c 'import torch; print(torch.utils.cmake_prefix_path)')
cmake -S . -B build/fuzz -DCMAKE_CXX_COMPILER=clang++ -DCMAKE_PREFIX_PATH="$torch" -DQAT_BUILD_PYTHON=OFF -DQAT_FUZZ=ON \
  -DCMAKE_BUILD_TYPE=RelWithDebInfo >build/fuzz.log || { cat build/fuzz.log; exit 1; }
cmake --build build/fuzz --parallel "$(nproc)" --target fuzz_recipe fuzz_safetensors fuzz_checkpoint
python tests/fuzz/seeds.py build/fuzz/seeds
for kind in recipe safetensors checkpoint; do
  mkdir -p "build/fuzz/found/$kind"
  "build/fuzz/tests/fuzz/fuzz_$kind" "build/fuzz/found/$kind" "tests/fuzz/corpus/$kind" "build/fuzz/seeds/$kind" \
    -max_total_time="$seconds" -max_len=8192 -rss_limit_mb=4096 -timeout=10 -print_final_stats=1 \
    -artifact_prefix="build/fuzz/$kind-" 2>&1 | tail -n 12
done
# The readers in Python, by Atheris, which is libFuzzer as well.
python -c 'import atheris' 2>/dev/null || python -m pip install -q atheris
for kind in gguf gptq awq; do
  mkdir -p "build/fuzz/found/$kind" "build/fuzz/seeds/$kind"
  python tests/fuzz/fuzz_readers.py "$kind" "build/fuzz/found/$kind" "tests/fuzz/corpus/$kind" "build/fuzz/seeds/$kind" \
    -max_total_time="$seconds" -max_len=65536 -rss_limit_mb=4096 -timeout=10 -print_final_stats=1 \
    -artifact_prefix="build/fuzz/$kind-" 2>&1 | tail -n 12
done
