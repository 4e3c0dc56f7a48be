"""Number types that recipes name with groups and scales: trained, shared by fused layers, written."""

import copy
import math
import re

import pytest
import torch
import torchqat
from architectures import build, recipe, tokens
from sentences import matches
from torch import nn
from torchqat import QuantEmbedding, QuantLinear, ops
from torchqat._library import FLOAT, LayerPlan, QuantSpec, find_format, formats, load_checkpoint
from torchqat.layers.prepared import quant_layers

PRESETS = ("nvfp4", "mxfp4", "mxfp6_e2m3", "mxfp6_e3m2", "mxfp8_e4m3", "mxfp8_e5m2", "q4_k", "q5_k", "q6_k")
SCALES = ("minmax", "mse", "learned")
SHAPE = {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 1, "head_dim": 64}
ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
MLP = ("mlp.gate_proj", "mlp.up_proj")


def prepared(preset, scale="minmax", dtype=torch.float32, **settings):
    model = build("Llama", **SHAPE).to(dtype)
    return torchqat.prepare(model, recipe("{method: mse}", f"{{dtype: {preset}, scale: {scale}}}"), **settings)


def train(model, steps=3, schedule=None):
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    model.train()
    for batch in tokens(steps):
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if schedule is not None:
            schedule.step()
    return model.eval()


def layer_of(model, leaf):
    return model.get_submodule(f"model.layers.0.{leaf}")


def spec_of(name):
    return torchqat._library.preset(name)


def recipe_of(preset):
    return torchqat.parse_recipe(f'version: 1\nlayers: [{{match: "*", weight: {{dtype: {preset}}}}}]\n')


# -- training and export -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("preset", PRESETS)
def test_what_was_trained_is_what_is_read(preset, scale, dtype, tmp_path):
    model = train(prepared(preset, scale, dtype))
    folder = torchqat.export(model, tmp_path / "out", "safetensors")
    read = {layer.name: layer for layer in load_checkpoint(folder).layers}
    layers = quant_layers(model)
    assert len(read) == len(layers) == 7
    for name, layer in layers:
        assert torch.equal(read[name].dequantize(dtype), layer.quantized_weight()), name
        assert read[name].weight == copy.deepcopy(read[name].weight)
    assert torchqat.verify(folder, model).ok


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("preset", PRESETS)
def test_scales_and_weights_are_trained(preset, scale):
    model = prepared(preset, scale).train()
    batch = tokens(1)[0]
    model(input_ids=batch, labels=batch).loss.backward()
    for name, layer in quant_layers(model):
        assert layer.weight.grad.isfinite().all() and layer.weight.grad.any(), name
        if scale == "learned":
            assert layer.weight_scale.grad.isfinite().all() and layer.weight_scale.grad.any(), name
            if layer.weight_spec.has_offset:
                assert layer.weight_zero_point.grad.any(), name


@pytest.mark.parametrize("preset", PRESETS)
def test_the_step_costs_no_bits_of_accuracy_beyond_the_type(preset):
    """The rounded weight is within half a step of the widest gap, with the scale's own rounding."""
    model = prepared(preset)
    for name, layer in quant_layers(model):
        error = (layer.quantized_weight() - layer.master).norm() / layer.master.norm()
        bound = {4: 0.14, 5: 0.06, 6: 0.08, 8: 0.06}[layer.weight_spec.bits]
        assert error < bound, f"{name}: {error}"


# -- an outer scale for fused layers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", SCALES)
def test_fused_layers_share_an_outer_scale(scale):
    model = build("Llama", **SHAPE)
    with torch.no_grad():
        layer_of(model, "self_attn.v_proj").weight.mul_(70)
    model = train(torchqat.prepare(model, recipe("{method: mse}", f"{{dtype: nvfp4, scale: {scale}}}")))
    found = {
        leaf: layer.convert("a", torch.float32) for leaf in (*ATTENTION, *MLP) for layer in [layer_of(model, leaf)]
    }
    for group in (ATTENTION, MLP):
        assert len({found[leaf].outer_scale.item() for leaf in group}) == 1
    assert found[ATTENTION[0]].outer_scale != found[MLP[0]].outer_scale


def test_the_shared_scale_is_the_largest_that_one_needs():
    model = prepared("nvfp4")
    layers = [layer_of(model, leaf) for leaf in ATTENTION]
    needed = max((layer.weight.abs().max() / 6 / 448).item() for layer in layers)
    for layer in layers:
        assert layer.outer_scale().item() == 2.0 ** math.ceil(math.log2(needed))
        assert torch.equal(layer.outer_scale(), layers[0].outer_scale())


def test_the_shared_scale_is_found_once_a_step_and_after_every_change(monkeypatch):
    model = prepared("nvfp4")
    layer, other = layer_of(model, "self_attn.q_proj"), layer_of(model, "self_attn.k_proj")
    calls = []
    choose = ops.choose_outer_scales
    monkeypatch.setattr(ops, "choose_outer_scales", lambda *args: calls.append(1) or choose(*args))
    before = layer.outer_scale().clone()
    other.outer_scale()
    assert len(calls) == 3
    with torch.no_grad():
        other.weight.mul_(50)
    assert layer.outer_scale() > before
    assert len(calls) == 6
    other.weight.data.mul_(2)  # which no version shows
    other.forget_weight()
    assert layer.outer_scale() > 50 * before


def test_layers_that_are_not_fused_alike_keep_their_own():
    text = 'version: 1\nlayers:\n  - {match: "model.layers.*", weight: {dtype: nvfp4}}\n'
    text += '  - {match: "*.k_proj", weight: {dtype: mxfp4}}\n'
    model = torchqat.prepare(build("Llama", **SHAPE), torchqat.parse_recipe(text))
    assert layer_of(model, "self_attn.k_proj").shared_outer_scale is None
    shared = layer_of(model, "self_attn.q_proj").shared_outer_scale
    assert shared.layers == [layer_of(model, "self_attn.q_proj"), layer_of(model, "self_attn.v_proj")]


@pytest.mark.parametrize("scale", SCALES)
def test_a_copied_model_shares_among_its_own_layers(scale):
    model = prepared("nvfp4", scale)
    copied = copy.deepcopy(model)
    shared = layer_of(copied, "self_attn.q_proj").shared_outer_scale
    assert shared.layers == [layer_of(copied, leaf) for leaf in ATTENTION]
    batch = tokens(1)[0]
    assert torch.equal(copied(batch).logits, model(batch).logits)


@pytest.mark.parametrize("scale", SCALES)
def test_states_come_back(scale):
    model = train(prepared("nvfp4", scale))
    again = prepared("nvfp4", scale)
    again.load_state_dict(model.state_dict())
    batch = tokens(1)[0]
    assert torch.equal(again.eval()(batch).logits, model(batch).logits)


def test_a_float_checkpoint_gives_shared_scales():
    source = build("Llama", seed=5, **SHAPE)
    model, expected = (
        prepared("nvfp4", "mse"),
        torchqat.prepare(source, recipe("{method: mse}", "{dtype: nvfp4, scale: mse}")),
    )
    model.load_state_dict(build("Llama", seed=5, **SHAPE).state_dict())
    for leaf in (*ATTENTION, *MLP):
        assert torch.equal(layer_of(model, leaf).quantized_weight(), layer_of(expected, leaf).quantized_weight())


def test_compiled_layers_share_as_well():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.q_proj, self.k_proj, self.v_proj = (nn.Linear(64, 32) for _ in range(3))

        def forward(self, x):
            return self.q_proj(x) * self.k_proj(x) + self.v_proj(x)

    model = torchqat.prepare(Attention(), recipe_of("nvfp4"))
    x = torch.randn(4, 64)
    expected = model(x)
    assert torch.equal(torch.compile(model, backend="aot_eager", fullgraph=True)(x), expected)


@pytest.mark.parametrize("policy", ("none", "codes", "weights"))
@pytest.mark.parametrize("preset", ("nvfp4", "mxfp4", "q4_k"))
def test_what_is_kept_of_weights_changes_no_bits(preset, policy):
    batch = tokens(1)[0]
    plain, kept = prepared(preset), prepared(preset, weight_cache=policy)
    assert torch.equal(plain(batch).logits, kept(batch).logits)
    assert torch.equal(train(plain)(batch).logits, train(kept)(batch).logits)


def test_an_embedding_is_rounded_under_the_outer_scale_of_all_its_entries():
    embedding = nn.Embedding(50, 64)
    embedding.weight.data[7] *= 100
    layer = QuantEmbedding(embedding, spec_of("nvfp4"), None)
    ids = torch.tensor([[1, 2], [3, 3]])  # not the largest
    assert torch.equal(layer(ids), layer.quantized_weight()[ids])


# -- schedules ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("preset", ("nvfp4", "mxfp4", "q6_k"))
def test_a_schedule_goes_from_float_over_integers_to_the_type(preset, scale, tmp_path):
    text = f'version: 1\nlayers: [{{match: "model.layers.*", weight: {{dtype: {preset}, scale: {scale}}}}}]\n'
    text += "schedule: [{until: 2, weight: float}, {until: 4, weight: int8}, {until: 6}]\ntrain: {steps: 6}\n"
    read = torchqat.parse_recipe(text)
    model = torchqat.prepare(build("Llama", **SHAPE), read)
    schedule = torchqat.Schedule(model, read, 6)
    layer = layer_of(model, "self_attn.q_proj")
    assert layer.weight_bits == FLOAT
    train(model, 2, schedule)
    assert layer._weight_quantizer.text.split()[1] == "int8"
    train(model, 4, schedule)
    assert layer.weight_bits == layer.weight_spec.bits
    folder = torchqat.export(model, tmp_path / "out", "safetensors")
    read = {layer.name: layer for layer in load_checkpoint(folder).layers}
    for name, layer in quant_layers(model):
        assert torch.equal(read[name].dequantize(), layer.quantized_weight()), name


def test_a_schedule_that_has_not_ended_is_named_by_the_type():
    layer = QuantLinear(nn.Linear(64, 32), spec_of("nvfp4"), None)
    layer.set_bits(8, FLOAT)
    refusal = matches("export.not-at-exported-width", layer="a", dtype="fp4_e2m1", width="int8")
    with pytest.raises(ValueError, match=refusal):
        layer.convert("a", torch.float32)


# -- inputs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", [name for name in PRESETS if "fp" in name])
def test_inputs_are_rounded_in_each_call(preset):
    text = f'version: 1\nlayers: [{{match: "*", input: {{dtype: {preset}, dynamic: true}}}}]\n'
    model = torchqat.prepare(nn.Sequential(nn.Linear(64, 32)), torchqat.parse_recipe(text))
    x = torch.randn(5, 64)
    spec = model[0].input_spec
    rounded = ops.fake_quantize(x, spec.input_quantizer(spec.bits, 64))
    assert not torch.equal(rounded, x)
    assert torch.equal(model(x), nn.functional.linear(rounded, model[0].weight, model[0].bias))


# -- what cannot be --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [format.name for format in formats() if format.name != "mlx"])  # test_mlx.py
@pytest.mark.parametrize("preset", PRESETS)
def test_a_format_without_a_place_for_the_type_says_so(preset, name):
    refusal = find_format(name).refusal(LayerPlan("a", 512, 64, spec_of(preset)))
    holds = find_format(name).number_types
    if name == "safetensors" or preset in holds:
        assert refusal == "" or (name, preset) == ("modelopt", "mxfp8_e4m3")  # with inputs alone
    elif holds:
        assert re.match(matches("export.because-number-type"), refusal) and all(name in refusal for name in holds)
    else:
        assert re.match(matches("export.because-coded"), refusal)


def test_an_export_names_the_format_that_can(tmp_path):
    model = prepared("mxfp4")
    others = "compressed-tensors, compressed-tensors-0.18, gguf, mlx and safetensors"
    with pytest.raises(torchqat.UserError, match=matches("export.cannot-hold", format="gptq", others=others)):
        torchqat.export(model, tmp_path / "out", "gptq")


@pytest.mark.parametrize(
    "arguments, message",
    (
        ({"bits": 4, "grid": "fp5"}, matches("ops.unknown-grid", grid="fp5")),
        ({"bits": 4, "scale_dtype": "e5m2"}, matches("ops.unknown-scale-dtype", dtype="e5m2")),
        ({"bits": 8, "grid": "offset"}, matches("ops.bits-of-offsets", bits=8)),
        ({"bits": 4, "grid": "full", "scale_dtype": "e8m0_even"}, matches("ops.powers-of-two", grid="full")),
        ({"bits": 4, "outer_block": (-2, 3)}, matches("ops.block-sides", block="[-2, 3]")),
    ),
)
def test_a_spec_that_no_operator_takes_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        QuantSpec(**arguments)


def test_specs_say_all_that_they_are():
    spec = spec_of("nvfp4")
    assert (spec.bits, spec.grid, spec.scale_dtype, spec.outer_dtype) == (4, "fp4_e2m1", "e4m3", "float32")
    assert (spec.type_name, QuantSpec(4).type_name) == ("nvfp4", "int4")
    assert spec.outer_block == (-1, -1) and spec.is_float and not spec.takes_widths
    assert spec.quant_range(4) == (-6.0, 6.0) and spec.quant_range(8) == (-127, 127)
    assert spec_of("q4_k").has_offset and not spec_of("q4_k").symmetric
