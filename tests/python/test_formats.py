"""Every format holds the trained codes: strangers read them back bit for bit, and damage is found and named."""

import json
import random
from pathlib import Path

import pytest
import torch
import torchqat
from counting import Converted
from random_layers import Holder, as_trained, random_linear
from sentences import matches, said, sentence
from small_net import Net, recipe_for
from torch import nn
from torchqat import QuantLinear, QuantSpec
from torchqat._library import LayerPlan, find_format, load_checkpoint, load_safetensors, save_safetensors
from torchqat.checkpoints.readers import format_of, read_checkpoint

CASES = 300
FOLDERS = ("compressed-tensors", "gptq", "gptq_v2", "awq", "mlx", "modelopt", "safetensors")
GROUPS = "{dtype: int4, group_size: 32, grid: full, scale_dtype: float16}"


def _random_case(seed: int) -> Holder:
    """A layer of random shape, dtype and spec."""
    choose = random.Random(seed)
    torch.manual_seed(seed)
    group = choose.choice((32, 64))
    granularity = choose.choice(("group", "group", "channel", "tensor"))
    spec = QuantSpec(
        choose.randint(2, 8),
        grid=choose.choice(("narrow", "full", "signed", "asymmetric")),
        granularity=granularity,
        group_size=group if granularity == "group" else 0,
        scale=choose.choice(("minmax", "mse", "learned")),
        scale_dtype="float16",
    )
    rows, cols = 32 * choose.randint(1, 3), group * choose.randint(1, 4)
    linear = random_linear(choose, rows, cols, bias=choose.random() < 0.5)
    return Holder(as_trained(QuantLinear(linear.to(choose.choice((torch.float32, torch.float16))), spec, None, "mse")))


@pytest.mark.parametrize("format", FOLDERS)
def test_random_layers_read_back_bit_for_bit(format, tmp_path):
    held = 0
    for seed in range(CASES):
        case = _random_case(seed)
        spec = case.layer.weight_spec
        plan = LayerPlan("layer", case.layer.in_features, case.layer.out_features, spec)
        if find_format(format).refusal(plan):
            continue
        dtype = torch.float32 if format == "mlx" else None  # in which its products are exact
        torchqat.export(case, tmp_path / "out", format, dtype=dtype)
        checked = torchqat.verify(tmp_path / "out", case, engine="reader")
        assert checked.ok and checked.layers == 1, f"seed {seed}, {spec}: {checked}"
        held += 1
    assert held >= {"awq": 20, "modelopt": 10}.get(format, 100)


@pytest.mark.parametrize("format", FOLDERS)
def test_a_llama_in_each_format(format, tiny_llama, tokenizer, tmp_path):
    model = torchqat.prepare(tiny_llama, recipe_for(GROUPS))
    folder = torchqat.export(model, tmp_path / "out", format, tokenizer)
    assert format_of(folder) == format
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"} <= {
        path.name for path in folder.iterdir()
    }
    assert str(torchqat.verify(folder, model, engine="reader")) == sentence("verify.equal", layers=14)
    stored = json.loads((folder / "config.json").read_text())["dtype"]
    assert stored == ("float16" if find_format(format).dtype else "float32")


@pytest.mark.parametrize("name", ("fp8_channel", "fp8_tensor", "fp8_block", "int8_inputs"))
def test_modelopt_holds_its_other_algorithms(name, tmp_path):
    weight, input, algorithm = {
        "fp8_channel": ("{dtype: fp8_e4m3}", "{dtype: fp8_e4m3}", "FP8_PER_CHANNEL_PER_TOKEN"),
        "fp8_tensor": (
            "{dtype: fp8_e4m3, granularity: tensor}", "{dtype: fp8_e4m3, granularity: tensor}", "FP8",
        ),
        "fp8_block": ("{dtype: fp8_e4m3, block: [128, 128]}", "", "FP8_PB_WO"),
        "int8_inputs": ("{dtype: int8}", "{dtype: int8, granularity: tensor}", "W8A8_SQ_PER_CHANNEL"),
    }[name]  # fmt: skip
    net = nn.Sequential(nn.Linear(256, 128))
    model = torchqat.prepare(net, recipe_for(weight, input))
    torchqat.calibrate(model, [torch.randn(8, 256)])
    folder = torchqat.export(model, tmp_path / "out", "modelopt")
    assert json.loads((folder / "hf_quant_config.json").read_text())["quantization"]["quant_algo"] == algorithm
    assert torchqat.verify(folder, model).ok


def test_modelopt_keeps_cache_scales_beside_the_projections(tiny_llama, tmp_path):
    recipe = torchqat.parse_recipe(
        f'version: 1\nlayers:\n  - {{match: "*", weight: {GROUPS}}}\nkv_cache: {{dtype: fp8_e4m3}}\n'
    )
    model = torchqat.prepare(tiny_llama, recipe)
    torchqat.calibrate(model, [torch.randint(0, 400, (2, 16))], lambda m, b: m(input_ids=b, use_cache=False))
    folder = torchqat.export(model, tmp_path / "out", "modelopt")
    tensors = load_safetensors(str(folder / "model.safetensors"))
    assert tensors["model.layers.0.self_attn.k_proj.k_scale"].shape == ()
    quantization = json.loads((folder / "hf_quant_config.json").read_text())["quantization"]
    assert quantization["kv_cache_quant_algo"] == "FP8"
    assert torchqat.verify(folder, model).ok


# -- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", FOLDERS)
def test_shards_hold_what_one_file_holds(format, tiny_llama, tmp_path):
    model = torchqat.prepare(tiny_llama, recipe_for(GROUPS))
    whole = torchqat.export(model, tmp_path / "whole", format)
    parts = torchqat.export(model, tmp_path / "parts", format, max_shard_size="30KB")
    index = json.loads((parts / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in parts.glob("*.safetensors"))
    assert len(files) > 1 and files[0] == f"model-00001-of-{len(files):05}.safetensors"
    expected = load_safetensors(str(whole / "model.safetensors"))
    assert index["weight_map"].keys() == expected.keys()
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in expected.values())
    for name, file in index["weight_map"].items():
        assert torch.equal(load_safetensors(str(parts / file))[name], expected[name])
    large = max(tensor.nbytes for tensor in expected.values())
    assert all((parts / file).stat().st_size < max(30_000, large) + 10_000 for file in files)
    assert torchqat.verify(parts, model, engine="reader").ok


@pytest.mark.parametrize("size", ("5 parsecs", 0, "-1GB", "GB"))
def test_a_shard_size_that_is_none_is_refused(size, tiny_llama, tmp_path):
    model = torchqat.prepare(tiny_llama, recipe_for(GROUPS))
    with pytest.raises(torchqat.UserError, match=matches("export.shard-size", size=size)):
        torchqat.export(model, tmp_path / "out", max_shard_size=size)


def test_a_dtype_that_the_format_is_not_defined_in_is_refused(tiny_llama, tmp_path):
    model = torchqat.prepare(tiny_llama, recipe_for(GROUPS))
    values = {"format": "gptq", "stored": torch.float16, "asked": torch.bfloat16}
    with pytest.raises(torchqat.UserError, match=matches("export.other-dtype", **values)):
        torchqat.export(model, tmp_path / "out", "gptq", dtype=torch.bfloat16)


@pytest.mark.parametrize("format", ("gptq", "gguf", "safetensors"))
def test_the_same_model_gives_the_same_bytes(format, tiny_llama, tokenizer, tmp_path):
    model = torchqat.prepare(tiny_llama, recipe_for(GROUPS))
    first, second = (torchqat.export(model, tmp_path / name, format, tokenizer) for name in "ab")
    for path in first.iterdir():
        assert path.read_bytes() == (second / path.name).read_bytes(), path.name


def test_layers_are_converted_one_at_a_time(tiny_llama, tmp_path, monkeypatch):
    """Never more than the layer at hand: a model's codes take a quarter of its float weights, all at once."""
    converted = Converted(monkeypatch)
    model = torchqat.prepare(tiny_llama, recipe_for(GROUPS))
    torchqat.export(model, tmp_path / "out", "gptq", max_shard_size="50KB")
    assert 0 < converted.most <= 2


# -- damage -----------------------------------------------------------------------------------------------------------

SCALE = {"compressed-tensors": "weight_scale", "modelopt": "weight_scale", "safetensors": "scale"}
ZERO = {"compressed-tensors": "weight_zero_point", "gptq_v2": "qzeros", "awq": "qzeros", "safetensors": "zero_point"}
LAYER = "model.layers.1.self_attn.q_proj"


def _damage(folder: Path, change) -> None:
    path = str(folder / "model.safetensors")
    tensors = load_safetensors(path)
    change(tensors)
    save_safetensors(path, tensors)


@pytest.mark.parametrize("format", FOLDERS)
def test_a_flipped_scale_is_found(format, tiny_llama, tmp_path):
    model = torchqat.prepare(tiny_llama, recipe_for(GROUPS))
    folder = torchqat.export(model, tmp_path / "out", format)
    name = f"{LAYER}.{SCALE.get(format, 'scales')}"
    _damage(folder, lambda tensors: tensors[name].view(-1)[5].mul_(-1))
    checked = torchqat.verify(folder, model, engine="reader")
    assert not checked.ok and list(checked.differing) == [LAYER]
    assert 0 < checked.differing[LAYER] <= 32


@pytest.mark.parametrize("format", FOLDERS)
def test_rows_in_another_order_are_found(format, tiny_llama, tmp_path):
    model = torchqat.prepare(tiny_llama, recipe_for(GROUPS))
    folder = torchqat.export(model, tmp_path / "out", format)
    codes = {"compressed-tensors": "weight_packed", "mlx": "weight", "modelopt": "weight", "safetensors": "codes"}
    name = f"{LAYER}.{codes.get(format, 'qweight')}"
    _damage(folder, lambda tensors: tensors.update({name: tensors[name].flip(0).contiguous()}))
    assert list(torchqat.verify(folder, model, engine="reader").differing) == [LAYER]


@pytest.mark.parametrize("format", ZERO)
def test_a_zero_point_that_is_off_by_one_is_found(format, tiny_llama, tmp_path):
    model = torchqat.prepare(tiny_llama, recipe_for(GROUPS.replace("grid: full", "symmetric: false")))
    folder = torchqat.export(model, tmp_path / "out", format)
    name = f"{LAYER}.{ZERO[format]}"
    _damage(folder, lambda tensors: tensors[name].sub_(1 if format == "safetensors" else 0x11111111))
    assert list(torchqat.verify(folder, model, engine="reader").differing) == [LAYER]


def test_the_offset_of_the_other_gptq_is_found(tiny_llama, tmp_path):
    """The trap of the format: zero points less one, or not."""
    model = torchqat.prepare(tiny_llama, recipe_for(GROUPS))
    folder = torchqat.export(model, tmp_path / "out", "gptq")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["checkpoint_format"] = "gptq_v2"
    (folder / "config.json").write_text(json.dumps(config))
    assert len(torchqat.verify(folder, model, engine="reader").differing) == 14


@pytest.mark.parametrize("format", FOLDERS)
def test_a_missing_tensor_is_named(format, tiny_llama, tmp_path):
    model = torchqat.prepare(tiny_llama, recipe_for(GROUPS))
    folder = torchqat.export(model, tmp_path / "out", format)
    names = [f"{LAYER}.{SCALE.get(format, 'scales')}", "model.norm.weight"]
    _damage(folder, lambda tensors: [tensors.pop(name) for name in names])
    checked = torchqat.verify(folder, model, engine="reader")
    assert not checked.ok and checked.missing == names
    assert said(str(checked), "verify.missing", count=2, name=names[0])


@pytest.mark.parametrize("format", ("compressed-tensors", "gptq", "safetensors"))
def test_what_is_not_quantized_is_compared_too(format, tiny_llama, tmp_path):
    model = torchqat.prepare(tiny_llama, recipe_for(GROUPS))
    folder = torchqat.export(model, tmp_path / "out", format)
    _damage(folder, lambda tensors: tensors["model.embed_tokens.weight"][3, 4].add_(1))
    assert torchqat.verify(folder, model, engine="reader").differing == {"model.embed_tokens.weight": 1}
    _damage(folder, lambda tensors: tensors.update({"model.stray.weight": torch.zeros(2)}))
    assert torchqat.verify(folder, model, engine="reader").unexpected == ["model.stray.weight"]


def test_a_model_that_changed_since_is_found(tiny_llama, tmp_path):
    model = torchqat.prepare(tiny_llama, recipe_for(GROUPS))
    folder = torchqat.export(model, tmp_path / "out", "gptq")
    with torch.no_grad():
        model.get_submodule(LAYER).weight.mul_(1.5)
    assert list(torchqat.verify(folder, model, engine="reader").differing) == [LAYER]


# -- the format of LibTorch programs ----------------------------------------------------------------------------------


def test_what_python_writes_cpp_reads(tmp_path):
    net = torchqat.prepare(Net(), recipe_for("{dtype: int3, group_size: 16, symmetric: false}"))
    folder = torchqat.export(net, tmp_path / "out", "safetensors", max_shard_size="1KB")
    read = load_checkpoint(str(folder))
    assert len(list(folder.glob("*.safetensors"))) > 1
    for layer in read.layers:
        trained = net.get_submodule(layer.name)
        assert torch.equal(layer.dequantize(trained.weight.dtype), trained.quantized_weight())
    assert torch.equal(read.others["first.bias"], net.first.bias)


def test_an_unknown_folder_is_refused(tmp_path, tiny_llama):
    tiny_llama.config.quantization_config = {"quant_method": "quanto"}
    tiny_llama.config.save_pretrained(tmp_path)
    with pytest.raises(torchqat.UserError, match=matches("checkpoints.of-no-format", method="quanto")):
        read_checkpoint(tmp_path)
