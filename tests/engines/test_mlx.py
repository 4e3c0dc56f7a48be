"""What MLX itself computes from the tensors of the format mlx: the weights of the training forward."""

import os
import random
import subprocess
from pathlib import Path

import pytest
import torch
import torchqat
from engine_models import needs
from safetensors.torch import load_file
from torch import nn
from torchqat import QuantLinear, QuantSpec
from torchqat._library import preset
from torchqat.checkpoints.formats.mlx import ARCHITECTURES

CASES = 1000
AFFINE = (2, 3, 4, 5, 6, 8)
FLOATS = ("mxfp4", "mxfp8_e4m3", "nvfp4")


def _affine(bits: int, choose: random.Random) -> QuantSpec:
    group = choose.choice((32, 64, 128))
    granularity = choose.choice(("group", "group", "channel"))
    return QuantSpec(
        bits,
        grid=choose.choice(("narrow", "full", "signed", "asymmetric")),
        granularity=granularity,
        group_size=group if granularity == "group" else 0,
        scale=choose.choice(("minmax", "mse")),
        scale_dtype=choose.choice(("bfloat16", "float16")),
    )


def _layer(spec: QuantSpec, choose: random.Random) -> QuantLinear:
    linear = nn.Linear(max(32, spec.group_size) * choose.randint(1, 3), choose.randint(1, 9), bias=False)
    with torch.no_grad():
        linear.weight.mul_(10.0 ** choose.uniform(-1, 2))
    return QuantLinear(linear, spec, None, "mse")


def _read_by_mlx(model: nn.Module, folder: Path, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    torchqat.export(model, folder, "mlx", dtype=dtype)
    script, output = Path(__file__).with_name("mlx_dequantize.py"), folder / "dense.safetensors"
    subprocess.run([os.environ["TORCHQAT_MLX"], str(script), str(folder), str(output)], check=True)
    return load_file(output)


def _compare(model: nn.ModuleList, folder: Path, dtype: torch.dtype) -> None:
    read = _read_by_mlx(model, folder, dtype)
    assert len(read) == CASES
    for name, layer in model.named_children():
        assert torch.equal(read[name], layer.quantized_weight().to(dtype).float()), f"{name}, {layer.weight_spec}"


SIZES = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 128,
    "max_position_embeddings": 128,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
ROPES = {
    "default": {"rope_type": "default", "rope_theta": 50000.0},
    "llama3": {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
}


@pytest.mark.parametrize(("kind", "rope"), [*((kind, "default") for kind in ARCHITECTURES), ("llama", "llama3")])
def test_mlx_computes_what_training_did(kind, rope, tmp_path):
    """Rotary frequencies that are not mlx-lm's own, embedding and head quantized."""
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    needs("mlx")
    torch.manual_seed(0)
    heads = {"head_dim": 16} if kind in ("glm4", "hunyuan_v1_dense", "seed_oss") else {}
    model = AutoModelForCausalLM.from_config(
        CONFIG_MAPPING[kind](**SIZES, **heads, rope_parameters=ROPES[rope])
    ).float()
    with torch.no_grad():
        for parameter in model.parameters():  # whatever begins with ones and zeros is put to use
            parameter.add_(torch.randn_like(parameter) * 0.1)
    recipe = 'version: 1\nlayers:\n  - {match: "*", weight: {dtype: int4, group_size: 32}}\n'
    for name in ("model.embed_tokens", "lm_head"):
        recipe += f"  - {{match: {name}, weight: {{dtype: int8, group_size: 32}}}}\n"
    model = torchqat.prepare(model.eval(), torchqat.parse_recipe(recipe))
    folder = torchqat.export(model, tmp_path / "out", "mlx")
    checked = torchqat.verify(folder, model, engine="mlx")
    assert checked.ok and checked.agreement.kl_bound < 1e-6, str(checked)


@pytest.mark.parametrize("bits", AFFINE)
def test_mlx_reads_integers_bit_for_bit(bits, tmp_path):
    needs("mlx")
    torch.manual_seed(bits)
    choose = random.Random(bits)
    _compare(
        nn.ModuleList(_layer(_affine(bits, choose), choose) for _ in range(CASES)), tmp_path / "out", torch.float32
    )


@pytest.mark.parametrize("bits", AFFINE)
def test_mlx_reads_integers_under_powers_of_two_in_bfloat16(bits, tmp_path):
    needs("mlx")
    torch.manual_seed(bits)
    choose = random.Random(bits)
    spec = QuantSpec(bits, granularity="group", group_size=32, scale_dtype="e8m0_even")
    _compare(nn.ModuleList(_layer(spec, choose) for _ in range(CASES)), tmp_path / "out", torch.bfloat16)


@pytest.mark.parametrize("name", FLOATS)
def test_mlx_reads_floats_bit_for_bit(name, tmp_path):
    needs("mlx")
    torch.manual_seed(0)
    choose = random.Random(name)
    nvfp4 = QuantSpec(4, grid="fp4_e2m1", granularity="group", group_size=16, scale_dtype="e4m3")
    spec = nvfp4 if name == "nvfp4" else preset(name)
    _compare(nn.ModuleList(_layer(spec, choose) for _ in range(CASES)), tmp_path / "out", torch.float32)
