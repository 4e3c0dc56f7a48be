"""``quant_linear``: the same bits as its parts, and nothing saved that its parts would save."""

import copy

import pytest
import torch
import torch.nn.functional as F
from small_net import Net, recipe_for
from torch import nn
from torch.utils.checkpoint import checkpoint
from torchqat import ops

BF16, FP32, FP16 = torch.bfloat16, torch.float32, torch.float16
OUT, IN = 48, 96

# Quantizers of a weight: text, and the block that its scales belong to.
WEIGHTS = {
    "none": ("", None),
    "narrow": ("minmax int4 narrow 1x32 bfloat16", None),
    "full": ("minmax int4 full 1x32 bfloat16", None),
    "signed": ("minmax int3 signed 1x-1 float32", None),
    "asymmetric": ("minmax int4 asymmetric 1x48 bfloat16", None),
    "square": ("minmax int8 asymmetric 16x16 bfloat16", None),
    "fixed": ("fixed int4 full 1x32 bfloat16", (1, 32)),
    "fixed zero": ("fixed int4 asymmetric 1x32 bfloat16", (1, 32)),
    "learned": ("learned int4 full 1x32 bfloat16 0.125", (1, 32)),
    "learned zero": ("learned int3 asymmetric 1x-1 float32 0.25", (1, -1)),
}
INPUTS = {
    "none": "",
    "token": "minmax int8 narrow 1x-1 float32",
    "token asymmetric": "minmax int8 asymmetric 1x-1 float32",
    "fixed": "fixed int8 full -1x-1 float32",
    "learned": "learned int8 full -1x-1 float32 0.1",
}


def parameters_of(text, x, block):
    """Scale and zero point for a quantizer's text, chosen a little too small, so that something is clipped."""
    if not text or text.startswith("minmax"):
        return None, None
    mode, width, grid, _, dtype, *_ = text.split()
    scale, zero = ops.choose_qparams(x.detach(), block, int(width[3:]), grid, "minmax", getattr(torch, dtype))
    scale, _ = ops.round_qparams(scale * 0.7, None, -8, 7, getattr(torch, dtype))
    if mode == "fixed":
        return scale, zero if grid == "asymmetric" else None
    return scale.requires_grad_(), zero.float().add(0.3).requires_grad_() if grid == "asymmetric" else None


def apart(text, x, scale, zero):
    """What the operators give one by one."""
    if not text:
        return x
    mode, width, grid, block, dtype, *factor = text.split()
    bits, dtype = int(width[3:]), getattr(torch, dtype)
    rows, cols = block.rsplit("x", 1) if not block.startswith("-1x-1") else ("-1", "-1")
    block = (int(rows), int(cols))
    if mode == "minmax":
        return ops.fake_quantize_dynamic(x, block, bits, grid, dtype)[0]
    ends = (1 - 2 ** (bits - 1) if grid == "narrow" else -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    if mode == "fixed":
        return ops.fake_quantize(x, scale, zero, block, *ends)
    return ops.fake_quantize_learned(x, scale, zero, block, *ends, dtype, float(factor[0]))


def keep(policy, text, weight, scale, zero, dtype):
    from torchqat._library import WeightCache

    return WeightCache(policy).get(text, weight, scale, zero, dtype)


class Case:
    def __init__(self, weight, input, dtype, bias, shape, device):
        self.weight_text, block = WEIGHTS[weight]
        self.input_text = INPUTS[input]
        self.x = torch.randn(*shape, IN, device=device).to(dtype).requires_grad_()
        self.weight = torch.randn(OUT, IN, device=device).to(dtype).requires_grad_()
        self.bias = torch.randn(OUT, device=device).to(dtype).requires_grad_() if bias else None
        self.weight_parameters = parameters_of(self.weight_text, self.weight, block)
        self.input_parameters = parameters_of(self.input_text, self.x, (-1, -1))
        self.grad = torch.randn(*shape, OUT, device=device).to(dtype)

    def leaves(self):
        leaves = [self.x, self.weight, self.bias, *self.weight_parameters, *self.input_parameters]
        return [leaf for leaf in leaves if leaf is not None and leaf.requires_grad]

    def together(self, policy="none"):
        kept = keep(policy, self.weight_text, self.weight, *self.weight_parameters, self.x.dtype)
        y = ops.quant_linear(
            self.x, self.weight, self.bias, *self.weight_parameters, *self.input_parameters, kept,
            self.weight_text, self.input_text,
        )  # fmt: skip
        return [y, *torch.autograd.grad(y, self.leaves(), self.grad)]

    def parts(self):
        w = apart(self.weight_text, self.weight, *self.weight_parameters)
        x = apart(self.input_text, self.x, *self.input_parameters)
        y = F.linear(x, w, self.bias)
        return [y, *torch.autograd.grad(y, self.leaves(), self.grad)]


def assert_same(results, expected):
    for result, reference in zip(results, expected, strict=True):
        assert result.dtype == reference.dtype
        assert torch.equal(result, reference)


@pytest.mark.parametrize("policy", ["none", "codes", "weights"])
@pytest.mark.parametrize("input", INPUTS)
@pytest.mark.parametrize("weight", WEIGHTS)
def test_equals_its_parts_bit_for_bit(weight, input, policy, device):
    for dtype, bias, shape in [(FP32, True, (7,)), (BF16, False, (2, 5)), (FP16, True, (2, 3, 4))]:
        case = Case(weight, input, dtype, bias, shape, device)
        assert_same(case.together(policy), case.parts())


def test_only_what_is_needed_is_computed(device):
    case = Case("learned zero", "learned", FP32, True, (5,), device)
    expected = dict(zip(map(id, case.leaves()), case.parts()[1:], strict=True))
    for leaf in case.leaves():
        y = ops.quant_linear(
            case.x, case.weight, case.bias, *case.weight_parameters, *case.input_parameters, [],
            case.weight_text, case.input_text,
        )  # fmt: skip
        (gradient,) = torch.autograd.grad(y, [leaf], case.grad)
        assert torch.equal(gradient, expected[id(leaf)])


@pytest.mark.parametrize("policy", ["none", "codes", "weights"])
@pytest.mark.parametrize("dtype", [BF16, FP16])
def test_float32_weights_under_half_inputs_are_rounded_once(dtype, policy, device):
    weight = torch.randn(OUT, IN, device=device, requires_grad=True)
    x = torch.randn(5, IN, device=device).to(dtype).requires_grad_()
    text = WEIGHTS["full"][0]
    kept = keep(policy, text, weight, None, None, dtype)
    y = ops.quant_linear(x, weight, weight_quantizer=text, kept=kept)
    rounded = ops.fake_quantize_dynamic(weight.detach(), (1, 32), 4, "full", BF16)[0].to(dtype)
    assert y.dtype == dtype and torch.equal(y, F.linear(x, rounded))
    y.sum().backward()
    assert weight.grad.dtype == FP32 and x.grad.dtype == dtype


def test_autocast_computes_in_its_dtype_on_the_master_weight(device):
    weight = torch.randn(OUT, IN, device=device, requires_grad=True)
    x = torch.randn(5, IN, device=device)
    text = WEIGHTS["narrow"][0]
    with torch.autocast(device.type, dtype=BF16):
        y = ops.quant_linear(x, weight, weight_quantizer=text)
    rounded = ops.fake_quantize_dynamic(weight.detach(), (1, 32), 4, "narrow", BF16)[0].to(BF16)
    assert torch.equal(y, F.linear(x.to(BF16), rounded))
    y.float().sum().backward()
    assert weight.grad.dtype == FP32


def saved_bytes(run):
    """Bytes in distinct storages that autograd saves while ``run`` builds its graph."""
    seen = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = run()
    return sum(seen.values()), result


@pytest.mark.parametrize("weight", ["narrow", "full", "signed", "asymmetric", "learned", "learned zero"])
@pytest.mark.parametrize("input", ["none", "token", "token asymmetric"])
def test_saves_what_a_plain_layer_saves_and_scales(weight, input, device):
    case = Case(weight, input, BF16, True, (64,), device)
    x, w = case.x, case.weight
    plain, _ = saved_bytes(lambda: F.linear(x, w, case.bias))
    given = sum(p.numel() * 4 for p in case.weight_parameters if p is not None)
    bias = case.bias.numel() * 2
    ours, _ = saved_bytes(
        lambda: ops.quant_linear(
            x, w, case.bias, *case.weight_parameters, weight_quantizer=case.weight_text, input_quantizer=case.input_text
        )
    )
    assert ours <= plain + given + bias


@pytest.mark.parametrize("input", ["none", "{dtype: int8, granularity: token}"])
def test_all_layers_share_one_buffer(input):
    """Peak: one layer's rounded weight and, where inputs are quantized, one layer's rounded input."""
    import torchqat

    sizes = [512, 768, 768, 1024]
    layers = [nn.Linear(a, b, bias=False, dtype=BF16) for a, b in zip(sizes, sizes[1:], strict=False)]
    net = torchqat.prepare(
        nn.Sequential(*layers), recipe_for("{dtype: int4, group_size: 32}", input * (input != "none"))
    )
    ops.release_kept_memory()
    before = ops.kept_bytes()
    x = torch.randn(512, sizes[0], dtype=BF16, requires_grad=True)
    net(x).float().square().mean().backward()
    largest = max(layer.weight.numel() * 2 for layer in layers)
    activations = 0 if input == "none" else 512 * max(sizes) * 2
    page = 2 << 20
    rounded = sum((size + page - 1) // page * page for size in (largest, activations) if size)
    assert ops.most_kept_bytes() - before <= rounded


def test_opcheck(device):
    case = Case("learned zero", "token asymmetric", FP32, True, (5,), device)
    args = (case.x, case.weight, case.bias, *case.weight_parameters, None, None, [], case.weight_text, case.input_text)
    torch.library.opcheck(torch.ops.qat.quant_linear.default, args)
    codes = keep("codes", WEIGHTS["full"][0], case.weight.detach(), None, None, FP32)
    args = (case.x, case.weight, None, None, None, None, None, codes, WEIGHTS["full"][0], "")
    torch.library.opcheck(torch.ops.qat.quant_linear.default, args)
    x = torch.randn(4, 64, device=device)
    torch.library.opcheck(torch.ops.qat.encode.default, (x, "minmax int4 full 1x32 bfloat16"))
    encoded = ops.encode(x, None, None, (1, 32), 4, "full", BF16)
    torch.library.opcheck(
        torch.ops.qat.decode.default, (encoded[0], "fixed int4 full 1x32 bfloat16", *encoded[1:], 64, BF16)
    )


@pytest.mark.parametrize("policy", ["none", "codes"])
def test_layers_compile_without_a_break(policy, device):
    import torchqat

    torch._dynamo.reset()
    recipe = recipe_for(
        "{dtype: int4, group_size: 32, scale: learned}",
        "{dtype: int8, granularity: token}",
        f"train: {{weight_cache: {policy}}}\n",
    )
    eager = torchqat.prepare(Net(), recipe).to(device)
    compiled = copy.deepcopy(eager)
    x = torch.randn(5, 64, device=device)
    expected = eager(x)
    result = torch.compile(compiled, fullgraph=True)(x)
    torch.testing.assert_close(result, expected, rtol=1e-6, atol=1e-6)
    expected.square().sum().backward()
    result.square().sum().backward()
    for a, b in zip(compiled.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-5, atol=1e-5)


def test_checkpointing_gives_the_same_gradients(device):
    case = Case("asymmetric", "token", FP32, True, (5,), device)

    def layer(x):
        return ops.quant_linear(
            x, case.weight, case.bias, weight_quantizer=case.weight_text, input_quantizer=case.input_text
        )

    y = checkpoint(layer, case.x, use_reentrant=False)
    assert_same([y, *torch.autograd.grad(y, case.leaves(), case.grad)], case.parts())


def test_a_weight_changed_before_its_backward_is_noticed(device):
    case = Case("narrow", "none", FP32, False, (5,), device)
    y = ops.quant_linear(case.x, case.weight, weight_quantizer=case.weight_text)
    with torch.no_grad():
        case.weight.mul_(2.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("policy", ("none", "codes", "weights"))
@pytest.mark.parametrize(
    ("weight", "input"), [("full", "token asymmetric"), ("fixed zero", "fixed"), ("narrow", "none")]
)
def test_gradient_penalty(weight, input, policy, device):
    """Beside the operators one by one, where the squared gradient of the loss joins it."""
    case = Case(weight, input, FP32, True, (5,), device)
    kept = keep(policy, case.weight_text, case.weight, *case.weight_parameters, FP32)

    def penalised(y):
        loss = torch.tanh(y).pow(2).sum()
        slopes = torch.autograd.grad(loss, (case.x, case.weight), create_graph=True)
        return torch.autograd.grad(loss + sum(slope.square().sum() for slope in slopes), case.leaves())

    together = penalised(ops.quant_linear(
        case.x, case.weight, case.bias, *case.weight_parameters, *case.input_parameters, kept,
        case.weight_text, case.input_text,
    ))  # fmt: skip
    apart_ = penalised(F.linear(
        apart(case.input_text, case.x, *case.input_parameters),
        apart(case.weight_text, case.weight, *case.weight_parameters),
        case.bias,
    ))  # fmt: skip
    for one, other in zip(together, apart_, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
