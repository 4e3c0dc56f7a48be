"""``QuantConv2d``: the weight as a matrix, the input by one scale; against torch's own quantizers and a slow convolution."""

import copy

import pytest
import torch
import torch.nn.functional as F
import torchqat
from sentences import matches, sentence
from torch import nn
from torchqat.evaluation.mixed_widths import mixed_widths
from torchqat.evaluation.sensitivity import sensitivity
from torchqat.layers.conv import QuantConv2d
from torchqat.layers.prepared import quant_layers

WEIGHT = "{dtype: int4, granularity: channel, scale: SCALE}"


def recipe(weight=WEIGHT, input="", rest="", scale="minmax"):
    input = f", input: {input}" if input else ""
    rule = f'  - {{match: "type:Conv2d", weight: {weight.replace("SCALE", scale)}{input}}}\n'
    return torchqat.parse_recipe(f"version: 1\nlayers:\n{rule}{rest}", "recipe")


class Network(nn.Module):
    def __init__(self, **options):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(4, 6, 3, **{"padding": 1, **options})
        self.norm, self.head = nn.BatchNorm2d(6), nn.Linear(6, 10)

    def forward(self, x):
        return self.head(torch.relu(self.norm(self.conv(x))).mean((2, 3)))


def batch(seed=1, rows=8):
    return torch.randn(rows, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("scale", ["minmax", "mse", "learned"])
def test_the_weight_is_rounded_by_output_channel(scale):
    model = torchqat.prepare(Network(), recipe(scale=scale))
    conv = model.conv
    assert isinstance(conv, QuantConv2d) and isinstance(conv, nn.Conv2d)
    step, zero = conv.stored_qparams()
    assert step.shape == (6, 1)
    if scale == "minmax":
        absmax = conv.weight.detach().flatten(1).abs().amax(1, keepdim=True)
        assert torch.equal(step, (absmax / 7).bfloat16().float())
    weight = torch.fake_quantize_per_channel_affine(conv.weight.detach(), step[:, 0], zero[:, 0].int(), 0, -7, 7)
    x = batch()
    torch.testing.assert_close(conv(x), F.conv2d(x, weight, conv.bias, padding=1), rtol=0, atol=0)


OPTIONS = [
    {"stride": 2, "dilation": 2},
    {"padding": "same"},
    {"padding": (2, 1), "padding_mode": "reflect"},
    {"bias": False, "padding": 0},
    {"groups": 2},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_kind_of_convolution(options):
    model = Network(**options)
    prepared = torchqat.prepare(copy.deepcopy(model), recipe())
    x = batch()
    with torch.no_grad():
        model.conv.weight.copy_(prepared.conv.quantized_weight().view(model.conv.weight.shape))
    assert torch.equal(prepared.conv(x), model.conv(x))
    assert (
        prepared.state_dict().keys() - {"conv.widths", "conv.witness", "conv.quantizer_text", "qat_step"}
        == model.state_dict().keys()
    )


@pytest.mark.parametrize("options", [o for o in OPTIONS if "groups" not in o], ids=str)
def test_patches_are_what_the_rows_are_multiplied_with(options):
    conv = torchqat.prepare(Network(**options), recipe()).conv
    x = batch(rows=2)
    expected = conv._conv_forward(x, conv.weight, None).flatten(2)
    found = (conv.input_rows(x) @ conv.master.T).transpose(1, 2)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_gradients_are_straight_through():
    model = torchqat.prepare(Network(), recipe())
    x = batch().requires_grad_(True)
    model.conv(x).square().sum().backward()
    weight = model.conv.quantized_weight().detach().view_as(model.conv.weight).requires_grad_(True)
    y = x.detach().clone().requires_grad_(True)
    F.conv2d(y, weight, model.conv.bias, padding=1).square().sum().backward()
    torch.testing.assert_close(model.conv.weight.grad, weight.grad)
    torch.testing.assert_close(x.grad, y.grad)


def test_a_calibrated_input():
    model = torchqat.prepare(Network(), recipe(input="{dtype: int8, granularity: tensor}"))
    found = torchqat.calibrate(model, [batch()])
    low, high = found.ranges["conv"]
    assert (low, high) == (batch().min().item(), batch().max().item())
    x = torch.fake_quantize_per_tensor_affine(batch(), model.conv.input_scale.item(), 0, -127, 127)
    assert torch.equal(model.conv.quantized_input(batch()), x)


def test_gptq_works_on_patches():
    model = Network()
    x = [batch(seed).cumsum(-1).cumsum(-2) / 4 for seed in range(4)]  # near pixels are alike, as in images
    wanted = [model.conv(b) for b in x]

    def error(method):
        prepared = torchqat.prepare(
            copy.deepcopy(model), recipe(scale="mse", rest=f"initialize: {{method: {method}}}\n")
        )
        found = torchqat.calibrate(prepared.eval(), x)
        assert not found.warnings
        return sum((prepared.conv(b) - w).square().sum().item() for b, w in zip(x, wanted, strict=True))

    assert error("gptq") < 0.5 * error("mse")


class Branches(nn.Module):
    """Convolutions that see other parts of one input, as those of dilated and of one-sided branches do."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.near, self.far = nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(4, 6, 3, padding=3, dilation=3)
        self.wide, self.point = nn.Conv2d(4, 6, (1, 5), padding=(0, 2)), nn.Conv2d(4, 6, 1)

    def forward(self, x):
        return self.near(x) + self.far(x) + self.wide(x) + self.point(x)


def test_branches_of_one_input_are_each_calibrated_on_the_patches_they_see():
    gptq = "initialize: {method: gptq, correction: 0}"
    batches = [batch(seed) for seed in range(4)]
    model = torchqat.prepare(Branches(), recipe(scale="mse", rest=gptq))
    torchqat.calibrate(model, batches)
    for name in ("near", "far", "wide", "point"):
        alone = torchqat.prepare(nn.Sequential(getattr(Branches(), name)), recipe(scale="mse", rest=gptq))
        torchqat.calibrate(alone, batches)
        assert torch.equal(getattr(model, name).quantized_weight(), alone[0].quantized_weight()), name


def test_a_grouped_convolution_has_no_patches_that_all_rows_share():
    model = torchqat.prepare(Network(groups=2), recipe(scale="mse", rest="initialize: {method: gptq}\n"))
    before = model.conv.weight.clone()
    assert torchqat.calibrate(model, [batch()]).warnings == [sentence("ptq.rowless", layer="conv", more="")]
    scale, _ = torchqat.ops.choose_qparams(before.detach().flatten(1), (1, -1), 4, "narrow", "mse", torch.bfloat16)
    assert torch.equal(model.conv.weight, before) and torch.equal(model.conv.weight_scale, scale)


def test_its_schedule_and_state():
    text = recipe(scale="learned", rest="schedule: [{until: 50%, weight: int8}, {until: 100%, weight: int4}]\n")
    model = torchqat.prepare(Network(), text)
    schedule = torchqat.Schedule(model, text, 2)
    assert model.conv.weight_bits == 8
    schedule.step()
    assert model.conv.weight_bits == 4
    other = torchqat.prepare(Network(), text)
    other.load_state_dict(model.state_dict(), strict=False)
    assert torch.equal(other.conv.quantized_weight(), model.conv.quantized_weight())


@pytest.mark.parametrize("input", ["", "{dtype: int8, granularity: tensor}"])
@pytest.mark.parametrize("weight", [WEIGHT, "{dtype: int4, granularity: tensor}", "{dtype: int8, symmetric: false}"])
def test_onnxruntime_computes_what_training_computed(weight, input, tmp_path):
    model = torchqat.prepare(Network(), recipe(weight, input)).eval()
    torchqat.calibrate(model, [batch()])
    folder = torchqat.export(model, tmp_path / "out", "onnx", example=batch())
    checked = torchqat.verify(folder, model, engine="onnxruntime", example=batch())
    assert checked.ok and checked.layers == 1, str(checked)


def test_a_plain_checkpoint_has_the_kernel_as_a_matrix(tmp_path):
    model = torchqat.prepare(Network(), recipe())
    folder = torchqat.export(model, tmp_path / "out", "safetensors")
    assert torchqat.verify(folder, model).ok
    (layer,) = torchqat._library.load_checkpoint(str(folder)).layers
    assert torch.equal(layer.dequantize(torch.float32).view(6, 4, 3, 3), model.conv.quantized_weight().view(6, 4, 3, 3))


def test_channels_last_weights_are_written_in_place():
    model = torchqat.prepare(Network().to(memory_format=torch.channels_last), recipe(scale="mse"))
    matrix = torch.arange(6 * 36, dtype=torch.float32).view(6, 36)
    model.conv.set_master(matrix)
    assert torch.equal(model.conv.weight.detach().contiguous().view(6, 36), matrix)
    assert torch.equal(model.conv.master, matrix)


def test_what_a_convolution_cannot_have_is_said(tmp_path):
    refusal = matches("recipe.input-of-convolution", layer="conv", granularity="token")
    with pytest.raises(torchqat.RecipeError, match=refusal):
        torchqat.prepare(Network(), recipe(input="{dtype: int8}"))
    model = torchqat.prepare(Network(), recipe())
    why = sentence("export.because-another-type", type="Conv2d", types="Linear and Experts")
    with pytest.raises(torchqat.UserError, match=matches("export.cannot-hold", why=why, others="onnx and safetensors")):
        torchqat.export(model, tmp_path / "out", "compressed-tensors")
    grouped = torchqat.prepare(Network(), recipe("{dtype: int4, group_size: 12}"))
    with pytest.raises(torchqat.UserError, match=matches("export.because-groups-of-a-kernel")):
        torchqat.export(grouped, tmp_path / "out", "onnx", example=batch())


def test_sensitivity_needs_no_blocks():
    model = Network().eval()
    rule = "  - {match: head, weight: {dtype: int4, granularity: channel, scale: mse}}\n"
    plan = torchqat.make_plan(model, recipe(scale="mse", rest=rule))
    batches = [(batch(seed), torch.zeros(8, dtype=torch.int64)) for seed in range(2)]
    found = sensitivity(model, plan, batches, (2, 4, 8), "classifier")
    assert [layer.name for layer in found] == ["conv", "head"] and found[0].shape == (6, 36)
    for layer in found:
        assert layer.kl[2] > layer.kl[4] > layer.kl[8] >= 0
    assert set(mixed_widths(found, 6.0)) == {"conv", "head"}
    assert not quant_layers(model)
