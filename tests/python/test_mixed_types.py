"""NVFP4 and its kin beside other types: how much each layer suffers from each, the best mix, and mixes in checkpoints."""

import copy
import re

import architectures
import pytest
import torch
import torchqat
from architectures import recipe, tokens
from sentences import matches, said
from test_sensitivity import losses_within
from torch import nn
from torchqat import QuantSpec, ops
from torchqat._library import LayerPlan, preset, retyped, weight_of_type, with_types
from torchqat.evaluation.mixed_widths import mixed_recipe, mixed_widths
from torchqat.evaluation.sensitivity import LayerSensitivity, sensitivity
from torchqat.layers.prepared import quant_layers

NVFP4 = "{dtype: nvfp4, scale: learned}"
TYPES = ["nvfp4", "mxfp4", "mxfp8_e4m3", "int8", "float"]
# By the type, what ``ops`` call it, and whether its outer scale is one for the whole weight.
TEXTS = {
    "nvfp4": "minmax fp4_e2m1 1x16 e4m3*float32@-1x-1",
    "mxfp4": "minmax fp4_e2m1 1x32 e8m0_floor",
    "mxfp8_e4m3": "minmax fp8_e4m3 1x32 e8m0_floor",
}


@pytest.fixture(scope="module")
def llama():
    return architectures.build("Llama")


@pytest.fixture(scope="module")
def measured(llama):
    plan = torchqat.make_plan(llama, recipe("{method: mse}", NVFP4))
    return sensitivity(llama, plan, tokens(), TYPES)


def text_of(weight=NVFP4, more="", input=""):
    rule = f"version: 1\nlayers:\n  - match: blocks\n    weight: {weight}\n"
    return rule + (f"    input: {input}\n" if input else "") + more


# -- sensitivity -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TEXTS)
def test_it_is_the_kl_with_one_layer_in_the_type(kind, llama, measured):
    """Worked out on the float model, with the weight of one layer replaced by what the operators make of it."""
    for name in ("model.layers.0.self_attn.o_proj", "model.layers.1.mlp.down_proj"):  # which nothing is fused with
        model = copy.deepcopy(llama)
        layer, inputs = model.get_submodule(name), []
        handle = layer.register_forward_pre_hook(lambda _, x, seen=inputs: seen.append(x[0].flatten(0, 1)))
        with torch.no_grad():
            wanted = [model(input_ids=batch).logits.double().log_softmax(-1) for batch in tokens()]
            handle.remove()
            importance = torch.cat(inputs).double().square().mean(0).float()
            scale, zero = ops.choose_qparams(layer.weight, TEXTS[kind], "mse", importance)
            fixed = TEXTS[kind].replace("minmax", "fixed")
            layer.weight.copy_(ops.fake_quantize(layer.weight, fixed, scale, zero))
            found = [model(input_ids=batch).logits.double().log_softmax(-1) for batch in tokens()]
        kl = sum((p.exp() * (p - q)).sum().item() for p, q in zip(wanted, found, strict=True))
        one = next(layer for layer in measured if layer.name == name)
        # 1e-8 is what sums of log-probabilities in float32 are worth.
        assert one.kl[kind] == pytest.approx(kl / sum(batch.numel() for batch in tokens()), rel=0.02, abs=1e-8)


def test_every_layer_is_measured_in_every_type(measured):
    assert len(measured) == 14
    for layer in measured:
        assert list(layer.kl) == ["nvfp4", "mxfp4", "mxfp8_e4m3", 8, "float"]
        assert layer.kl["mxfp4"] > layer.kl["mxfp8_e4m3"] > layer.kl["float"] == 0.0
        assert layer.kl["nvfp4"] > layer.kl[8] >= 0


def test_integers_are_measured_beside_4_bit_floats(llama):
    plan = torchqat.make_plan(llama, recipe("{method: mse}", "{dtype: int4, group_size: 32, scale: mse}"))
    both = sensitivity(llama, plan, tokens(2), [4, "nvfp4", 8])
    alone = sensitivity(llama, plan, tokens(2), [4, 8])
    for layer, integers in zip(both, alone, strict=True):
        assert {width: kl for width, kl in layer.kl.items() if width != "nvfp4"} == integers.kl
        assert layer.kl["nvfp4"] > integers.kl[8]


def test_a_type_that_no_layer_can_have_is_said_before_anything_is_run(llama):
    plan = torchqat.make_plan(llama, recipe("{method: mse}", "{dtype: int4}"))
    with pytest.raises(torchqat.UserError, match=matches("evaluate.no-layer-of-type", types="q4_k")):
        sensitivity(llama, plan, tokens(1), ["q4_k"])  # of 256 columns
    with pytest.raises(torchqat.UserError, match=matches("evaluate.no-type", type="nvfp5")):
        sensitivity(llama, plan, tokens(1), ["nvfp5"])


# -- the mix -----------------------------------------------------------------------------------------------------------


def test_sizes_are_those_of_a_checkpoint(llama, measured):
    for kind in ("nvfp4", "mxfp4", "mxfp8_e4m3"):
        prepared = torchqat.prepare(copy.deepcopy(llama), recipe("{method: rtn}", f"{{dtype: {kind}}}"))
        sizes = {w.name: w.bits_per_weight * w.codes.numel() for w in torchqat.convert(prepared, torch.bfloat16)}
        for layer in measured:
            assert layer.size(kind) == pytest.approx(sizes[layer.name])
            assert layer.size("float") == 16 * layer.elements
    one = measured[0]
    assert one.size("mxfp4") == 4.25 * one.elements and one.size("nvfp4") == 4.5 * one.elements + 32


def test_a_mix_within_the_budget(measured):
    assert losses_within(measured, (4.3, 5.0, 7.0, 17.0))[-1] == 0.0
    assert set(mixed_widths(measured, 4.25).values()) == {"mxfp4"}


def test_fused_layers_that_share_no_type_are_refused():
    spec = preset("nvfp4")
    measured = [LayerSensitivity(f"l.{leaf}_proj", spec, {leaf: 1.0}, (64, 64)) for leaf in ("gate", "up")]
    with pytest.raises(
        torchqat.UserError, match=matches("evaluate.no-common-type", layers="l.gate_proj and l.up_proj")
    ):
        mixed_widths(measured, 8.0)


@pytest.mark.parametrize("input", ["", "{dtype: nvfp4}"])
def test_the_mix_is_a_recipe_that_gives_these_types(input, llama):
    text = text_of(input=input, more="train: {steps: 3}\n")
    plan = torchqat.make_plan(llama, torchqat.parse_recipe(text))
    measured = [
        LayerSensitivity(p.name, p.weight, dict.fromkeys(TYPES, 0.0), (p.out_features, p.in_features), input=p.input)
        for p in plan.layers
    ]
    blocks = {"self_attn.o_proj": "mxfp8_e4m3", "mlp.down_proj": 8, "mlp.gate_proj": "float", "mlp.up_proj": "float"}
    widths = {p.name: blocks.get(p.name.split(".", 3)[3], "nvfp4") for p in plan.layers}
    mixed = torchqat.parse_recipe(mixed_recipe(text, measured, widths), "mixed")
    found = {layer.name: layer for layer in torchqat.make_plan(llama, mixed).layers}
    assert mixed.train.steps == 3
    assert found.keys() == {name for name, width in widths.items() if width != "float"}
    for planned in plan.layers:
        width = widths[planned.name]
        if width == "float":
            continue
        word = "int8" if width == 8 else width
        wanted = retyped(planned, word)
        assert found[planned.name].weight == wanted.weight
        assert repr(found[planned.name].input) == repr(wanted.input)
    shares = found["model.layers.0.self_attn.q_proj"].shares
    assert [name.rpartition(".")[2] for name in shares] == ["q_proj", "k_proj", "v_proj"]


@pytest.mark.parametrize("width", ("iq4_nl", "q4_k", "q8_0", "mxfp4"))
def test_a_rule_of_a_mix_gives_the_type_that_it_names(width):
    spec = QuantSpec(4, granularity="group", group_size=32, scale="learned", scale_dtype="float16")
    layer = LayerSensitivity("0", spec, {width: 0.0}, (8, 256))
    text = "version: 1\nlayers:\n  - match: '0'\n    weight: {dtype: int4, group_size: 32}\n"
    mixed = torchqat.parse_recipe(mixed_recipe(text, [layer], {"0": width}), "mixed")
    (found,) = torchqat.make_plan(nn.Sequential(nn.Linear(256, 8)), mixed).layers
    assert found.weight == weight_of_type(spec, width)


# -- in checkpoints ----------------------------------------------------------------------------------------------------

MIXES = {
    "compressed-tensors": (
        "  - {match: '*down_proj', weight: {dtype: mxfp8_e4m3}}\n"
        "  - {match: '*o_proj', weight: {dtype: int8, group_size: 32}}\n"
        "  - {match: 'model.layers.1.self_attn.*', weight: float}\n"
    ),
    "modelopt": "  - {match: '*down_proj', weight: {dtype: fp8_e4m3}, input: {dtype: fp8_e4m3}}\n",
    "gguf": (
        "  - {match: '*down_proj', weight: {dtype: mxfp4}}\n"
        "  - {match: '*o_proj', weight: {dtype: int8, group_size: 32, scale_dtype: float16}}\n"
    ),
}


def trained(more, tokenizer):
    from test_block_floats import SHAPE
    from test_presets import train

    model = torchqat.prepare(
        architectures.build("Llama", **SHAPE).bfloat16(), torchqat.parse_recipe(text_of(more=more))
    )
    torchqat.calibrate(model, tokens(2))
    return train(model, steps=2)


@pytest.mark.parametrize("format", MIXES)
def test_a_mix_is_written_and_read_back(format, tokenizer, tmp_path):
    model = trained(MIXES[format], tokenizer)
    folder = torchqat.export(model, tmp_path / "out", format, tokenizer)
    checked = torchqat.verify(folder, model)
    assert checked.ok and checked.layers == (10 if "float}" in MIXES[format] else 14), str(checked)


def test_transformers_loads_a_mix(tokenizer, tmp_path):
    """What it decompresses, layer by layer as their groups say, is what the training forward used."""
    from compressed_tensors.compressors import decompress_module
    from transformers import AutoModelForCausalLM

    model = trained(MIXES["compressed-tensors"], tokenizer)
    folder = torchqat.export(model, tmp_path / "out", "compressed-tensors", tokenizer)
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    for name, layer in quant_layers(model):
        theirs = loaded.get_submodule(name)
        decompress_module(theirs)
        assert torch.equal(theirs.weight, layer.quantized_weight()), name
    assert torch.equal(loaded.model.layers[1].self_attn.q_proj.weight, model.model.layers[1].self_attn.q_proj.weight)


@pytest.mark.parametrize(
    ("format", "more", "why"),
    [
        ("modelopt", "  - {match: '*down_proj', weight: {dtype: int8, group_size: 32}}\n", "it takes symmetric int4"),
        ("gguf", "  - {match: '*down_proj', weight: {dtype: mxfp8_e4m3}}\n", "it takes integers and FP8"),
        ("awq", "", "it takes integers and FP8"),
        ("compressed-tensors", "  - {match: '*down_proj', weight: {dtype: q4_k}}\n", "it takes integers and FP8"),
    ],
)
def test_what_a_format_cannot_hold_is_said_before_training(format, more, why):
    from torchqat.checkpoints.export import check_exports

    model = architectures.build("Llama", hidden_size=256, intermediate_size=256)
    plan = torchqat.make_plan(model, torchqat.parse_recipe(text_of(more=more)))
    with pytest.raises(torchqat.UserError, match=f"{re.escape(format)} cannot hold .*{why}"):
        check_exports(model, plan, [format], True)


def test_layers_that_engines_fuse_must_share_a_type():
    from torchqat.checkpoints.export import check_exports

    model = architectures.build("Llama")
    plan = torchqat.make_plan(model, torchqat.parse_recipe(text_of()))
    mixed = with_types(plan, {"model.layers.0.self_attn.q_proj": "mxfp4"})
    with pytest.raises(torchqat.UserError, match="must share one scheme, because engines fuse them"):
        check_exports(model, mixed, ["compressed-tensors"], True)


# -- the command -------------------------------------------------------------------------------------------------------


def run_command(capsys, *arguments):
    from torchqat.cli import main

    with pytest.raises(SystemExit) as ended:
        main(["sensitivity", *map(str, arguments)])
    printed = capsys.readouterr()
    return ended.value.code, printed.out, printed.err


def test_the_command_mixes_4_bit_floats(model_folder, data_folder, tmp_path, capsys):
    path, mixed = tmp_path / "recipe.yaml", tmp_path / "mixed.yaml"
    calibration = "data: {calibration: {samples: 2, sequence_length: 32}}\n"
    path.write_text(text_of(more=calibration))
    given = [path, "--model", model_folder, "--data", data_folder, "--budget", "5.5", "--write", mixed]
    code, out, err = run_command(capsys, *given)
    assert code == 0, err
    assert said(out, "evaluate.within-budget", budget=5.5) and "NVFP4" in out and "MXFP8_E4M3" in out
    torchqat.load_recipe(str(mixed))


def test_the_command_says_what_no_layer_can_be_before_it_reads_data(model_folder, tmp_path, capsys):
    path = tmp_path / "recipe.yaml"
    path.write_text(text_of())
    code, _, err = run_command(capsys, path, "--model", model_folder, "--data", tmp_path / "none", "--bits", "q4_k")
    assert code == 2 and said(err, "evaluate.no-layer-of-type", types="q4_k")


def test_a_layer_alone_can_be_retyped():
    layer = LayerPlan("a", 64, 32, preset("nvfp4"), None)
    assert retyped(layer, "int8").weight.group_size == 32
    assert retyped(layer, "int8", "float16").weight.scale_dtype == "float16"
    with pytest.raises(ValueError, match="in_features that 256 divides, but has 64"):
        retyped(layer, "q4_k")
