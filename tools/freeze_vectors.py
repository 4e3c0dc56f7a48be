"""Writes the frozen exports in tests/vectors/VERSION: once for each version of what torchqat writes, and never again.

    python tools/freeze_vectors.py

`tests/python/test_vectors.py` reads them with every later version, and exports the same model anew: the same bytes.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torchqat
import transformers
from safetensors.torch import load_file, save_file
from torch import nn
from torchqat.training.state import VERSION, save_training

ROOT = Path(__file__).parent.parent / "tests" / "vectors" / f"v{VERSION}"
GROUPS = "weight: {dtype: int4, group_size: 32, grid: full, scale: mse, scale_dtype: float16}"
UNEVEN = "weight: {dtype: int4, group_size: 32, symmetric: false, scale: mse, scale_dtype: float16}"
# By folder: the format, and what the recipe says of every layer.
CASES = {
    "int4-compressed-tensors": ("compressed-tensors", UNEVEN),
    "int8-compressed-tensors": (
        "compressed-tensors",
        "weight: {dtype: int8, granularity: channel, scale: mse, scale_dtype: float16}, input: {dtype: int8}",
    ),
    "fp8-compressed-tensors": (
        "compressed-tensors",
        "weight: {dtype: fp8_e4m3, granularity: channel}, input: {dtype: fp8_e4m3}",
    ),
    "int4-gptq": ("gptq", GROUPS),
    "int4-gptq_v2": ("gptq_v2", GROUPS),
    "int4-awq": ("awq", UNEVEN),
    "int4-modelopt": ("modelopt", GROUPS),
    "int4-gguf": ("gguf", UNEVEN),
    "int4-onnx": ("onnx", UNEVEN),
    "int3-safetensors": ("safetensors", UNEVEN.replace("int4", "int3")),
}


def new_model() -> transformers.LlamaForCausalLM:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
        vocab_size=64, max_position_embeddings=32, tie_word_embeddings=False,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).half()


def new_classifier() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 16))


def prepared(case: str) -> tuple[nn.Module, Any]:
    """The model of a vector, quantized by its recipe, and what it is called with."""
    recipe = torchqat.load_recipe(str(ROOT / case / "recipe.yaml"))
    if CASES[case][0] == "onnx":
        model = new_classifier()
        model.load_state_dict(load_file(ROOT / "classifier.safetensors"))
        return torchqat.prepare(model, recipe), torch.linspace(-1, 1, 128).view(2, 64)
    model = transformers.LlamaForCausalLM.from_pretrained(ROOT / "model", dtype=torch.float16).eval()
    return torchqat.prepare(model, recipe), torch.arange(8)[None]


def main() -> None:
    if ROOT.exists():
        sys.exit(f"{ROOT} is frozen; raise the version of what is written first.")
    new_model().save_pretrained(ROOT / "model")
    save_file(new_classifier().state_dict(), ROOT / "classifier.safetensors")
    for name, (format, rule) in CASES.items():
        recipe = ROOT / name / "recipe.yaml"
        recipe.parent.mkdir(parents=True)
        matched = "*" if format == "onnx" else "model.layers.*"
        recipe.write_text(f'version: 1\nlayers: [{{match: "{matched}", {rule}}}]\nexport: [{format}]\n')
        model, example = prepared(name)
        torchqat.export(model, ROOT / name / "export", format, example=example)
    model, _ = prepared("int4-gptq")
    save_training(ROOT / "train.pt", {"step": 3, "identity": "vectors"}, model)
    (ROOT / "written.json").write_text(
        json.dumps({"torchqat": torchqat.__version__, "torch": torch.__version__}) + "\n"
    )


if __name__ == "__main__":
    main()
