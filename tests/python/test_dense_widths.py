"""Codes of 3, 5, 6 and 7 bits in compressed-tensors: in their own width, as version 0.18 of that library reads them."""

import copy
import json
import random

import pytest
import torch
import torchqat
from random_layers import Holder, random_linear
from sentences import matches, sentence
from small_net import recipe_for
from torchqat import QuantLinear, QuantSpec
from torchqat._library import load_safetensors
from torchqat.checkpoints.formats.known import bits_per_weight
from torchqat.checkpoints.readers import format_of, library

FORMAT = "compressed-tensors-0.18"
CASES = 1000
INT3 = "{dtype: int3, group_size: 32, grid: full, scale_dtype: float16}"


def _random_case(bits: int, seed: int) -> Holder:
    """A layer whose rows and columns seldom fill a word."""
    choose = random.Random(seed)
    torch.manual_seed(seed)
    group = choose.choice((4, 8, 12, 20, 32, 40))
    granularity = choose.choice(("group", "group", "channel", "tensor"))
    grids = ("narrow", "full", "signed") if granularity == "tensor" else ("narrow", "full", "signed", "asymmetric")
    spec = QuantSpec(
        bits,
        grid=choose.choice(grids),
        granularity=granularity,
        group_size=group if granularity == "group" else 0,
        scale=choose.choice(("minmax", "mse")),
        scale_dtype=choose.choice(("float16", "bfloat16", "float32")),
    )
    columns = group * choose.randint(1, 4) if granularity == "group" else choose.randint(1, 90)
    return Holder(QuantLinear(random_linear(choose, choose.randint(1, 70), columns), spec, None, "mse"))


@pytest.mark.parametrize("bits", (3, 5, 6, 7))
def test_the_library_reads_random_layers_back_bit_for_bit(bits):
    """By its own decompressor, from the tensors and the configuration that are written."""
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationConfig
    from torchqat.checkpoints.formats.known import find_format
    from torchqat.checkpoints.formats.tensors import checkpoint_plan

    format = find_format(FORMAT)
    for seed in range(CASES):
        case = _random_case(bits, seed)
        config = json.loads(format.documents(checkpoint_plan(case))["config.json"])
        assert config["version"] == "0.18.0"
        fields = QuantizationConfig.model_fields
        parsed = QuantizationConfig.model_validate({k: v for k, v in config.items() if k in fields})
        scheme = parsed.config_groups["group_0"]
        assert scheme.weights.num_bits == bits
        weights = case.layer.convert("layer", torch.float32)
        tensors = {name.removeprefix("layer."): tensor for name, tensor in format.tensors(weights).items()}
        rows, columns = case.layer.weight.shape
        assert tensors["weight_packed"].shape == (rows, -(-columns * bits // 32))
        read = BaseCompressor.get_value_from_registry("pack-quantized").decompress(tensors, scheme)["weight"]
        assert torch.equal(read, case.layer.quantized_weight()), f"seed {seed}, {case.layer.weight_spec}"


def test_the_library_writes_the_same_words(tiny_llama, tmp_path):
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    model = torchqat.prepare(tiny_llama, recipe_for(INT3))
    tensors = load_safetensors(str(torchqat.export(model, tmp_path / "out", FORMAT) / "model.safetensors"))
    name = "model.layers.1.self_attn.q_proj"
    codes = model.get_submodule(name).convert(name, torch.float32).codes
    assert torch.equal(tensors[f"{name}.weight_packed"], pack_to_int32(codes, 3))


def test_a_llama_takes_three_bits_on_disk(tiny_llama, tmp_path):
    model = torchqat.prepare(tiny_llama, recipe_for(INT3))
    dense = torchqat.export(model, tmp_path / "dense", FORMAT)
    padded = torchqat.export(model, tmp_path / "padded", "compressed-tensors")
    assert format_of(dense) == FORMAT and format_of(padded) == "compressed-tensors"
    assert str(torchqat.verify(dense, model, engine="reader")) == sentence("verify.equal", layers=14)
    sizes = [
        sum(t.nbytes for n, t in load_safetensors(str(f / "model.safetensors")).items() if n.endswith("packed"))
        for f in (dense, padded)
    ]
    assert sizes[0] / sizes[1] == 3 / 4
    layer = model.get_submodule("model.layers.0.mlp.up_proj").convert("layer", torch.float16)
    assert bits_per_weight(FORMAT, layer) == 3 + 16 / 32
    assert bits_per_weight("compressed-tensors", layer) == 4 + 16 / 32


def test_transformers_computes_what_training_did(tiny_llama, tmp_path):
    model = torchqat.prepare(tiny_llama, recipe_for(INT3))
    checked = torchqat.verify(torchqat.export(model, tmp_path / "out", FORMAT), model)
    assert checked.ok and checked.agreement is not None


def test_a_plan_of_other_widths_is_what_every_version_reads(tiny_llama, tmp_path):
    model = torchqat.prepare(tiny_llama, recipe_for(INT3.replace("int3", "int4")))
    folders = [torchqat.export(model, tmp_path / name, name) for name in (FORMAT, "compressed-tensors")]
    first, second = ((folder / "model.safetensors").read_bytes() for folder in folders)
    assert first == second and {format_of(folder) for folder in folders} == {"compressed-tensors"}


def test_an_older_library_is_refused_before_training(tiny_llama, tmp_path, monkeypatch):
    """0.17 packs the same widths with bits unused, and would read other weights without a word."""
    from torchqat.checkpoints.export import check_exports

    model = torchqat.prepare(copy.deepcopy(tiny_llama), recipe_for(INT3))
    folder = torchqat.export(model, tmp_path / "out", FORMAT)
    monkeypatch.setattr(library, "version", lambda _: "0.17.1")
    plan = torchqat.make_plan(tiny_llama, recipe_for(INT3))
    told = matches("checkpoints.older-compressed-tensors", found="0.17.1")
    with pytest.raises(torchqat.UserError, match=told):
        torchqat.verify(folder, model, engine="reader")
    with pytest.raises(torchqat.UserError, match=told):
        check_exports(tiny_llama, plan, [FORMAT], writes_text=True)


def test_engine_vllm_asks_for_what_every_vllm_loads():
    head = f'version: 1\nmode: auto\nlayers:\n  - {{match: "*", weight: {INT3}}}\n'
    recipe = f"{head}evaluate: {{accept: {{kl: 1}}}}\nengine: vllm\n"
    with pytest.raises(torchqat.RecipeError, match="engine: vllm"):
        torchqat.parse_recipe(f"{recipe}export: [{FORMAT}]\n")
    assert torchqat.parse_recipe(f"{recipe}export: [{FORMAT}, compressed-tensors]\n").exports[0] == FORMAT
