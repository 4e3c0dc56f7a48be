"""NVFP4 and the MX types in checkpoints: what strangers read of them is what the forward used, bit for bit."""

import json
import math
import re

import ml_dtypes
import numpy as np
import pytest
import torch
import torchqat
from architectures import build, tokens
from gguf import GGMLQuantizationType
from gguf.quants import dequantize as dequantize_gguf
from sentences import matches
from test_preset_readers import scale_values
from test_presets import layer_of, spec_of, train
from torch import nn
from torchqat._library import CheckpointPlan, LayerPlan, find_format
from torchqat.checkpoints.export import check_exports

CASES = 1000
SHAPE = {"hidden_size": 128, "head_dim": 32, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 400}
# By the format, the number types that it holds, each with inputs that it holds beside them.
HELD = {
    "compressed-tensors": {
        "nvfp4": ("", "{dtype: nvfp4}"),
        "mxfp4": ("", "{dtype: mxfp4, scale_dtype: e8m0_even}", "{dtype: fp8_e4m3, group_size: 128}"),
        "mxfp6_e2m3": ("", "{dtype: mxfp8_e4m3, scale_dtype: e8m0_ceil}"),
        "mxfp8_e4m3": ("", "{dtype: mxfp8_e4m3, scale_dtype: e8m0_ceil}"),
    },
    "modelopt": {"nvfp4": ("", "{dtype: nvfp4}"), "mxfp8_e4m3": ("{dtype: mxfp8_e4m3, scale_dtype: e8m0_ceil}",)},
    "gguf": {"nvfp4": ("",), "mxfp4": ("",)},
}
LAYOUTS = {"nvfp4": "nvfp4-pack", "mxfp4": "mxfp4-pack", "mxfp6_e2m3": "mxfp6-pack", "mxfp8_e4m3": "mxfp8"}
EACH = [(format, weight, input) for format, held in HELD.items() for weight, inputs in held.items() for input in inputs]


def random_layer(preset, seed):
    """A layer whose weights are of a random size, with rows of zeros, outliers and learned scales now and then."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns = 2 * int(torch.randint(1, 5, (), generator=generator)), 64 * (1 + seed % 3)
    weight = torch.randn(rows, columns, generator=generator) * 10 ** (torch.rand(1, generator=generator) * 6 - 4)
    if seed % 5 == 0:
        weight[0] = 0
    if seed % 7 == 0:
        weight[1, :20] *= 100
    learned = {"nvfp4": "learned", "mxfp4": "learned"}.get(preset, "minmax") if seed % 2 else "minmax"
    made = torchqat.parse_recipe(
        f'version: 1\nlayers: [{{match: "*", weight: {{dtype: {preset}, scale: {learned}}}}}]\n'
    )
    net = nn.Sequential(nn.Linear(columns, rows, bias=False))
    with torch.no_grad():
        net[0].weight.copy_(weight)
    model = torchqat.prepare(net, made, method="mse")
    if learned == "learned":
        with torch.no_grad():
            model[0].weight_scale.mul_(torch.rand(model[0].weight_scale.shape, generator=generator) + 0.5)
    return model[0], model[0].convert("a", torch.bfloat16)


def prepared_input(text):
    """A model of one layer, whose input the recipe has as ``text``."""
    made = torchqat.parse_recipe(f'version: 1\nlayers: [{{match: "*", weight: {{dtype: nvfp4}}, input: {text}}}]\n')
    return torchqat.prepare(nn.Sequential(nn.Linear(128, 16)), made)


def input_spec_of(preset):
    return prepared_input(f"{{dtype: {preset}}}")[0].input_spec


def forward_weight(layer):
    return layer.quantized_weight().detach()


# -- layer by layer ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", HELD["compressed-tensors"])
def test_compressed_tensors_reads_what_the_forward_used(preset):
    """1,000 layers, decompressed by compressed-tensors itself: the same numbers, in its bfloat16."""
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationConfig

    format = find_format("compressed-tensors")
    documents = format.documents(CheckpointPlan([LayerPlan("a", 64, 2, spec_of(preset), None)], []))
    config = json.loads(documents["config.json"])
    known = {key: value for key, value in config.items() if key in QuantizationConfig.model_fields}
    scheme = QuantizationConfig.model_validate(known).config_groups["group_0"]
    compressor = BaseCompressor.get_value_from_registry(config["format"])
    assert config["format"].startswith(LAYOUTS[preset]) and compressor.can_compress(nn.Linear, scheme)
    for seed in range(CASES):
        layer, found = random_layer(preset, seed)
        tensors = {name.removeprefix("a."): tensor for name, tensor in format.tensors(found).items()}
        expected = forward_weight(layer)
        read = compressor.decompress(tensors, scheme)["weight"]
        assert torch.equal(read.float(), expected), seed


@pytest.mark.parametrize("preset", HELD["gguf"])
def test_gguf_reads_what_the_forward_used(preset):
    """1,000 layers, decoded by the gguf package; its NVFP4 times the number that llama.cpp multiplies the product by."""
    kind = GGMLQuantizationType[preset.upper()]
    for seed in range(CASES):
        layer, found = random_layer(preset, seed)
        tensors = find_format("gguf").tensors(found)
        read = dequantize_gguf(tensors["a.weight"].numpy(), kind)
        if preset == "nvfp4":
            read = read * tensors["a.scale"].numpy()
        assert np.array_equal(read, forward_weight(layer).numpy()), seed


def test_modelopts_nvfp4_is_what_the_forward_used():
    """1,000 layers as ModelOpt's documentation has them: nibbles times E4M3 times a factor, by ml_dtypes."""
    for seed in range(CASES):
        layer, found = random_layer("nvfp4", seed)
        tensors = find_format("modelopt").tensors(found)
        octets = tensors["a.weight"].numpy()
        nibbles = np.stack([octets & 15, octets >> 4], -1).reshape(len(octets), -1)
        values = nibbles.view(ml_dtypes.float4_e2m1fn).astype(np.float32)
        scale = scale_values(tensors["a.weight_scale"])
        values = values.reshape(len(octets), scale.shape[1], 16) * scale[..., None]
        read = values.reshape(len(octets), -1) * tensors["a.weight_scale_2"].numpy()
        assert np.array_equal(read, forward_weight(layer).numpy()), seed


def test_nvfp4_readers_agree():
    """Whoever divides by the reciprocal of the outer scale, or multiplies in another order, finds the same."""
    for seed in range(100):
        layer, found = random_layer("nvfp4", seed)
        codes, scale, outer = found.codes.float(), found.scale.float().repeat_interleave(16, 1), found.outer_scale
        divisor = 1.0 / outer
        expected = forward_weight(layer)
        assert torch.equal(codes * (scale / divisor), expected)
        assert torch.equal((codes * scale) * outer, expected)
        assert torch.equal((codes.bfloat16() * scale.bfloat16() * outer.bfloat16()).float(), expected)


# -- whole models ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format, weight, input", EACH)
def test_a_trained_model_is_written_and_verified(format, weight, input, tokenizer, tmp_path):
    text = f"version: 1\nlayers: [{{match: blocks, weight: {{dtype: {weight}}}"
    text += f", input: {input}}}]\n" if input else "}]\n"
    model = torchqat.prepare(build("Llama", **SHAPE), torchqat.parse_recipe(text))
    torchqat.calibrate(model, tokens(2))
    model = train(model, steps=2)
    folder = torchqat.export(model, tmp_path / "out", format, tokenizer)
    checked = torchqat.verify(folder, model)
    assert checked.ok and checked.layers == 14, str(checked)


@pytest.mark.parametrize("weight", HELD["compressed-tensors"])
def test_transformers_loads_it(weight, tokenizer, tmp_path):
    from transformers import AutoModelForCausalLM, CompressedTensorsConfig

    made = torchqat.parse_recipe(f"version: 1\nlayers: [{{match: blocks, weight: {{dtype: {weight}}}}}]\n")
    model = train(torchqat.prepare(build("Llama", **SHAPE).bfloat16(), made), steps=2)
    folder = torchqat.export(model, tmp_path / "out", "compressed-tensors", tokenizer)
    settings = CompressedTensorsConfig(run_compressed=False)
    loaded = AutoModelForCausalLM.from_pretrained(folder, quantization_config=settings, dtype=torch.bfloat16)
    for leaf in ("self_attn.q_proj", "mlp.down_proj"):
        theirs = loaded.get_submodule(f"model.layers.0.{leaf}").weight
        assert torch.equal(theirs, layer_of(model, leaf).quantized_weight())


def test_fused_layers_have_one_outer_scale_in_the_file(tmp_path):
    made = torchqat.parse_recipe("version: 1\nlayers: [{match: blocks, weight: {dtype: nvfp4, scale: learned}}]\n")
    model = train(torchqat.prepare(build("Llama", **SHAPE), made))
    folder = torchqat.export(model, tmp_path / "out", "compressed-tensors")
    tensors = torchqat._library.load_safetensors(folder / "model.safetensors")
    layer = "model.layers.1.self_attn"
    divisors = {tensors[f"{layer}.{name}_proj.weight_global_scale"].item() for name in "qkv"}
    assert len(divisors) == 1 and np.isfinite(divisors.pop())


def test_a_weight_of_zeros_has_finite_scales(tmp_path):
    made = torchqat.parse_recipe('version: 1\nlayers: [{match: "*", weight: {dtype: nvfp4}}]\n')
    net = nn.Sequential(nn.Linear(64, 16, bias=False))
    nn.init.zeros_(net[0].weight)
    found = torchqat.prepare(net, made)[0].convert("a", torch.float32)
    for format in HELD:
        for name, tensor in find_format(format).tensors(found).items():
            assert torch.isfinite(tensor.float()).all(), name


def test_experts_of_a_mixture_are_written_for_llama_cpp(tokenizer, tmp_path):
    shape = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "norm_topk_prob": True}
    made = torchqat.parse_recipe("version: 1\nlayers: [{match: blocks, weight: {dtype: nvfp4}}]\n")
    model = train(torchqat.prepare(build("Qwen3Moe", **SHAPE, **shape), made), steps=2)
    folder = torchqat.export(model, tmp_path / "out", "gguf", tokenizer)
    checked = torchqat.verify(folder, model)
    assert checked.ok, str(checked)


# -- inputs under an outer scale that is calibrated --------------------------------------------------------------------


def test_nvfp4_inputs_have_a_calibrated_outer_scale_and_local_ones():
    """By the definition: the largest magnitude that was seen gives the outer scale, sixteen numbers each their own."""
    model = prepared_input("{dtype: nvfp4}")
    generator = torch.Generator().manual_seed(0)
    seen = torch.randn(8, 128, generator=generator) * 3
    torchqat.calibrate(model, [seen])
    outer = model[0].input_scale
    assert outer.item() == 2.0 ** math.ceil(math.log2(seen.abs().max().item() / 6 / 448))
    x = torch.randn(4, 128, generator=generator)
    blocks = x.reshape(4, 8, 16)
    scale = (blocks.abs().amax(-1, keepdim=True) / 6 / outer).to(torch.float8_e4m3fn).float() * outer
    levels = (blocks / scale).numpy().astype(ml_dtypes.float4_e2m1fn).astype(np.float32)
    expected = (torch.from_numpy(levels) * scale).reshape(4, 128)
    assert torch.equal(model[0].quantized_input(x), expected)
    assert torch.equal(model(x), nn.functional.linear(expected, forward_weight(model[0]), model[0].bias))


def test_what_is_larger_than_all_that_was_seen_is_clipped():
    model = prepared_input("{dtype: nvfp4}")
    torchqat.calibrate(model, [torch.ones(1, 128)])
    largest = 6 * 448 * model[0].input_scale.item()
    assert model[0].quantized_input(torch.full((1, 128), 100.0)).max().item() == largest < 100


def test_an_outer_scale_may_be_found_in_every_call():
    model = prepared_input("{dtype: nvfp4, dynamic: true}")
    x = torch.full((1, 128), 100.0)
    assert model[0].quantized_input(x).max().item() == pytest.approx(100, rel=0.07)
    plan = LayerPlan("a", 128, 16, model[0].weight_spec, model[0].input_spec)
    refusal = find_format("compressed-tensors").refusal(plan)
    assert re.search(matches("export.because-outer-in-each-call"), refusal)


def test_the_outer_scale_of_inputs_is_in_the_file(tmp_path):
    model = prepared_input("{dtype: nvfp4}")
    torchqat.calibrate(model, [torch.randn(4, 128)])
    outer = model[0].input_scale.reshape(())
    for format, leaf, expected in (
        ("compressed-tensors", "input_global_scale", 1 / outer),
        ("modelopt", "input_scale", outer),
        ("safetensors", "input_scale", outer),
    ):
        tensors = find_format(format).tensors(model[0].convert("a", torch.float32))
        assert torch.equal(tensors[f"a.{leaf}"].reshape(()), expected), format


def test_an_input_that_was_never_calibrated_is_not_written(tmp_path):
    with pytest.raises(torchqat.UserError, match=matches("export.input-without-range")):
        torchqat.export(prepared_input("{dtype: nvfp4}"), tmp_path / "out", "modelopt")


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "format, weight, input, columns, sentence",
    (
        ("gptq", "nvfp4", None, 128, matches("export.because-coded")),
        ("modelopt", "mxfp4", None, 128, matches("export.because-number-type", types="nvfp4 and mxfp8_e4m3")),
        ("modelopt", "mxfp8_e4m3", None, 128, matches("export.because-modelopt")),
        ("compressed-tensors", "nvfp4", "mxfp4", 128, matches("export.because-beside-nvfp4")),
        ("compressed-tensors", "mxfp4", "mxfp4", 128, matches("export.because-rule", rule="e8m0_even")),
        ("compressed-tensors", "mxfp4", "mxfp8_e4m3", 128, matches("export.because-beside-mxfp4")),
        ("compressed-tensors", "mxfp6_e2m3", "mxfp4", 128, matches("export.because-beside", weight="mxfp6_e2m3")),
        ("compressed-tensors", "mxfp8_e4m3", "mxfp8_e4m3", 128, matches("export.because-rule", rule="e8m0_ceil")),
        ("compressed-tensors", "mxfp4", None, 48, matches("export.because-columns", columns=32, given=48)),
        ("gguf", "nvfp4", None, 96, matches("export.because-columns-of-gguf", columns=64, given=96)),
        ("gguf", "mxfp4", "mxfp4", 128, matches("export.because-inputs-of-llama-cpp")),
    ),
)
def test_what_a_format_cannot_hold_is_said(format, weight, input, columns, sentence):
    found = input_spec_of(input) if input else None
    layer = LayerPlan("layer", columns, 16, spec_of(weight), found)
    assert re.search(sentence, find_format(format).refusal(layer))


def test_the_rule_that_rounded_a_weights_scales_does_not_matter_to_readers():
    """Layers that engines fuse may have scales by different rules: a power of two is one."""
    made = torchqat.parse_recipe(
        "version: 1\nlayers: [{match: blocks, weight: {dtype: mxfp4}}, "
        '{match: "*.q_proj", weight: {dtype: mxfp4, scale_dtype: e8m0_ceil}}]\n'
    )
    model = build("Llama", **SHAPE)
    check_exports(model, torchqat.make_plan(model, made), ["compressed-tensors"], True)
