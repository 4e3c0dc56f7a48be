"""``calibrate`` on whole models: each method on each architecture, block by block."""

import copy
import re

import architectures
import pytest
import torch
import torchqat
from architectures import recipe, tokens
from sentences import matches, said, sentence
from torch import nn
from torchqat.layers.prepared import quant_layers
from torchqat.ptq.block import WholeModel
from torchqat.ptq.blocks import in_floating_point
from torchqat.ptq.shared_inputs import find_stages, gather


def forward(model, batch):
    return model(input_ids=batch, use_cache=False)


def calibrated(model, text, batches=None, **specs):
    prepared = torchqat.prepare(copy.deepcopy(model), recipe(text, **specs))
    return prepared, torchqat.calibrate(prepared, tokens() if batches is None else batches, forward)


def error(model, prepared):
    """Squared difference of the logits."""
    with torch.no_grad():
        return sum((forward(model, b).logits - forward(prepared, b).logits).square().mean().item() for b in tokens())


def float_logits(prepared):
    with in_floating_point(prepared), torch.no_grad():
        return forward(prepared, tokens()[0]).logits


@pytest.fixture(scope="module")
def llama():
    return architectures.build("Llama")


@pytest.mark.parametrize("name", architectures.NAMES)
@pytest.mark.parametrize("transform", ["awq", "smoothquant"])
def test_folding_leaves_the_float_model_as_it_was(name, transform):
    model = architectures.build(name)
    prepared, found = calibrated(model, f"{{method: {transform}}}", input="{dtype: int8}")
    with torch.no_grad():
        expected = forward(model, tokens()[0]).logits
    torch.testing.assert_close(float_logits(prepared), expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())
    norms = [n for n, p in prepared.named_parameters() if "layernorm" in n]
    moved = [n for n in norms if not torch.equal(prepared.get_parameter(n), model.get_parameter(n))]
    assert any("input_layernorm" in n for n in moved)
    assert any("post_attention" in n or "pre_feedforward" in n for n in moved)


@pytest.mark.parametrize("name", ["Llama", "Qwen2", "Gemma"])
def test_awq_folds_every_stage_and_helps(name):
    model = architectures.build(name)
    plain, _ = calibrated(model, "{method: mse}")
    prepared, found = calibrated(model, "{method: awq}")
    assert not [w for w in found.warnings if "nothing to fold" in w]
    assert error(model, prepared) < error(model, plain)


def test_what_cannot_be_folded_is_said():
    encoder = nn.ModuleDict({"first": nn.Linear(64, 64), "second": nn.Linear(64, 8)})
    encoder.forward = lambda x: encoder["second"](torch.tanh(encoder["first"](x)))
    text = 'version: 1\nlayers:\n  - match: "*"\n    weight: {dtype: int4}\ninitialize: {method: awq}\n'
    torchqat.prepare(encoder, torchqat.parse_recipe(text, "recipe"))
    found = torchqat.calibrate(encoder, [torch.randn(32, 64)])
    assert found.unfolded == {"awq": ["first", "second"]}
    assert found.warnings == [sentence("ptq.nothing-to-fold", count=2, transform="awq", layer="first")]


@pytest.mark.parametrize("method", ["gptq", "awq", "awq+gptq", "hadamard+gptq"])
def test_every_method_beats_rounding_to_nearest(method, llama):
    weight = "{dtype: int3, group_size: 32, grid: full, scale: mse}"
    nearest, _ = calibrated(llama, "{method: rtn}", weight=weight)
    prepared, found = calibrated(llama, f"{{method: {method}}}", weight=weight)
    assert error(llama, prepared) < 0.8 * error(llama, nearest)
    assert set(found.losses) == {name for name, _ in quant_layers(prepared)}


def test_smoothing_helps_static_int8_inputs(llama):
    specs = {"weight": "{dtype: int8}", "input": "{dtype: int8, granularity: tensor}"}
    plain, _ = calibrated(llama, "{method: rtn}", **specs)
    smooth, _ = calibrated(llama, "{method: smoothquant+rtn, smoothing: 0.8}", **specs)
    assert error(llama, smooth) < 0.5 * error(llama, plain)


@pytest.mark.parametrize("name", ["Llama", "Mistral", "Qwen2", "Qwen3"])
@pytest.mark.parametrize("tied", [False, True])
def test_a_rotation_leaves_the_float_model_as_it_was(name, tied):
    model = architectures.build(name, tie_word_embeddings=tied)
    prepared, _ = calibrated(model, "{method: hadamard+rtn}")
    expected = forward(model, tokens()[0]).logits.detach()
    torch.testing.assert_close(float_logits(prepared), expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())
    assert not torch.equal(prepared.model.embed_tokens.weight, model.model.embed_tokens.weight)
    assert prepared.lm_head.weight is not prepared.model.embed_tokens.weight


def test_a_rotation_helps_int4_weights_and_inputs(llama):
    specs = {"weight": "{dtype: int4}", "input": "{dtype: int4}"}
    plain, _ = calibrated(llama, "{method: rtn}", **specs)
    rotated, _ = calibrated(llama, "{method: hadamard+rtn}", **specs)
    assert error(llama, rotated) < 0.7 * error(llama, plain)


def test_a_model_that_may_not_be_rotated_is_left_as_it_was():
    model = architectures.build("Gemma2")
    prepared = torchqat.prepare(copy.deepcopy(model), recipe("{method: hadamard+rtn}"))
    with pytest.raises(torchqat.UserError, match=matches("ptq.cannot-be-rotated", type="Gemma2ForCausalLM")):
        torchqat.calibrate(prepared, tokens(), forward)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, prepared.get_parameter(name))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gptq_leaves_master_weights_in_the_cells_of_their_codes(llama, dtype):
    model = copy.deepcopy(llama).to(dtype)
    prepared, _ = calibrated(model, "{method: gptq}")
    moved = 0
    for _, layer in quant_layers(prepared):
        rounded = layer.quantized_weight()
        moved += (rounded != layer.weight).float().mean().item()
        again = torchqat.ops.fake_quantize(
            rounded, *layer.stored_qparams(), layer.weight_spec.block, *layer.weight_spec.quant_range(4)
        )
        assert torch.equal(again, rounded)
    assert moved / len(quant_layers(prepared)) > 0.5


@pytest.mark.parametrize("scale", ["mse", "learned"])
@pytest.mark.parametrize("symmetric", ["grid: full", "symmetric: false"])
def test_training_starts_from_the_codes_and_scales_of_gptq(llama, scale, symmetric):
    weight = f"{{dtype: int4, group_size: 32, {symmetric}, scale: %s}}"
    fixed, _ = calibrated(llama, "{method: gptq}", weight=weight % "mse")
    prepared, _ = calibrated(llama, "{method: gptq}", weight=weight % scale)
    for (_, a), (_, b) in zip(quant_layers(fixed), quant_layers(prepared), strict=True):
        assert torch.equal(a.quantized_weight(), b.quantized_weight())


def test_a_schedule_returns_to_the_scales_of_gptq(llama):
    text = architectures.RECIPE.format(
        weight="{dtype: int4, group_size: 32, scale: mse}", input="", initialize="{method: gptq}"
    )
    ladder = torchqat.parse_recipe(text + "schedule:\n  - {until: 50%, weight: int8}\n  - {until: 100%}\n", "recipe")
    prepared = torchqat.prepare(copy.deepcopy(llama), ladder)
    torchqat.calibrate(prepared, tokens(), forward)
    before = {name: layer.weight_scale.clone() for name, layer in quant_layers(prepared)}
    schedule = torchqat.Schedule(prepared, ladder, 4)
    assert all(layer.weight_bits == 8 for _, layer in quant_layers(prepared))
    state = copy.deepcopy(prepared.state_dict())
    resumed = torchqat.prepare(copy.deepcopy(llama), ladder)
    second = torchqat.Schedule(resumed, ladder, 4)
    resumed.load_state_dict(state)
    for one in (schedule, second):
        one.finish()
    for model in (prepared, resumed):
        for name, layer in quant_layers(model):
            assert layer.weight_bits == 4 and torch.equal(layer.weight_scale, before[name])


def test_the_correction_brings_logits_nearer(llama):
    weight = "{dtype: int2, group_size: 32, grid: full, scale: mse}"
    errors = [
        error(llama, calibrated(llama, f"{{method: gptq, correction: {share}}}", tokens(16), weight=weight)[0])
        for share in ("0", "0.5")
    ]
    assert errors[1] < errors[0]


def test_sequential_sees_the_layers_before_it_quantized(llama):
    sequential, first = calibrated(llama, "{method: gptq, correction: 0}")
    together, second = calibrated(llama, "{method: gptq, correction: 0, sequential: false}")
    name = "model.layers.0.self_attn.q_proj"
    assert first.losses[name] == second.losses[name]
    assert first.losses["model.layers.0.mlp.down_proj"] != second.losses["model.layers.0.mlp.down_proj"]


def test_too_few_tokens_are_said(llama):
    _, found = calibrated(llama, "{method: gptq}", [torch.randint(0, 100, (1, 12))])
    few = sentence("ptq.too-few-tokens", layer="model.layers.0.self_attn.q_proj", features=64, tokens=12)
    assert found.warnings[0] == few


def test_tokens_that_are_not_finite_are_ignored_and_counted():
    model = nn.Sequential(nn.Linear(16, 16))
    text = 'version: 1\nlayers:\n  - match: "*"\n    weight: {dtype: int4}\ninitialize: {method: gptq}\n'
    torchqat.prepare(model, torchqat.parse_recipe(text, "recipe"))
    x = torch.randn(40, 16)
    x[3, 0] = float("inf")
    found = torchqat.calibrate(model, [x])
    assert found.warnings == [sentence("ptq.tokens-ignored", layer=0, count=1)]
    assert found.tokens == {"0": 39}


def test_no_samples_have_their_sentence(llama):
    prepared = torchqat.prepare(copy.deepcopy(llama), recipe("{method: gptq}"))
    with pytest.raises(torchqat.UserError, match=matches("ptq.no-batches-for-method", method="gptq")):
        torchqat.calibrate(prepared, [], forward)


@pytest.mark.parametrize("scale", ["mse", "learned"])
@pytest.mark.parametrize("rounding", ["weights", "signed"])
def test_block_training_brings_the_blocks_nearer(llama, scale, rounding):
    weight = f"{{dtype: int2, group_size: 32, grid: full, scale: {scale}}}"
    plain, _ = calibrated(llama, "{method: gptq, objective: layer, sweeps: 0}", tokens(64), weight=weight)
    # At twice the rate, signed steps beside learned scales find nothing better within 40 steps on some processors.
    training = f"{{steps: 40, batch_size: 8, learning_rate: 5.0e-3, rounding: {rounding}}}"
    trained, found = calibrated(
        llama, f"{{method: gptq, sweeps: 0, block_training: {training}}}", tokens(64), weight=weight
    )
    assert error(llama, trained) < 0.95 * error(llama, plain)
    assert len([w for w in found.warnings if said(w, "ptq.training-did-not-help")]) < 2  # of two blocks
    assert all(p.requires_grad for p in trained.parameters())


def test_block_training_that_does_not_help_is_undone(llama):
    weight = "{dtype: int4, group_size: 32, grid: full, scale: mse}"
    plain, _ = calibrated(llama, "{method: gptq, objective: layer}", weight=weight)
    training = "{steps: 3, learning_rate: 0.9}"
    trained, found = calibrated(llama, f"{{method: gptq, block_training: {training}}}", weight=weight)
    assert [w for w in found.warnings if re.match(matches("ptq.training-did-not-help", block="model.layers.0"), w)]
    for (_, a), (_, b) in zip(quant_layers(plain), quant_layers(trained), strict=True):
        assert torch.equal(a.quantized_weight(), b.quantized_weight())


def test_two_runs_give_the_same_bits(llama):
    first, _ = calibrated(llama, "{method: awq+gptq}")
    second, _ = calibrated(llama, "{method: awq+gptq}")
    for (name, a), (_, b) in zip(first.state_dict().items(), second.state_dict().items(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("method", ["awq+gptq", "smoothquant+gptq"])
def test_folded_scales_are_no_drift(method):
    """What GPTQ makes good is what rounding did to the tokens: scales that were folded into norms are not that."""
    torch.manual_seed(0)
    model = architectures.build("Llama")
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):
            parameter.data.uniform_(0.2, 2.0)
    batches = [torch.randint(0, 100, (4, 32)) for _ in range(4)]
    wanted = [forward(model, batch).logits for batch in batches]

    def error(correction):
        settings = f"{{method: {method}, correction: {correction}}}"
        prepared = torchqat.prepare(copy.deepcopy(model), recipe(settings))
        torchqat.calibrate(prepared, batches, forward)
        return sum((forward(prepared, b).logits - w).norm().item() for b, w in zip(batches, wanted, strict=True))

    with torch.no_grad():
        assert error(0.5) < 1.2 * error(0.0)


class Mixture(nn.Module):
    """Tokens to one of three experts each, always as many to the first and the second, by what a layer makes of them."""

    def __init__(self):
        super().__init__()
        self.before = nn.Linear(32, 32, bias=False)
        self.experts = nn.ModuleList(nn.Linear(32, 32, bias=False) for _ in range(3))

    def forward(self, x):
        x = self.before(x)
        order, count = x[:, 0].argsort(descending=True), len(x) // 4
        parts = order.split([count, count, len(x) - 2 * count])
        return torch.cat([expert(x[part]) for expert, part in zip(self.experts, parts, strict=True)])


def test_tokens_that_a_router_chose_are_no_drift_beside_others():
    """The float model sends as many tokens to an expert as the rounded one, but not the same."""
    torch.manual_seed(0)
    settings = torchqat.parse_recipe(
        "version: 1\nlayers: [{match: '*', weight: {dtype: int2, granularity: channel}}]\ninitialize: {method: gptq}\n"
    )
    original = Mixture()
    module = torchqat.prepare(copy.deepcopy(original), settings)
    block, x = WholeModel(module, lambda model, batch: model(batch)), torch.randn(64, 32)
    stages, _ = find_stages(block, [x])
    drifts = [found.drift for found in gather(block, stages, [x], original, [x * 1.1])]
    assert [stage.routed for stage in stages] == [False, True, True, True]
    assert drifts[0].abs().max() > 0 and all((drift == 0).all() for drift in drifts[1:])
