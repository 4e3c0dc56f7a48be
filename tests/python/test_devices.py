"""Models and tensors on a GPU, tried on machines that have none: what the operators, a training step and an export do there.

Numbers are not looked at: the kernels' are those of ``test_cuda_kernels.py``, and what is copied to the host is made up.
"""

import pytest
import torch
import torchqat
from gpu import CUDA, OTHER, Gpu
from torch import nn
from torchqat import ops
from torchqat._library import LayerPlan, find_format, formats
from torchqat.checkpoints.convert import convert_layer
from torchqat.layers.packed_linear import PackedLinear
from torchqat.layers.prepared import quant_layers

BF16 = torch.bfloat16
Q = torch.ops.qat


@pytest.fixture
def gpu():
    with Gpu() as gpu, torch.autograd.set_multithreading_enabled(False):  # there are no threads of devices
        yield gpu


# -- operators ---------------------------------------------------------------------------------------------------------


def _cases():
    """Each public operator of ``torch.ops.qat`` with arguments on the host, by the operator's name."""
    x, cache = torch.randn(6, 64), torch.randn(2, 3, 17, 16)
    leaf = x.clone().requires_grad_()
    scale, zero = ops.choose_qparams(x, (1, 32), 4, "asymmetric")
    codes = ops.quantize(x, scale, zero, (1, 32), -8, 7)
    layer = (x, torch.randn(8, 64, requires_grad=True), torch.randn(8))
    given = (torch.rand(8, 2) + 0.1, torch.zeros(8, 2, dtype=torch.int8), torch.ones(1, 1), torch.zeros(1, 1).char())
    return {
        "fake_quantize": (leaf, scale, zero, (1, 32), -8, 7),
        "fake_quantize_dynamic": (leaf, (1, 32), 4, "asymmetric", BF16),
        "fake_quantize_learned": (leaf, scale.clone().requires_grad_(), zero.float(), (1, 32), -8, 7, BF16, 0.5),
        "quant_linear": (*layer, *given, [], "fixed int4 narrow 1x32 bfloat16", "fixed int8 narrow -1x-1 float32"),
        "choose_qparams": (x, (1, 32), 4, "full", "mse", BF16, x[0].abs()),
        "choose_outer_scales": (x, "minmax fp4_e2m1 1x16 e4m3*float32@-1x-1"),
        "outer_scales": (scale, "minmax int4 offset 1x32 int6*float16@1x64"),
        "round_qparams": (scale, zero.float(), -8, 7, BF16),
        "quantize": (x, scale, zero, (1, 32), -8, 7),
        "dequantize": (codes, scale, zero, (1, 32), BF16),
        "quantize_with_feedback": (x, x, x.T @ x, scale[:, :1], zero[:, :1], -8, 7),
        "encode": (x, None, None, (1, 32), 4, "asymmetric", BF16),
        "decode": (
            *Q.encode(x, None, None, (1, 32), 4, "asymmetric", BF16),
            (1, 32),
            4,
            "asymmetric",
            64,
            torch.float32,
        ),
        "kl_divergence": (x, x.flip(0), 2.0, x[:, 0] > 0, torch.ones(())),
        "forward_kl": (leaf, x.flip(0), 2.0, x[:, 0] > 0),
        "pack": (codes, 4),
        "unpack": (Q.pack(codes, 4), 4, 64),
        "pack_panels": (codes, 4, 32),
        "unpack_panels": (Q.pack_panels(codes, 4, 32), 4, 32, 6, 64),
        "pack_panel_values": (scale,),
        "unpack_panel_values": (Q.pack_panel_values(scale), 6),
        "fake_quantize_cache": (cache, None, "channel", 4, 4, "asymmetric", 1),
        "quantized_pairs": (x, 3, 17, 4, 2, 1),
    }


# Of no tensors, and the product on packed weights, which refuses a GPU (tests/ops/test_packed_linear.cpp).
ELSEWHERE = {
    "cpu_capability",
    "kept_bytes",
    "most_kept_bytes",
    "release_all_but_the_largest",
    "release_kept_memory",
    "packed_linear",
}


def _names():
    names = {name.split("::")[1].split(".")[0] for name in torch._C._dispatch_get_all_op_names() if name[:5] == "qat::"}
    return {name for name in names if not name.startswith("_")}


def test_every_operator_has_a_case():
    assert _names() == _cases().keys() | ELSEWHERE


def _flat(results):
    return [r for r in (results if isinstance(results, tuple | list) else [results]) if isinstance(r, torch.Tensor)]


@pytest.mark.parametrize("name", _cases())
def test_operators_run_where_their_tensors_are(name, gpu):
    arguments = _cases()[name]
    found = _flat(getattr(Q, name)(*(gpu.tensor(a) if isinstance(a, torch.Tensor) else a for a in arguments)))
    expected = _flat(getattr(Q, name)(*arguments))
    assert all(result.device == CUDA for result in found)
    assert [(r.shape, r.dtype, r.requires_grad) for r in found] == [
        (r.shape, r.dtype, r.requires_grad) for r in expected
    ]


# The bias of quant_linear is added by torch, which looks at its device by itself.
SECOND_TENSORS = [
    (name, place)
    for name, arguments in _cases().items()
    for place in [place for place, argument in enumerate(arguments) if torch.is_tensor(argument)][1:]
    if (name, place) != ("quant_linear", 2)
]


@pytest.mark.parametrize(("name", "place"), SECOND_TENSORS)
def test_operators_refuse_tensors_of_two_devices(name, place):
    """The kernel of a device would read the memory of the host. The checks are the same where tensors have no numbers."""
    arguments = list(_cases()[name])
    arguments[place] = arguments[place].detach().to("meta")
    with pytest.raises(ValueError, match=r"must be on (cpu|meta) like (x|student), but is on (cpu|meta)"):
        getattr(Q, name)(*arguments)


# -- a model -----------------------------------------------------------------------------------------------------------

RECIPES = {
    "minmax": "weight: {dtype: int4, group_size: 32}",
    "mse": "weight: {dtype: int4, group_size: 32, scale: mse}",
    "learned": "weight: {dtype: int4, group_size: 32, scale: learned}",
    "asymmetric": "weight: {dtype: int4, group_size: 32, symmetric: false, scale: learned}",
    "token inputs": "weight: {dtype: int8}, input: {dtype: int8, granularity: token}",
    "calibrated inputs": "weight: {dtype: int8}, input: {dtype: int8, granularity: tensor}",
    "nvfp4": "weight: {dtype: nvfp4}, input: {dtype: mxfp8_e4m3}",
    "searched nvfp4": "weight: {dtype: nvfp4, scale: mse}",
    "outer scales in rows": "weight: {dtype: int4, group_size: 16, scale_dtype: e4m3, outer_scale: {group_size: 32}}",
    "fp8": "weight: {dtype: fp8_e4m3, granularity: tensor}, input: {dtype: fp8_e4m3, granularity: token}",
}


def _net(device=None):
    return nn.Sequential(nn.Linear(64, 96, device=device), nn.ReLU(), nn.Linear(96, 32, device=device))


def _prepared(name, device=None):
    """Ready to be exported: inputs whose scale is fixed have a range."""
    model = torchqat.prepare(_net(device), _recipe(name))
    for _, layer in quant_layers(model):
        if not layer.input_ready:
            layer.set_input_range(-1.0, 1.0)
    return model


def _recipe(name, schedule=False):
    stages = "schedule: [{until: 50%, weight: int8}, {until: 100%, weight: int4}]\n" if schedule else ""
    return torchqat.parse_recipe(f'version: 1\nlayers: [{{match: "*", {RECIPES[name]}}}]\n{stages}', "r.yaml")


def _train(model, recipe, x, steps=3):
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    schedule = torchqat.Schedule(model, recipe, steps, optimizer)
    for _ in range(steps):
        model(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()


def _layout(model):
    return {name: (tensor.shape, tensor.dtype) for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("name", RECIPES)
def test_a_model_is_prepared_and_trained_where_it_is(name, gpu):
    recipe = _recipe(name, schedule=name in ("mse", "learned"))
    models = _net(OTHER), _net()
    for model, x in zip(models, (torch.randn(4, 64, device=OTHER), torch.randn(4, 64)), strict=True):
        torchqat.prepare(model, recipe)
        _train(model, recipe, x)
    assert {tensor.device for tensor in models[0].state_dict().values()} == {OTHER}
    assert _layout(models[0]) == _layout(models[1])


@pytest.mark.parametrize("name", RECIPES)
def test_what_is_converted_lies_on_the_host(name, gpu):
    model = _prepared(name, CUDA)
    twins = torchqat.convert(_prepared(name))
    for weights, twin in zip(torchqat.convert(model), twins, strict=True):
        for part in ("codes", "scale", "zero_point"):
            found, expected = getattr(weights, part), getattr(twin, part)
            assert (found is None) == (expected is None)
            if found is not None:
                assert found.device.type == "cpu"
                assert (found.shape, found.dtype) == (expected.shape, expected.dtype)


@pytest.mark.parametrize("format", [format.name for format in formats()])
def test_every_format_has_its_tensors_from_a_model_on_a_gpu(format, gpu):
    fits, dtype = [], torch.float32 if format == "mlx" else torch.float16  # in which MLX's products are exact
    for name in RECIPES:
        model = _prepared(name, CUDA)
        twin = _prepared(name)
        for (place, layer), (_, on_host) in zip(quant_layers(model), quant_layers(twin), strict=True):
            plan = LayerPlan(place, *reversed(layer.matrix_shape), layer.weight_spec, layer.input_spec, layer.kind)
            if find_format(format).refusal(plan):
                continue
            fits.append(name)
            found = find_format(format).tensors(convert_layer(place, layer, dtype))
            expected = find_format(format).tensors(convert_layer(place, on_host, dtype))
            assert {n: (t.shape, t.dtype) for n, t in found.items()} == {
                n: (t.shape, t.dtype) for n, t in expected.items()
            }
            assert all(tensor.device.type == "cpu" for n, tensor in found.items() if "input" not in n)
    assert fits


@pytest.mark.parametrize("name", ["learned", "asymmetric", "token inputs", "calibrated inputs"])
def test_a_model_on_a_gpu_is_packed_for_the_host(name, gpu):
    model = torchqat.pack(_prepared(name, CUDA))
    packed = [module for module in model if isinstance(module, PackedLinear)]
    assert len(packed) == 2
    assert {tensor.device.type for tensor in model.state_dict().values()} == {"cpu"}
    assert model(torch.randn(3, 64)).shape == (3, 32)


def test_the_gpu_is_one(gpu):
    x = torch.randn(3, 4, device="cuda")
    with pytest.raises(Exception, match="device|non-fake|Fake"):
        x + torch.randn(3, 4)
    with pytest.raises(RuntimeError, match="device"):
        torch.equal(x, torch.randn(3, 4))
    assert torch.equal(x.cpu(), torch.ones(3, 4)) and (x * 2).device == CUDA
