"""The operators as PyTorch's systems see them: registration, compile, autocast, checkpointing, accumulation."""

import pytest
import torch
from sentences import matches
from torch.utils.checkpoint import checkpoint
from torchqat import ops

BF16 = torch.bfloat16


GROUPS = "int4 asymmetric 1x32 bfloat16"


def _cases(device):
    x = torch.randn(6, 64, device=device)
    scale, zero_point = ops.choose_qparams(x, "minmax int4 asymmetric 1x32 float32")
    learned = scale.clone().requires_grad_()
    learned_zero = zero_point.float().requires_grad_()
    sixteens = torch.rand(6, 4, device=device) + 0.1
    codes = ops.quantize(x, f"fixed {GROUPS}", scale, zero_point)
    leaf = x.clone().requires_grad_()
    cache = torch.randn(2, 3, 17, 16, device=device, requires_grad=True)
    one, heads = torch.full((1,), 0.5, device=device), torch.rand(3, device=device) + 0.1
    q = torch.ops.qat
    return {
        "fixed": (q.fake_quantize, (leaf, f"fixed {GROUPS}", scale, zero_point)),
        "fixed no zero": (q.fake_quantize, (leaf, "fixed int4 full 1x32 float32", scale)),
        "fixed backward": (q._fake_quantize_backward, (x, x, f"fixed {GROUPS}", scale, zero_point, None)),
        "minmax narrow": (q.fake_quantize, (leaf, "minmax int4 narrow 1x32 bfloat16")),
        "minmax asymmetric": (q.fake_quantize, (leaf, "minmax int8 asymmetric -1x-1 float32")),
        "minmax offset": (q.fake_quantize, (leaf, "minmax int4 offset 1x32 float16")),
        "learned": (q.fake_quantize, (leaf, "learned int4 full 1x32 bfloat16 0.5", learned)),
        "learned zero": (q.fake_quantize, (leaf, f"learned {GROUPS} 0.5", learned, learned_zero)),
        "learned backward": (
            q._fake_quantize_backward,
            (x, x, f"learned {GROUPS} 0.5", scale, zero_point.float(), None),
        ),
        "float8": (q.fake_quantize, (leaf, "fixed fp8_e4m3 1x32 float32", scale)),
        "float8 minmax": (q.fake_quantize, (leaf, "minmax fp8_e5m2 1x-1 bfloat16")),
        "iq4_nl": (q.fake_quantize, (leaf, "minmax iq4_nl 1x32 float16")),
        "absmean": (q.fake_quantize, (leaf, "absmean int2 narrow 1x32 float16")),
        "mxfp4": (q.fake_quantize, (leaf, "minmax fp4_e2m1 1x32 e8m0_floor")),
        "nvfp4": (q.fake_quantize, (leaf, "minmax fp4_e2m1 1x16 e4m3*float32@-1x-1", None, None, one.view(1, 1))),
        "nvfp4 learned": (
            q.fake_quantize,
            (leaf, "learned fp4_e2m1 1x16 e4m3*float32@-1x-1", sixteens.requires_grad_()),
        ),
        "choose_qparams": (q.choose_qparams, (x, "minmax int4 full 1x32 bfloat16", "mse")),
        "choose_qparams importance": (q.choose_qparams, (x, "minmax int4 full 1x32 bfloat16", "mse", x[0].abs())),
        "choose_qparams absmean": (q.choose_qparams, (x, "minmax int2 narrow 1x32 float16", "absmean")),
        "choose_qparams outer": (q.choose_qparams, (x, "minmax fp4_e2m1 1x16 e4m3*float32@-1x-1")),
        "feedback": (
            q.quantize_with_feedback,
            (x, "fixed int4 full 1x-1 float32", x, x.T @ x, scale[:, :1], zero_point[:, :1]),
        ),
        "kl_divergence": (q.kl_divergence, (x, x.flip(0), 2.0, x[:, 0] > 0, x.new_ones(()))),
        "kl_divergence alone": (q.kl_divergence, (x, x.flip(0))),
        "forward_kl": (q.forward_kl, (x.clone().requires_grad_(), x.flip(0), 2.0, x[:, 0] > 0)),
        "round_qparams": (q.round_qparams, (scale, f"learned {GROUPS}", zero_point.float())),
        "quantize": (q.quantize, (x, f"fixed {GROUPS}", scale, zero_point)),
        "dequantize": (q.dequantize, (codes, scale, zero_point, (1, 32), BF16)),
        "dequantize learned": (q.dequantize, (codes, scale.clone().requires_grad_(), zero_point, (1, 32), BF16)),
        "dequantize backward": (q._dequantize_backward, (x, codes, scale, zero_point, (1, 32))),
        **{
            f"cache {granularity} {grid}": (q.fake_quantize_cache, (cache, given, granularity, 8, 4, grid, first))
            for granularity, grid, given, first in (
                ("tensor", "fp8_e4m3", one, 0),
                ("head", "narrow", heads, 1),
                ("token", "asymmetric", None, 0),
                ("group", "narrow", None, 2),
                ("channel", "asymmetric", None, 1),
            )
        },
        "quantized pairs": (q.quantized_pairs, (x, 3, 17, 4, 2, 1)),
        "pack": (q.pack, (codes, 4)),
        "unpack": (q.unpack, (ops.pack(codes, 4), 4, 64)),
        "choose_outer_scales": (q.choose_outer_scales, (x, "minmax fp4_e2m1 1x16 e4m3*float32@-1x-1")),
        "outer_scales": (q.outer_scales, (scale, "learned fp4_e2m1 1x32 e4m3*float32@-1x-1")),
    }


@pytest.mark.parametrize("name", _cases("cpu"))
def test_opcheck(name, device):
    op, args = _cases(device)[name]
    torch.library.opcheck(op.default, args)


def _layer(x, weight, scale, zero_point):
    w = ops.fake_quantize_learned(weight, scale, zero_point, (1, 32), -8, 7, BF16, 0.1)
    a = ops.fake_quantize_dynamic(x, (1, -1), 8, "asymmetric")[0]
    return torch.nn.functional.linear(a, ops.fake_quantize_dynamic(w, (1, 32), 6, "full", BF16)[0])


def test_compile_fullgraph(device):
    torch._dynamo.reset()
    args = [torch.randn(5, 64), torch.randn(16, 64), torch.rand(16, 2) + 0.1, torch.randn(16, 2)]
    eager = [a.to(device).requires_grad_() for a in args]
    compiled = [a.to(device).requires_grad_() for a in args]
    expected = _layer(*eager)
    result = torch.compile(_layer, fullgraph=True)(*compiled)
    torch.testing.assert_close(result, expected, rtol=1e-6, atol=1e-6)  # the matrix product may be fused differently
    expected.square().sum().backward()
    result.square().sum().backward()
    for a, b in zip(compiled, eager, strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-4)


def test_compile_with_dynamic_shapes(device):
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: ops.fake_quantize_dynamic(x, (1, -1), 8)[0] * 1.0, fullgraph=True, dynamic=True)
    for tokens in (3, 7, 12):
        x = torch.randn(tokens, 32, device=device)
        assert torch.equal(compiled(x), ops.fake_quantize_dynamic(x, (1, -1), 8)[0])


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16), ids=str)
def test_autocast_leaves_the_weight_in_its_dtype(dtype, device):
    weight = torch.randn(16, 64, device=device, requires_grad=True)
    x = torch.randn(4, 64, device=device)
    with torch.autocast(device.type, dtype):
        w = ops.fake_quantize_dynamic(weight, (1, 32), 4, "narrow", torch.bfloat16)[0]
        y = torch.nn.functional.linear(x, w)
    assert w.dtype == torch.float32 and y.dtype == dtype
    y.float().sum().backward()
    assert weight.grad.dtype == torch.float32 and weight.grad.isfinite().all()


def test_activation_checkpointing_gives_the_same_gradients(device):
    def gradients(run):
        torch.manual_seed(1)
        args = [torch.randn(5, 64), torch.randn(16, 64), torch.rand(16, 2) + 0.1, torch.randn(16, 2)]
        leaves = [a.to(device).requires_grad_() for a in args]
        run(*leaves).square().sum().backward()
        return [leaf.grad for leaf in leaves]

    plain = gradients(_layer)
    recomputed = gradients(lambda *args: checkpoint(_layer, *args, use_reentrant=False))
    assert all(torch.equal(a, b) for a, b in zip(plain, recomputed, strict=True))


def test_gradient_accumulation_adds_up(device):
    weight = torch.randn(16, 64, device=device, requires_grad=True)
    batches = torch.randn(4, 3, 64, device=device)

    def loss(x):
        return torch.nn.functional.linear(x, ops.fake_quantize_dynamic(weight, (1, 32), 4, "full")[0]).sum()

    loss(batches.flatten(0, 1)).backward()
    whole = weight.grad.clone()
    weight.grad = None
    for batch in batches:
        loss(batch).backward()
    torch.testing.assert_close(weight.grad, whole, rtol=1e-5, atol=1e-5)  # sums of another order


def test_inputs_are_not_changed(device):
    x = torch.randn(4, 64, device=device)
    before, version = x.clone(), x._version
    ops.fake_quantize_dynamic(x, (1, 32), 4)
    assert torch.equal(x, before) and x._version == version


def test_a_weight_changed_before_backward_is_noticed(device):
    weight = torch.randn(4, 64, device=device, requires_grad=True)
    y = ops.fake_quantize_dynamic(weight * 1.0, (1, 32), 4, "full")[0]
    z = weight.detach().clone().requires_grad_()
    y = ops.fake_quantize_dynamic(z, (1, 32), 4, "full")[0]
    with torch.no_grad():
        z.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_old_arguments_are_those_of_the_quantizer(device):
    """What the operators were called with before they took a text, for one version more."""
    x = torch.randn(6, 64, device=device)
    scale, zero = ops.choose_qparams(x, (1, 32), 4, "asymmetric", "minmax", BF16)
    text, full = "int4 asymmetric 1x32 bfloat16", "minmax int4 full 1x32 bfloat16"
    new_scale, new_zero = ops.choose_qparams(x, f"minmax {text}")
    assert torch.equal(scale, new_scale) and torch.equal(zero, new_zero)
    q, ends = torch.ops.qat, ((1, 32), -8, 7)
    for old, new in (
        (ops.fake_quantize(x, scale, zero, *ends), ops.fake_quantize(x, f"fixed {text}", scale, zero)),
        (q.fake_quantize(x, scale, zero, *ends), ops.fake_quantize(x, f"fixed {text}", scale, zero)),
        (ops.fake_quantize_dynamic(x, (1, 32), 4, "full", BF16)[0], ops.fake_quantize(x, full)),
        (q.fake_quantize_dynamic(x, (1, 32), 4, "full", BF16)[0], ops.fake_quantize(x, full)),
        (
            q.fake_quantize_learned(x, scale * 0.9, zero.float(), *ends, BF16, 0.5),
            ops.fake_quantize(x, f"learned {text} 0.5", scale * 0.9, zero.float()),
        ),
        (q.round_qparams(scale * 0.9, None, -8, 7, BF16)[0], ops.round_qparams(scale * 0.9, full)[0]),
        (q.quantize(x, scale, zero, *ends), ops.quantize(x, f"fixed {text}", scale, zero)),
        (q.encode(x, scale, zero, (1, 32), 4, "asymmetric", BF16)[0], ops.encode(x, f"fixed {text}", scale, zero)[0]),
        (q.choose_qparams(x, (1, 32), 4, "full", "mse", BF16)[0], ops.choose_qparams(x, full, "mse")[0]),
    ):  # fmt: skip
        assert torch.equal(old, new)
    with pytest.warns(
        DeprecationWarning, match=matches("ops.deprecated", what="torchqat.ops.fake_quantize_dynamic")
    ) as first:
        ops.fake_quantize_dynamic(x, (1, 32), 4)
    with pytest.warns(DeprecationWarning, match=matches("ops.deprecated", instead="a quantizer's text")) as second:
        ops.quantize(x, scale, zero, *ends)
    assert first[0].filename == second[0].filename == __file__, "it is this line that has to change"


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda x: ops.fake_quantize_dynamic(x.double(), (1, -1), 4),
            TypeError,
            matches("ops.no-float", name="x"),
        ),
        (lambda x: ops.fake_quantize_dynamic(x, (1, -1), 1), ValueError, matches("ops.bits", bits=1)),
        (
            lambda x: ops.fake_quantize_dynamic(x, (1, -1), 4, "wide"),
            ValueError,
            matches("ops.unknown-grid", grid="wide"),
        ),
        (lambda x: ops.fake_quantize_dynamic(x, (0, -1), 4), ValueError, matches("ops.block-sides", block="[0, -1]")),
        (
            lambda x: ops.fake_quantize_dynamic(x, (1, -1), 4, "full", torch.int8),
            ValueError,
            matches("ops.no-quantizer"),
        ),
        (
            lambda x: ops.choose_qparams(x, (1, -1), 4, "full", "best"),
            ValueError,
            matches("ops.search-method", method="best"),
        ),
        (
            lambda x: ops.fake_quantize(x, torch.ones(1, 1), None, (1, -1), -8, 7),
            ValueError,
            matches("ops.another-shape", shape="[4, 1]"),
        ),
        (
            lambda x: ops.fake_quantize(x, torch.ones(4, 1), torch.zeros(4, 1), (1, -1), -8, 7),
            TypeError,
            matches("ops.another-dtype", dtype="Char"),
        ),
        (
            lambda x: ops.fake_quantize(x, torch.ones(4, 1), None, (1, -1), 7, 7),
            ValueError,
            matches("ops.ends-of-a-grid", low=7, high=7),
        ),
        (lambda x: ops.pack(x, 4), TypeError, matches("ops.codes-to-pack")),
        (lambda x: ops.pack(x.to(torch.int8), 9), ValueError, matches("ops.bits-of-packed-codes", bits=9)),
    ],
)
def test_bad_arguments_get_a_sentence(call, error, message):
    with pytest.raises(error, match=message):
        call(torch.randn(4, 8))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("minmax int4 narrow", matches("ops.no-quantizer", text="minmax int4 narrow")),
        ("minmax int9 narrow 1x32 bfloat16", matches("ops.bits", bits=9)),
        ("minmax int4 wide 1x32 bfloat16", matches("ops.unknown-grid", grid="wide")),
        ("minmax int4 narrow 0x32 bfloat16", matches("ops.block-sides", block="[0, 32]")),
        (f"minmax int4 narrow 1x{2**63 - 1} bfloat16", matches("ops.block-sides", block=f"[1, {2**63 - 1}]")),
    ],
)
def test_a_wrong_quantizer_gets_a_sentence(text, message):
    with pytest.raises(ValueError, match=message):
        ops.quant_linear(torch.randn(2, 8), torch.randn(3, 8), weight_quantizer=text)


def test_bad_arguments_of_a_product_get_a_sentence():
    quantizer = "minmax int3 signed 1x-1 float32"
    with pytest.raises(ValueError, match=matches("ops.linear-columns")):
        ops.quant_linear(torch.randn(2, 7), torch.randn(3, 8), weight_quantizer=quantizer)
    with pytest.raises(TypeError, match=matches("ops.linear-dtypes")):
        ops.quant_linear(torch.randn(2, 8), torch.randn(3, 8, dtype=torch.bfloat16), weight_quantizer=quantizer)
