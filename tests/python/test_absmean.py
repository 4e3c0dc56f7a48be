"""The rule of BitNet: weights of -1, 0 and 1 times the mean magnitude of their block, found in every forward."""

import copy

import pytest
import torch
import torchqat
from architectures import build
from sentences import matches
from test_presets import train
from torch import nn
from torchqat import QuantSpec, ops
from transformers.integrations.bitnet import WeightQuant

GROUPS = "int2 narrow 1x32 float16"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def weight_of(rows=24, cols=160, seed=0, dtype=torch.float32):
    return torch.randn(rows, cols, generator=torch.Generator().manual_seed(seed)).mul(0.03).to(dtype)


def recipe(weight, more=""):
    return torchqat.parse_recipe(f'version: 1\nlayers: [{{match: "*", weight: {{{weight}}}}}]\n{more}')


def layer_with(weight, columns=256):
    return torchqat.prepare(nn.Sequential(nn.Linear(columns, 4, bias=False)), recipe(weight))[0]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("block", [(1, 32), (1, 48), (1, -1), (4, 40), (-1, -1)])
def test_scales_are_those_of_the_float64_twin(block, dtype):
    x = weight_of(dtype=dtype)
    x[0, :64] = 0
    x[1, 3], x[1, 70] = float("nan"), float("inf")
    text = ops.quantizer_text("absmean", block, 2, "narrow", "float32")
    scale, zero_point = ops.choose_qparams(x, text, "absmean")
    height, width = (axis if side == -1 else side for side, axis in zip(block, x.shape, strict=True))
    wide = x.double()
    for row in range(scale.shape[0]):
        for col in range(scale.shape[1]):
            part = wide[row * height : (row + 1) * height, col * width : (col + 1) * width]
            mean = part[part.isfinite()].abs().mean().item()
            assert scale[row, col].item() == pytest.approx(mean or 1.0, rel=3e-7)
    assert not zero_point.any()


def test_the_forward_is_the_codes_times_the_scale():
    x = weight_of()
    scale, _ = ops.choose_qparams(x, f"absmean {GROUPS}", "absmean")
    assert torch.equal(scale, scale.half().float())
    found = ops.fake_quantize(x, f"absmean {GROUPS}")
    assert torch.equal(found, ops.fake_quantize(x, f"fixed {GROUPS}", scale))
    levels = found / scale.repeat_interleave(32, 1)
    assert set(levels.unique().tolist()) == {-1.0, 0.0, 1.0}
    kept = ops.encode(x, f"absmean {GROUPS}")
    assert torch.equal(kept[1], scale)
    assert torch.equal(ops.decode(*kept[:1], f"absmean {GROUPS}", *kept[1:], x.shape[1], torch.float32), found)


def test_a_whole_weight_is_rounded_as_bitnet_rounds_it():
    """transformers' own fake quantization of BitNet; its scale is a reciprocal of a reciprocal."""
    for seed in range(50):
        x = weight_of(seed=seed).requires_grad_()
        with torch.compiler.set_stance("force_eager"):
            peer = WeightQuant.apply(x)
        upstream = torch.randn_like(peer)
        peer.backward(upstream)
        expected, x.grad = x.grad, None
        y = ops.fake_quantize(x, "absmean int2 narrow -1x-1 float32")
        y.backward(upstream)
        assert torch.equal(y.sign(), peer.sign())
        torch.testing.assert_close(y, peer, rtol=5e-7, atol=0)
        assert torch.equal(x.grad, expected)


def test_the_gradient_passes_past_the_ends_of_the_grid():
    x, inputs = weight_of().requires_grad_(), torch.randn(7, 160)
    upstream = torch.randn(7, 24)
    text = f"absmean {GROUPS}"
    ops.quant_linear(inputs, x, None, None, None, None, None, [], text, "").backward(upstream)
    assert torch.equal(x.grad, upstream.t() @ inputs)


def test_a_row_is_rounded_alike_alone_and_among_many():
    """What shards and parts of rows rely on; more rows than are summed at once."""
    x = weight_of(rows=2048, cols=4100)
    text = "absmean int2 narrow 1x100 float32"
    whole, _ = ops.choose_qparams(x, text, "absmean")
    for row in (0, 1023, 2047):
        assert torch.equal(ops.choose_qparams(x[row : row + 1], text, "absmean")[0], whole[row : row + 1])


@pytest.mark.parametrize("weight", ("dtype: tq2_0", "dtype: int2, group_size: 64", "dtype: int2"))
def test_it_is_found_in_every_forward(weight):
    layer = layer_with(f"{weight}, scale: absmean")
    assert layer.weight_spec.scale == "absmean"
    assert not hasattr(layer, "weight_scale")
    x = torch.randn(3, 256)
    for _ in range(2):
        expected = ops.choose_qparams(layer.weight, layer.weight_spec.quantizer(2, "absmean"), "absmean")[0]
        assert torch.equal(layer.stored_qparams()[0], expected)
        assert torch.equal(layer(x), x @ layer.quantized_weight().t())
        with torch.no_grad():
            layer.weight.mul_(torch.rand_like(layer.weight) + 0.5)


@pytest.mark.parametrize("form", ("tq2_0", "tq1_0"))
def test_a_trained_model_is_written_and_verified(form, tokenizer, tmp_path):
    shape = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "head_dim": 64, "vocab_size": 400}
    made = torchqat.parse_recipe("version: 1\nlayers: [{match: blocks, weight: {dtype: tq2_0, scale: absmean}}]\n")
    model = train(torchqat.prepare(build("Llama", **shape), made), steps=2)
    folder = torchqat.export(model, tmp_path / "out", "gguf", tokenizer, ternary=form)
    checked = torchqat.verify(folder, model)
    assert checked.ok and checked.layers == 14, str(checked)


def test_a_schedule_from_8_bits_finds_ranges_until_it_is_ternary():
    made = recipe(
        "dtype: tq2_0, scale: absmean", "schedule: [{until: 50%, weight: int8}, {until: 100%, weight: int2}]\n"
    )
    model = torchqat.prepare(nn.Sequential(nn.Linear(256, 4, bias=False)), made)
    layer, schedule = model[0], torchqat.Schedule(model, made, 4)
    by_range = ops.choose_qparams(layer.weight, layer.weight_spec.quantizer(8, "minmax"))[0]
    assert layer.weight_bits == 8 and torch.equal(layer.stored_qparams()[0], by_range)
    for _ in range(2):
        schedule.step()
    mean = ops.choose_qparams(layer.weight, layer.weight_spec.quantizer(2, "minmax"), "absmean")[0]
    assert layer.weight_bits == 2 and torch.equal(layer.stored_qparams()[0], mean)


def test_training_by_it_lowers_the_loss():
    torch.manual_seed(0)
    x, target = torch.randn(256, 64), torch.randn(256, 16)
    model = torchqat.prepare(
        nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 16)), recipe("dtype: int2, scale: absmean")
    )
    losses = []
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(60):
        losses.append(nn.functional.mse_loss(model(x), target))
        losses[-1].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.7 * losses[0]


def test_a_copy_and_a_pickled_plan_keep_it():
    spec = QuantSpec(2, granularity="group", group_size=32, scale="absmean", scale_dtype="float16")
    assert copy.deepcopy(spec) == spec and spec.finds_scale
    assert spec.weight_quantizer(2, 4, 64) == f"absmean {GROUPS}"
    assert (spec.finder(2), spec.finder(4)) == ("absmean", "minmax")


@pytest.mark.parametrize(
    "weight", ("dtype: int4", "dtype: int2, grid: full", "dtype: int2, symmetric: false", "dtype: nvfp4")
)
def test_other_levels_are_refused(weight):
    with pytest.raises(
        torchqat.RecipeError, match=matches("recipe.scale-of-other-levels", key="layers[0].weight.scale")
    ):
        recipe(f"{weight}, scale: absmean")


def test_codes_that_are_chosen_with_scales_keep_those():
    with pytest.raises(torchqat.RecipeError, match=matches("recipe.scales-that-stay", key="layers[0].weight.scale")):
        recipe("dtype: tq2_0, scale: absmean", "initialize: {method: gptq}\n")


def test_operators_and_specs_refuse_other_levels():
    for text in (
        "absmean int4 narrow 1x32 float16",
        "absmean int2 full 1x32 float16",
        "absmean fp4_e2m1 1x32 e8m0_even",
    ):
        with pytest.raises(ValueError, match=matches("ops.absmean-levels")):
            ops.fake_quantize(torch.ones(1, 32), text)
    with pytest.raises(ValueError, match=matches("ops.absmean-levels")):
        ops.choose_qparams(torch.ones(1, 32), "minmax int4 narrow 1x32 float16", "absmean")
    with pytest.raises(ValueError, match=matches("ops.absmean-levels")):
        QuantSpec(4, scale="absmean")


def test_an_input_has_no_such_scale():
    with pytest.raises(
        torchqat.RecipeError,
        match=matches(
            "recipe.unknown-word", key="layers[0].input.scale", known="minmax, mse or learned", value="absmean"
        ),
    ):
        torchqat.parse_recipe('version: 1\nlayers: [{match: "*", input: {dtype: int8, scale: absmean}}]\n')
