"""``calibrate`` on whole models whose weights have scales on two levels: codes and scales together, outer ones before."""

import copy

import architectures
import pytest
import torch
import torchqat
from architectures import recipe
from sentences import matches
from test_presets import ATTENTION, MLP, layer_of, train
from test_ptq import calibrated, error, float_logits, forward, tokens
from torchqat import ops
from torchqat._library import gptq
from torchqat.layers.prepared import quant_layers

SHAPE = {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 1, "head_dim": 64}
METHODS = ("gptq", "awq", "awq+gptq", "hadamard+gptq")


@pytest.fixture(scope="module")
def llama():
    model = architectures.build("Llama", **SHAPE)
    with torch.no_grad():  # so that what engines fuse needs different outer scales
        layer_of(model, "self_attn.k_proj").weight.mul_(20)
    return model


def weight_of(name, scale="mse", rest=""):
    return f"{{dtype: {name}, scale: {scale}{rest}}}"


def on_their_lattice(prepared):
    """Each weight is codes of its scales, which are codes of outer scales that fused layers share."""
    for _, layer in quant_layers(prepared):
        weights = layer.convert("a", torch.float32)
        assert torch.equal(weights.dequantize(torch.float32), layer.quantized_weight())
    for group in (ATTENTION, MLP):
        outer = [layer_of(prepared, leaf).convert("a", torch.float32).outer_scale for leaf in group]
        if outer[0] is not None and outer[0].numel() == 1:
            assert len({one.item() for one in outer}) == 1


@pytest.mark.parametrize("scale", ["mse", "learned"])
@pytest.mark.parametrize("name", ["nvfp4", "mxfp4", "q4_k", "q6_k"])
def test_methods_beat_rounding_to_nearest(llama, name, scale):
    plain, _ = calibrated(llama, "{method: rtn}", weight=weight_of(name))
    worst = error(llama, plain)
    for method in METHODS:
        prepared, found = calibrated(llama, f"{{method: {method}}}", weight=weight_of(name, scale))
        assert all(loss > 0 for loss in found.losses.values())
        on_their_lattice(prepared)
        assert error(llama, prepared) < (0.9 if method == "gptq" else 1.0) * worst, method


@pytest.mark.parametrize("name", ["nvfp4", "q4_k", "q5_k", "q6_k"])
def test_codes_stay_those_that_gptq_chose(llama, name):
    """Training begins on them, and a checkpoint after no step has them."""
    prepared, _ = calibrated(llama, "{method: gptq}", weight=weight_of(name))
    for _, layer in quant_layers(prepared):
        outer = layer.stored_outer_scales()[0]
        settled = layer.settle_outer_scales()[0]
        assert torch.equal(outer, settled)
        text = layer.weight_spec.quantizer(layer.weight_bits, "fixed")
        codes = ops.quantize(layer.quantized_weight(), text, *layer.stored_qparams())
        assert torch.equal(codes.float(), layer.codes().float())
        moved = (layer.weight != layer.quantized_weight()).float().mean()
        assert moved > 0.5


@pytest.mark.parametrize("name", ["nvfp4", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k"])
def test_training_begins_on_the_weights_that_gptq_left(llama, name, monkeypatch):
    """Learned scales have outer ones by what they are, which rounds them once more: GPTQ ends on scales that this leaves."""
    left = {}

    def remember(master, *args, **kwargs):
        left[master.data_ptr()] = found = gptq(master, *args, **kwargs)
        return found

    monkeypatch.setattr("torchqat.ptq.rounding.gptq", remember)
    prepared, found = calibrated(llama, "{method: gptq}", weight=weight_of(name, "learned"))
    for layer_name, layer in quant_layers(prepared):
        solved = left[layer.master.data_ptr()]
        assert torch.equal(layer.codes(), solved.codes), layer_name
        assert torch.equal(layer.stored_qparams()[0], solved.scale), layer_name
        assert torch.equal(layer.quantized_weight(), solved.weight), layer_name
        assert found.losses[layer_name] > 0


def test_outer_scales_are_those_of_the_weights_before_any_was_rounded(llama):
    """GPTQ moves the weights of q while k and v are still to come: they come under the outer scale of all three."""
    prepared, _ = calibrated(llama, "{method: gptq, correction: 0}", weight=weight_of("nvfp4"))
    text = layer_of(prepared, ATTENTION[0]).weight_spec.quantizer(4, "minmax")
    for group in (ATTENTION, MLP):
        needed = max(ops.choose_outer_scales(layer_of(llama, leaf).weight, text)[0].item() for leaf in group)
        for leaf in group:
            assert layer_of(prepared, leaf).weight_outer_scale.item() == needed


@pytest.mark.parametrize("scale", ["mse", "learned"])
@pytest.mark.parametrize("name", ["nvfp4", "q4_k"])
def test_blocks_are_trained(llama, name, scale):
    plain, _ = calibrated(llama, "{method: rtn}", weight=weight_of(name))
    for rounding in ("weights", "signed"):
        text = f"{{method: mse, block_training: {{steps: 40, rounding: {rounding}}}}}"
        prepared, _ = calibrated(llama, text, weight=weight_of(name, scale))
        on_their_lattice(prepared)
        assert error(llama, prepared) < error(llama, plain)


def test_a_schedule_returns_to_the_lattice_and_its_outer_scales(llama):
    prepared, _ = calibrated(llama, "{method: gptq}", weight=weight_of("nvfp4"))
    before = {name: layer.quantized_weight().clone() for name, layer in quant_layers(prepared)}
    for _, layer in quant_layers(prepared):
        layer.set_bits(8, 0)
    assert any(not torch.equal(layer.quantized_weight(), before[name]) for name, layer in quant_layers(prepared))
    for _, layer in quant_layers(prepared):
        layer.set_bits(4, 0)
    for name, layer in quant_layers(prepared):
        assert torch.equal(layer.quantized_weight(), before[name])
    on_their_lattice(prepared)


def test_what_gptq_chose_is_written(llama, tmp_path):
    prepared, _ = calibrated(llama, "{method: gptq}", weight=weight_of("nvfp4", "learned"))
    model = train(prepared)
    folder = torchqat.export(model, tmp_path / "out", "compressed-tensors")
    assert torchqat.verify(folder, model).ok


# -- four-over-six -----------------------------------------------------------------------------------------------------

RULE = ", scale_dtype: e4m3_four_over_six"


@pytest.mark.parametrize("scale", ["minmax", "mse", "learned"])
def test_four_over_six_is_trained_and_written(llama, scale, tmp_path):
    made = recipe("{method: mse}", weight_of("nvfp4", scale, RULE))
    model = train(torchqat.prepare(copy.deepcopy(llama), made))
    on_their_lattice(model)
    for format in ("compressed-tensors", "modelopt", "safetensors"):
        folder = torchqat.export(model, tmp_path / format, format)
        checked = torchqat.verify(folder, model)
        assert checked.ok, str(checked)


def test_four_over_six_beats_nvfp4_by_range(llama):
    plain, _ = calibrated(llama, "{method: rtn}", weight=weight_of("nvfp4", "minmax"))
    better, _ = calibrated(llama, "{method: rtn}", weight=weight_of("nvfp4", "minmax", RULE))

    def far(prepared):
        return sum((layer.quantized_weight() - layer.weight).square().sum() for _, layer in quant_layers(prepared))

    assert far(better) < 0.95 * far(plain)


# -- rotation in blocks ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [16, 32])
def test_a_rotation_in_blocks_leaves_the_float_model_as_it_was(llama, size):
    prepared, _ = calibrated(llama, f"{{method: hadamard+rtn, rotation_size: {size}}}", weight=weight_of("mxfp4"))
    expected = forward(llama, tokens()[0]).logits.detach()
    torch.testing.assert_close(float_logits(prepared), expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())
    # What is rotated in blocks mixes features of a block alone.
    ours, theirs = prepared.model.embed_tokens.weight.double(), llama.model.embed_tokens.weight.double()
    turned = torch.linalg.lstsq(theirs[:, :size], ours[:, :size])
    assert turned.solution.shape == (size, size)
    torch.testing.assert_close(theirs[:, :size] @ turned.solution, ours[:, :size], rtol=0, atol=1e-4)
    torch.testing.assert_close(turned.solution.abs(), torch.full((size, size), size**-0.5).double(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name, size", [("mxfp4", 32), ("nvfp4", 16)])
@pytest.mark.parametrize("method", ["rtn", "gptq"])
def test_a_rotation_in_blocks_goes_with_block_floats(llama, name, size, method):
    text = f"{{method: hadamard+{method}, rotation_size: {size}}}"
    prepared, found = calibrated(llama, text, weight=weight_of(name), input=f"{{dtype: {name}}}")
    on_their_lattice(prepared)
    if method == "gptq":
        assert all(loss > 0 for loss in found.losses.values())


def test_a_rotation_in_blocks_tames_an_outlier_for_mxfp4(llama):
    """One large feature of a group takes its scale; its neighbours are rounded to zero unless they are rotated with it."""
    specs = {"weight": weight_of("mxfp4"), "input": "{dtype: mxfp4}"}
    plain, _ = calibrated(llama, "{method: rtn}", **specs)
    rotated, _ = calibrated(llama, "{method: hadamard+rtn, rotation_size: 32}", **specs)
    assert error(llama, rotated) < 0.9 * error(llama, plain)


def test_a_rotation_divides_the_residual_stream(llama):
    prepared = torchqat.prepare(copy.deepcopy(llama), recipe("{method: hadamard+rtn, rotation_size: 96}"))
    with pytest.raises(torchqat.UserError, match=matches("ptq.rotation-divides", hidden=256, size=96)):
        torchqat.calibrate(prepared, tokens(), forward)
