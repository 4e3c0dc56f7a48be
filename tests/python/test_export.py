"""``export`` and ``verify``: a stranger's reader gets the weights of the training forward, bit for bit."""

import json
import random
import re
import sys

import pytest
import torch
import torchqat
from random_layers import as_trained, random_linear
from safetensors.torch import load_file
from sentences import matches, sentence
from small_net import Net, recipe_for
from torch import nn
from torchqat import QuantLinear, QuantSpec
from torchqat._library import CheckpointPlan, LayerPlan, find_format
from torchqat.checkpoints.readers.compressed_tensors import decompress
from torchqat.verification.engines.transformers import load_in_transformers

CASES = 1000
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def _random_case(seed):
    """A layer of random shape, dtype and spec."""
    choose = random.Random(seed)
    torch.manual_seed(seed)
    group = choose.choice((8, 16, 32, 64))
    granularity = choose.choice(("group", "group", "channel", "tensor"))
    grid = choose.choice(("narrow", "full", "signed", "asymmetric"))
    if granularity == "tensor" and grid == "asymmetric":
        grid = "full"  # compressed-tensors packs zero points of groups and channels only
    cols, rows = group * choose.randint(1, 6), choose.randint(1, 40)
    dtype = choose.choice(tuple(DTYPES))
    scale_dtype = choose.choice({"float32": tuple(DTYPES), "bfloat16": ("bfloat16",), "float16": ("float16",)}[dtype])
    spec = QuantSpec(
        choose.randint(2, 8),
        grid=grid,
        granularity=granularity,
        group_size=group if granularity == "group" else 0,
        scale=choose.choice(("minmax", "mse", "learned")),
        scale_dtype=scale_dtype,
    )
    linear = random_linear(choose, rows, cols, least=-4).to(DTYPES[dtype])
    return as_trained(QuantLinear(linear, spec, None, choose.choice(("rtn", "mse")))), DTYPES[dtype]


def _written_and_read(weights):
    """The dense weights that compressed-tensors makes of layers, and the tensors that it made them from."""
    format = find_format("compressed-tensors")
    layers = [LayerPlan(w.name, w.codes.shape[1], w.codes.shape[0], w.weight, w.input) for w in weights]
    format.check(CheckpointPlan(layers))
    tensors = {name: tensor for w in weights for name, tensor in format.tensors(w).items()}
    return tensors, decompress(tensors, format.documents(CheckpointPlan(layers))["config.json"]).weights


def test_a_thousand_random_layers_read_back_bit_for_bit():
    differing = []
    for seed in range(CASES):
        layer, dtype = _random_case(seed)
        read = _written_and_read([layer.convert("layer", dtype)])[1]["layer"]
        expected = layer.quantized_weight().detach()
        if read.dtype != dtype or not torch.equal(read, expected):
            differing.append((seed, str(layer.weight_spec), str(dtype)))
    assert not differing, f"{len(differing)} of {CASES} differ, the first {differing[0]}"


@pytest.mark.parametrize("granularity", ("channel", "tensor"))
@pytest.mark.parametrize("input", ("token", "tensor"))
def test_int8_weights_and_inputs_read_back(granularity, input):
    net = torchqat.prepare(
        Net(), recipe_for(f"{{dtype: int8, granularity: {granularity}}}", f"{{dtype: int8, granularity: {input}}}")
    )
    torchqat.calibrate(net, [torch.randn(8, 64)])
    written, read = _written_and_read(torchqat.convert(net))
    for name, weight in read.items():
        assert torch.equal(weight, net.get_submodule(name).quantized_weight())
    assert ("first.input_scale" in written) == (input == "tensor")


RECIPES = {
    "symmetric": ("{dtype: int4, group_size: 32, grid: full, scale: learned}", ""),
    "asymmetric": ("{dtype: int4, group_size: 32, symmetric: false}", ""),
    "int8": ("{dtype: int8}", ""),
    "w8a8": ("{dtype: int8}", "{dtype: int8}"),
    "fp8": ("{dtype: fp8_e4m3}", "{dtype: fp8_e4m3}"),
    "fp8 tensor": ("{dtype: fp8_e4m3, granularity: tensor}", "{dtype: fp8_e4m3, granularity: tensor}"),
    "fp8 block": ("{dtype: fp8_e4m3, block: [16, 32]}", ""),
    "fp8 block, inputs in groups": ("{dtype: fp8_e4m3, block: [32, 32]}", "{dtype: fp8_e4m3, group_size: 32}"),
    "int4, int8 inputs": ("{dtype: int4, group_size: 32}", "{dtype: int8}"),
    "int4, fp8 inputs": ("{dtype: int4, group_size: 32}", "{dtype: fp8_e4m3}"),
}


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
def test_a_llama_loads_in_transformers(name, dtype, tiny_llama, tokenizer, tmp_path):
    model = torchqat.prepare(tiny_llama.to(dtype), recipe_for(*RECIPES[name]))
    torchqat.calibrate(model, [torch.arange(32).view(2, 16)])
    folder = torchqat.export(model, tmp_path / "out", tokenizer=tokenizer)
    checked = torchqat.verify(folder, model)
    assert checked.ok and checked.layers == 14, str(checked)
    loaded = load_in_transformers(folder)
    for layer, module in model.named_modules():
        if isinstance(module, QuantLinear):
            assert torch.equal(loaded.get_submodule(layer).weight, module.quantized_weight())
    assert (folder / "tokenizer.json").is_file() and (folder / "generation_config.json").is_file()
    assert "lm_head.weight" not in torchqat._library.load_safetensors(str(folder / "model.safetensors"))


def test_a_head_that_is_asked_for_is_untied(tiny_llama, tmp_path):
    recipe = torchqat.parse_recipe("version: 1\nlayers:\n  - {match: lm_head, weight: {dtype: int8}}\n")
    model = torchqat.prepare(tiny_llama, recipe)
    folder = torchqat.export(model, tmp_path / "out")
    assert json.loads((folder / "config.json").read_text())["tie_word_embeddings"] is False
    assert torchqat.verify(folder, model).ok


def test_verify_finds_a_single_changed_code(tiny_llama, tmp_path):
    model = torchqat.prepare(tiny_llama, recipe_for(*RECIPES["symmetric"]))
    folder = torchqat.export(model, tmp_path / "out")
    path = str(folder / "model.safetensors")
    tensors = torchqat._library.load_safetensors(path)
    tensors["model.layers.1.mlp.up_proj.weight_packed"][0, 0] ^= 1
    torchqat._library.save_safetensors(path, tensors)
    checked = torchqat.verify(folder, model)
    assert not checked.ok and checked.differing == {"model.layers.1.mlp.up_proj": 1}
    assert str(checked) == sentence("verify.one-differing", count=1, name="model.layers.1.mlp.up_proj", elements=1)


def test_safetensors_of_others_read_ours(tmp_path):
    from safetensors.torch import load_file, save_file

    tensors = {"a": torch.randn(3, 4), "b": torch.arange(5), "c": torch.randn(2).bfloat16(), "e": torch.empty(0, 3)}
    torchqat._library.save_safetensors(str(tmp_path / "ours"), tensors)
    theirs = load_file(tmp_path / "ours")
    assert all(torch.equal(theirs[name], tensor) for name, tensor in tensors.items())
    save_file(tensors, tmp_path / "theirs")
    ours = torchqat._library.load_safetensors(str(tmp_path / "theirs"))
    assert all(torch.equal(ours[name], tensor) for name, tensor in tensors.items())


def test_a_plain_module_exports_too(tmp_path):
    net = torchqat.prepare(Net(), recipe_for(RECIPES["symmetric"][0]))
    folder = torchqat.export(net, tmp_path / "net")
    assert sorted(file.name for file in folder.iterdir()) == [".torchqat", "config.json", "model.safetensors"]
    assert torchqat.verify(folder, net).ok


def test_layers_that_engines_fuse_must_agree(tiny_llama, tmp_path):
    recipe = torchqat.parse_recipe(
        'version: 1\nlayers:\n  - {match: "*", weight: {dtype: int4, group_size: 32}}\n'
        '  - {match: "*.k_proj", weight: {dtype: int8}}\n'
    )
    model = torchqat.prepare(tiny_llama, recipe)
    one, other = "model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.k_proj"
    with pytest.raises(torchqat.UserError, match=matches("export.fused-layers-differ", one=one, other=other)):
        torchqat.export(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_mixed_schemes_of_layers_that_are_not_fused(tiny_llama, tmp_path):
    recipe = torchqat.parse_recipe(
        'version: 1\nlayers:\n  - {match: "*", weight: {dtype: int4, group_size: 32}}\n'
        '  - {match: "*.down_proj", weight: {dtype: int8}}\n'
    )
    model = torchqat.prepare(tiny_llama, recipe)
    assert torchqat.verify(torchqat.export(model, tmp_path / "out"), model).ok


def test_what_the_format_cannot_hold_is_refused(tiny_llama, tmp_path):
    model = torchqat.prepare(tiny_llama, recipe_for("{dtype: int4, block: [8, 8]}"))
    with pytest.raises(torchqat.UserError, match=matches("export.because-blocks")):
        torchqat.export(model, tmp_path / "out")
    with pytest.raises(torchqat.UserError, match=matches("export.unknown-format", format="bin")):
        torchqat.export(model, tmp_path / "out", format="bin")


def test_scales_that_the_dtype_cannot_hold_are_refused(tiny_llama, tmp_path):
    model = torchqat.prepare(tiny_llama, recipe_for("{dtype: int4, scale_dtype: float32}"))
    refusal = matches("export.scales-do-not-fit", trained="float32", dtype="bfloat16")
    with pytest.raises(torchqat.UserError, match=refusal):
        torchqat.export(model, tmp_path / "out", dtype=torch.bfloat16)


def test_an_export_replaces_the_one_before_and_a_failed_one_leaves_it(tiny_llama, tmp_path, monkeypatch):
    model = torchqat.prepare(tiny_llama, recipe_for(RECIPES["symmetric"][0]))
    folder = torchqat.export(model, tmp_path / "out")
    before = (folder / "model.safetensors").read_bytes()

    full = sentence("checkpoints.not-written", path="model.safetensors", why="No space left on device")

    def full_disk(*args, **kwargs):
        raise torchqat.FileError(full)

    monkeypatch.setattr(sys.modules["torchqat.checkpoints.formats.shards"], "save_safetensors", full_disk)
    with pytest.raises(torchqat.UserError, match=re.escape(full)):
        torchqat.export(model, tmp_path / "out")
    assert (folder / "model.safetensors").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_verify_of_what_is_no_checkpoint(tiny_llama, tmp_path):
    model = torchqat.prepare(tiny_llama, recipe_for(RECIPES["symmetric"][0]))
    with pytest.raises(torchqat.UserError, match=matches("checkpoints.no-json")):
        torchqat.verify(tmp_path, model)
    folder = torchqat.export(model, tmp_path / "out")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(torchqat.UserError, match=matches("checkpoints.safetensors-does-not-load", file=weights)):
        torchqat.verify(folder, model)


def test_memory_that_is_shared_and_names_of_ours_in_other_modules(tmp_path):
    """The verifier, which works out by itself what is to be there, and the exporter agree."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(64, 64)
            self.register_buffer("a", torch.arange(4.0))
            self.register_buffer("b", self.a.view(4))
            self.k_scale = nn.Parameter(torch.ones(3))
            self.input_low = nn.Parameter(torch.ones(2))

        def forward(self, x):
            return self.linear(x)

    text = 'version: 1\nlayers: [{match: "linear", weight: {dtype: int4, group_size: 32}}]\n'
    model = torchqat.prepare(Net(), torchqat.parse_recipe(text))
    folder = torchqat.export(model, tmp_path / "out", "safetensors")
    assert torchqat.verify(folder, model).ok
    assert {"a", "k_scale", "input_low"} <= load_file(folder / "model.safetensors").keys()
