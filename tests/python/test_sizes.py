"""What weights take in a checkpoint, counted before they are quantized and after, beside what a file has."""

import re
from dataclasses import replace

import gguf
import pytest
import torch
import torchqat
from architectures import build
from safetensors.torch import load_file
from small_net import recipe_for
from test_gguf_types import SHAPE, TYPES
from torch import nn
from torchqat._library import QuantSpec
from torchqat.checkpoints.formats.known import bits_per_weight, find_format
from torchqat.checkpoints.readers.gguf import gguf_files
from torchqat.evaluation.sensitivity import LayerSensitivity

WIDE = ("{dtype: int2, group_size: 32}", "{dtype: int4, group_size: 128}")  # than their codes and scales


@pytest.mark.parametrize(
    "preset", (*WIDE, *(name for name in TYPES if name != "q2_0"))
)  # which gguf's reader does not know
def test_bits_are_counted_as_the_file_spends_them(preset, tokenizer, tmp_path):
    spec = f"{{dtype: {preset}}}" if preset in TYPES else preset
    recipe = torchqat.parse_recipe(f'version: 1\nlayers: [{{match: "model.layers.*", weight: {spec}}}]\n')
    model = torchqat.prepare(build("Llama", **SHAPE), recipe)
    torchqat.export(model, tmp_path / "out", "gguf", tokenizer=tokenizer)
    tensors = {t.name: t for file in gguf_files(tmp_path / "out") for t in gguf.GGUFReader(file).tensors}
    quantized = [t for name, t in tensors.items() if re.search("attn_q.weight|ffn_down.weight", name)]
    layers = [layer for layer in torchqat.convert(model, torch.float16) if re.search("q_proj|down_proj", layer.name)]
    assert len(quantized) == len(layers)
    spent = 8 * sum(int(t.n_bytes) for t in quantized)
    assert sum(bits_per_weight("gguf", layer) * layer.codes.numel() for layer in layers) == spent


@pytest.mark.parametrize("format", ("compressed-tensors", "compressed-tensors-0.18"))
@pytest.mark.parametrize("symmetric", (True, False))
@pytest.mark.parametrize("width", (3, 4, 5, 6, 7, 8))
def test_rows_that_end_within_a_word_take_all_of_it(width, symmetric, format, tmp_path):
    weight = f"{{dtype: int{width}, group_size: 20, symmetric: {str(symmetric).lower()}}}"
    _check_sizes(nn.Sequential(nn.Linear(60, 7)), weight, "", format, tmp_path)


@pytest.mark.parametrize("format", ("compressed-tensors", "compressed-tensors-0.18"))
def test_codes_beside_integer_inputs_take_a_byte(format, tmp_path):
    _check_sizes(nn.Sequential(nn.Linear(64, 32)), "{dtype: int4}", "{dtype: int8}", format, tmp_path)


@pytest.mark.parametrize("group", ("group_size: 32", "group_size: 256", "granularity: channel"))
@pytest.mark.parametrize(
    "format, width", [("awq", 4), *((name, width) for name in ("gptq", "gptq_v2", "mlx") for width in (2, 3, 4, 7, 8))]
)
def test_zero_points_and_biases_that_every_file_has_are_counted(format, group, width, tmp_path):
    """Also of a symmetric grid; MLX has a bias beside each scale, and groups of 128 at most."""
    weight = f"{{dtype: int{width}, {group}, scale_dtype: float16}}"
    _check_sizes(nn.Sequential(nn.Linear(512, 64)), weight, "", format, tmp_path)


def test_what_mlx_has_no_groups_for_has_a_size(tmp_path):
    """Mode auto asks before it looks at what the format holds."""
    layer = LayerSensitivity("a", QuantSpec(4, granularity="channel"), {}, (8, 20), format="mlx")
    assert layer.size(4) > 0


def _check_sizes(net, weight, input, format, folder):
    """What is counted before and after a layer is quantized is what the file has."""
    shape = tuple(net[0].weight.shape)
    model = torchqat.prepare(net, recipe_for(weight, input))
    torchqat.export(model, folder / "out", format)
    tensors = load_file(folder / "out" / "model.safetensors")
    beside = ("0.bias", "0.weight_shape", "0.g_idx")
    spent = 8 * sum(tensor.nbytes for name, tensor in tensors.items() if name not in beside)
    dtype = find_format(format).dtype or torch.float32
    (layer,) = torchqat.convert(model, dtype)
    assert bits_per_weight(format, layer) * layer.codes.numel() == pytest.approx(spent, abs=1e-6)
    before = LayerSensitivity(
        "a", layer.weight, {}, shape, scale_bits=8 * dtype.itemsize, input=layer.input, format=format
    )
    assert before.size(layer.weight.bits) == spent


def test_sizes_are_those_of_the_format_that_is_written():
    spec = QuantSpec(4, granularity="group", group_size=128)
    layer = LayerSensitivity("a", spec, {3: 0.0, 4: 0.0}, (64, 256))
    bits = {
        (name, width): replace(layer, format=name).size(width) / layer.elements
        for name in ("gguf", "compressed-tensors", "compressed-tensors-0.18", "mxfp4")
        for width in (3, 4)
    }
    assert bits["gguf", 3] == bits["gguf", 4] == 4.5  # Q4_0
    assert bits["compressed-tensors", 3] == 4 + 16 / 128 == layer.size(3) / layer.elements
    assert bits["compressed-tensors-0.18", 3] == 3 + 16 / 128
    assert bits["mxfp4", 4] == bits["compressed-tensors", 4]  # a format of Python alone
