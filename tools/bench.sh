#!/usr/bin/env bash
# Runs the benchmarks of cost beside the peers. Those go into a folder of their own, build/peers, without what they would
# bring along: torchqat is tested in an environment that has none of them.
set -euo pipefail
cd "$(dirname "$0")/.."
peers=build/peers
if [ ! -d "$peers/torchao" ]; then
  python -m pip --disable-pip-version-check install -q --no-deps --target "$peers" "torchao==0.18.*" "brevitas==0.13.*" \
    "dependencies==2.0.1" unfoldnd matplotlib contourpy cycler fonttools kiwisolver pillow pyparsing python-dateutil six
fi
export PYTHONPATH=$peers
python benchmarks/fake_quantize.py --compiled
if grep -q avx512f /proc/cpuinfo; then  # what a processor without would take, by the same switches for torch and for us
  ATEN_CPU_CAPABILITY=avx2 TORCHQAT_CPU_CAPABILITY=avx2 python benchmarks/fake_quantize.py
fi
python benchmarks/packed_linear.py
python benchmarks/training_step.py
python benchmarks/growth.py
if python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
  python benchmarks/gptq_device.py
fi
