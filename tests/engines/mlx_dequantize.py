"""Run by the Python of mlx: the dense weights of a folder, as MLX computes them.

python mlx_dequantize.py FOLDER OUT.safetensors
"""

import json
import sys
from pathlib import Path

import mlx.core as mx


def main(folder: Path, output: str) -> None:
    schemes = json.loads((folder / "config.json").read_text())["quantization"]
    tensors = mx.load(str(folder / "model.safetensors"))
    dense = {}
    for name, scheme in schemes.items():
        if isinstance(scheme, dict):
            codes, scales, biases = (tensors.get(f"{name}.{leaf}") for leaf in ("weight", "scales", "biases"))
            dtype = mx.float32 if biases is None else scales.dtype
            dense[name] = mx.dequantize(codes, scales, biases, dtype=dtype, **scheme).astype(mx.float32)
    mx.save_safetensors(output, dense)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
