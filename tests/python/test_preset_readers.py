"""Number types that recipes name with groups and scales, as readers that share nothing with torchqat see them."""

import json

import gguf
import ml_dtypes
import numpy as np
import pytest
import torch
import torchqat
from gguf.quants import dequantize as dequantize_gguf
from test_presets import PRESETS, layer_of, prepared, spec_of
from torch import nn
from torchqat import QuantLinear

CASES = 300


def weights_of(preset, seed):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(2, 256, generator=generator) * 10 ** (torch.rand(1, generator=generator) * 8 - 6)
    if seed % 5 == 0:
        weight[0, :32] = 0
    if seed % 7 == 0:
        weight[1] += weight.abs().max() * 3
    layer = QuantLinear(nn.Linear(256, 2, bias=False), spec_of(preset), None)
    with torch.no_grad():
        layer.weight.copy_(weight)
    return layer, layer.convert("a", torch.float32)


def scale_values(scale):
    """E8M0 and E4M3 as ml_dtypes reads their bytes."""
    if scale.dtype == torch.int8:
        return scale.numpy().astype(np.float32)
    kind = ml_dtypes.float8_e8m0fnu if scale.dtype == torch.float8_e8m0fnu else ml_dtypes.float8_e4m3fn
    return scale.view(torch.uint8).numpy().view(kind).astype(np.float32)


@pytest.mark.parametrize("preset", [name for name in PRESETS if "fp" in name])
def test_ml_dtypes_reads_what_the_forward_used(preset):
    """Codes and scales of 300 weights, put together in numpy alone, are the weights of the forward."""
    for seed in range(CASES):
        layer, found = weights_of(preset, seed)
        kind = ml_dtypes.float8_e5m2 if found.codes.dtype == torch.float8_e5m2 else ml_dtypes.float8_e4m3fn
        codes = found.codes.view(torch.uint8).numpy().view(kind).astype(np.float32)
        scale = scale_values(found.scale)
        if found.outer_scale is not None:
            scale = scale * found.outer_scale.numpy()
        values = (codes.reshape(2, scale.shape[1], -1) * scale[..., None]).reshape(2, -1)
        assert np.array_equal(values, layer.quantized_weight().detach().numpy()), seed


def test_nvfp4s_file_is_read_by_numpy_and_ml_dtypes(tmp_path):
    model = prepared("nvfp4")
    folder = torchqat.export(model, tmp_path / "out", "safetensors")
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert config["version"] == 2
    entry = config["layers"]["model.layers.0.mlp.up_proj"]["weight"]
    assert entry["outer_scale"] == {"dtype": "float32", "block": [-1, -1]}
    codes = torchqat._library.load_safetensors(folder / "model.safetensors")["model.layers.0.mlp.up_proj.codes"]
    nibbles = np.stack([(codes.numpy().view(np.uint8) >> shift) & 15 for shift in (0, 4)], -1).reshape(256, 256)
    values = nibbles.astype(np.uint8).view(ml_dtypes.float4_e2m1fn).astype(np.float32)
    found = layer_of(model, "mlp.up_proj").convert("a", torch.float32)
    scale = scale_values(found.scale) * found.outer_scale.numpy()
    expected = layer_of(model, "mlp.up_proj").quantized_weight().detach().numpy()
    assert np.array_equal((values.reshape(256, 16, 16) * scale[..., None]).reshape(256, 256), expected)


def halves(tensor):
    return tensor.numpy().astype(np.float16).reshape(-1, 1).view(np.uint8)


def q6_k_blocks(found):
    """llama.cpp's ``block_q6_K``: low nibbles, upper bits, scales, d."""
    q = (found.codes.numpy().astype(np.int16) + 32).astype(np.uint8).reshape(-1, 2, 128)
    low, high = q & 15, q >> 4
    ql = (low[:, :, :64] | low[:, :, 64:] << 4).reshape(-1, 128)
    qh = sum(high[:, :, 32 * i : 32 * i + 32] << 2 * i for i in range(4)).reshape(-1, 64).astype(np.uint8)
    scales = found.scale.numpy().view(np.uint8).reshape(-1, 16)
    return np.concatenate([ql, qh, scales, halves(found.outer_scale)], -1)


def k_scales(scale, least):
    """Eight 6-bit scales and eight 6-bit mins in 12 bytes."""
    first, last, first_min, last_min = scale[:, :4], scale[:, 4:], least[:, :4], least[:, 4:]
    high = (last >> 4 << 6, last_min >> 4 << 6)
    return np.concatenate([first | high[0], first_min | high[1], last & 15 | (last_min & 15) << 4], -1)


def q4_k_blocks(found):
    """llama.cpp's ``block_q4_K`` and, with a fifth bit each, ``block_q5_K``."""
    scale = found.scale.numpy().astype(np.uint8).reshape(-1, 8)
    least = (-found.offset.numpy()).astype(np.uint8).reshape(-1, 8)
    head = [halves(found.outer_scale), halves(found.outer_offset), k_scales(scale, least)]
    q = found.codes.numpy().astype(np.uint8).reshape(-1, 4, 2, 32)
    nibbles = ((q[:, :, 0] & 15) | (q[:, :, 1] & 15) << 4).reshape(-1, 128)
    if found.weight.bits == 5:
        fifth = (q >> 4).reshape(-1, 8, 32)
        head.append(sum(fifth[:, i] << i for i in range(8)).astype(np.uint8))
    return np.concatenate([*head, nibbles], -1)


@pytest.mark.parametrize(
    "preset, blocks, kind",
    (
        ("q4_k", q4_k_blocks, gguf.GGMLQuantizationType.Q4_K),
        ("q5_k", q4_k_blocks, gguf.GGMLQuantizationType.Q5_K),
        ("q6_k", q6_k_blocks, gguf.GGMLQuantizationType.Q6_K),
    ),
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_ggufs_decoder_reads_what_the_forward_used(preset, blocks, kind):
    """Laid out as llama.cpp's blocks, 300 weights are read back by gguf's own decoder, bit for bit."""
    for seed in range(CASES):
        layer, found = weights_of(preset, seed)
        read = dequantize_gguf(blocks(found), kind).reshape(2, 256)
        assert np.array_equal(read, layer.quantized_weight().detach().numpy()), seed
