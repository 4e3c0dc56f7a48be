"""Inputs to begin from: the recipes that ship, small checkpoints, and a frozen GGUF file.

python tests/fuzz/seeds.py FOLDER
"""

import sys
from pathlib import Path

import torch
import torchqat
from torch import nn

ROOT = Path(__file__).resolve().parents[2]
WEIGHTS = (
    "{dtype: int4, group_size: 16}",
    "{dtype: int3, symmetric: false, group_size: 16}",
    "{dtype: int8}",
    "{dtype: fp8_e4m3, block: [8, 8]}",
)


def main(folder: Path) -> None:
    for kind in ("recipe", "safetensors", "checkpoint"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    for recipe in (ROOT / "recipes").glob("*.yaml"):
        (folder / "recipe" / recipe.stem).write_bytes(recipe.read_bytes())
    torch.manual_seed(0)
    for number, weight in enumerate(WEIGHTS):
        text = f'version: 1\nlayers: [{{match: "*", weight: {weight}}}]\n'
        model = torchqat.prepare(nn.Sequential(nn.Linear(16, 8)), torchqat.parse_recipe(text))
        out = torchqat.export(model, folder / "export", "safetensors")
        tensors, config = (out / "model.safetensors").read_bytes(), (out / "config.json").read_bytes()
        (folder / "safetensors" / str(number)).write_bytes(tensors)
        length = len(config).to_bytes(2, "little")
        (folder / "checkpoint" / str(number)).write_bytes(length + config + tensors)
    (folder / "gguf").mkdir(exist_ok=True)
    frozen = ROOT / "tests" / "vectors" / "v1" / "int4-gguf" / "export" / "model.gguf"
    (folder / "gguf" / "frozen").write_bytes(frozen.read_bytes())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
