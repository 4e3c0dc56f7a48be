"""``PackedLinear``, ``pack`` and ``load``: the product on packed codes, and models that run on it."""

import copy
import os
import subprocess
import sys

import pytest
import torch
import torchqat
from command import call
from sentences import matches, said
from torch import nn
from torchqat import PackedLinear, QuantSpec, ops
from torchqat.layers.linear import QuantLinear
from torchqat.runs.restore import load_any

SPECS = {
    "int4_groups": QuantSpec(4, granularity="group", group_size=16),
    "int4_zero": QuantSpec(4, grid="asymmetric", granularity="group", group_size=16),
    "int3": QuantSpec(3, scale="mse"),
    "int2_tensor": QuantSpec(2, granularity="tensor"),
    "int8": QuantSpec(8),
    "int8_blocks": QuantSpec(8, granularity="block", block=(8, 16)),
}


def _layer(spec, input=None, dtype=torch.float32):
    torch.manual_seed(0)
    return QuantLinear(nn.Linear(48, 24, dtype=dtype), spec, input).eval()


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_agrees_with_the_trained_layer(spec, dtype):
    layer = _layer(spec, dtype=dtype)
    packed = PackedLinear(layer.convert("layer", torch.float32), layer.bias)
    exact = layer.convert("layer", torch.float32).dequantize(torch.float32)
    assert torch.equal(packed.weight, exact)
    for rows in (1, 2, 3, 7, 9, 40):
        x = torch.randn(rows, 48).to(dtype)
        expected = x.double() @ exact.double().T + layer.bias.double()
        found = packed(x)
        assert found.dtype == dtype
        bound = (x.double().abs() @ exact.double().abs().T + 1) * (
            48 + 8
        ) * 2.0**-22 + expected.abs() * 2 * torch.finfo(dtype).eps
        assert ((found.double() - expected).abs() <= bound).all()


def test_rounds_inputs_as_training_did():
    for input in (
        QuantSpec(8, granularity="token", dynamic=True),
        QuantSpec(8, granularity="tensor", grid="asymmetric"),
    ):
        layer = _layer(SPECS["int4_groups"], input)
        x = torch.randn(5, 48)
        if not input.dynamic:
            layer.start_calibration()
            layer(x)
            layer.finish_calibration()
        packed = PackedLinear(layer.convert("layer", torch.float32), layer.bias)
        assert torch.equal(packed.rounded_input(x), layer.quantized_input(x))
        torch.testing.assert_close(packed(x), layer(x), rtol=1e-5, atol=1e-5)


def test_memory_and_state():
    layer = _layer(SPECS["int4_groups"])
    weights = layer.convert("layer", torch.float32)
    packed, other = PackedLinear(weights, layer.bias), PackedLinear(weights)
    assert packed.nbytes == 32 * 48 // 2 + 32 * 3 * 4 + 24 * 4  # rows fill up panels of 16
    other = PackedLinear(_layer(SPECS["int4_groups"]).convert("layer", torch.float32), torch.zeros(24))
    other.load_state_dict(packed.state_dict())
    x = torch.randn(2, 48)
    assert torch.equal(other(x), packed(x))


def test_an_input_that_wants_a_gradient_is_refused():
    packed = PackedLinear(_layer(SPECS["int4_groups"]).convert("layer", torch.float32))
    x = torch.randn(3, 48, requires_grad=True)
    with pytest.raises(NotImplementedError, match=matches("ops.no-gradient")):
        packed(x)
    with torch.no_grad():
        assert torch.equal(packed(x), packed(x.detach())) and not packed(x).requires_grad
    with torch.inference_mode():
        assert torch.equal(packed(x), packed(x.detach()))


# Of several threads, each of which has an autograd of its own that is on.
PORTABLE = """
import torch
from torchqat import ops
torch.set_num_threads(4)
codes = torch.randint(-8, 8, (1024, 64), dtype=torch.int8)
panels, scale = ops.pack_panels(codes, 4, 32), torch.ops.qat.pack_panel_values(torch.rand(1024, 2))
x, bias = torch.randn(80, 64, requires_grad=True), torch.rand(1024, requires_grad=True)
with torch.no_grad():
    y = ops.packed_linear(x, panels, scale, None, bias, 4, 32, 1024)
print(ops.cpu_capability(), y.requires_grad)
"""


def test_its_threads_record_no_gradients_on_any_processor():
    environment = {**os.environ, "TORCHQAT_CPU_CAPABILITY": "portable"}
    result = subprocess.run([sys.executable, "-c", PORTABLE], capture_output=True, text=True, env=environment)
    assert result.stdout == "portable False\n", result.stderr


def test_refuses_float8():
    spec = "fp8_e4m3 channel, minmax scale in bfloat16"
    with pytest.raises(ValueError, match=matches("ops.packed-levels", layer="layer", spec=spec)):
        PackedLinear(_layer(QuantSpec(8, grid="fp8_e4m3")).convert("layer", torch.float32))


@pytest.mark.parametrize("zero", [False, True])
def test_the_operators_are_whole(zero):
    codes, x = torch.randint(-8, 8, (20, 32), dtype=torch.int8), torch.randn(3, 32)
    panels = ops.pack_panels(codes, 4, 16)
    scale = torch.ops.qat.pack_panel_values(torch.rand(20, 2))
    points = torch.ops.qat.pack_panel_values(torch.randint(-8, 8, (20, 2), dtype=torch.int8)) if zero else None
    for op, arguments in (
        (torch.ops.qat.pack_panels, (codes, 4, 16)),
        (torch.ops.qat.unpack_panels, (panels, 4, 16, 20, 32)),
        (torch.ops.qat.pack_panel_values, (torch.rand(20, 2),)),
        (torch.ops.qat.unpack_panel_values, (scale, 20)),
        (torch.ops.qat.packed_linear, (x, panels, scale, points, torch.rand(20), 4, 16, 20)),
    ):
        torch.library.opcheck(op.default, arguments)


def test_compiles():
    layer = _layer(SPECS["int4_zero"])
    packed = PackedLinear(layer.convert("layer", torch.float32), layer.bias)
    x = torch.randn(3, 48)
    assert torch.equal(torch.compile(packed, fullgraph=True)(x), packed(x))


RECIPE = """
version: 1
layers:
  - {match: "*", weight: {dtype: int4, group_size: 32}}
  - {match: "*.down_proj", weight: {dtype: int8}}
"""


def test_a_packed_model_is_evaluated_like_the_trained_one(tiny_llama):
    model = torchqat.prepare(tiny_llama, torchqat.parse_recipe(RECIPE, "r.yaml")).eval()
    batches = [torch.randint(0, 128, (2, 16))]
    before = torchqat.evaluate(model, batches)
    linear = sum(p.numel() for n, p in model.named_parameters() if "proj" in n)
    torchqat.pack(model)
    packed = [m for m in model.modules() if isinstance(m, PackedLinear)]
    assert len(packed) == 14
    assert sum(m.nbytes for m in packed) < linear  # a byte for each weight, of 4
    after = torchqat.evaluate(model, batches)
    assert after.perplexity == pytest.approx(before.perplexity, rel=1e-5)
    assert model.generate(batches[0], max_new_tokens=4, do_sample=False).shape == (2, 20)


def test_packing_asks_for_a_prepared_model():
    with pytest.raises(torchqat.UserError, match=matches("model.not-prepared")):
        torchqat.pack(nn.Sequential(nn.Linear(4, 4)))


def test_a_folder_is_loaded_bit_for_bit(tmp_path, tiny_llama):
    original = copy.deepcopy(tiny_llama)
    model = torchqat.prepare(tiny_llama, torchqat.parse_recipe(RECIPE, "r.yaml")).eval()
    torchqat.export(model, tmp_path / "out", format="safetensors")
    ids = torch.randint(0, 128, (2, 16))
    plain = torchqat.load(copy.deepcopy(original), tmp_path / "out")
    assert torch.equal(plain(ids).logits, model(ids).logits)
    packed = torchqat.load(copy.deepcopy(original), tmp_path / "out", packed=True)
    torch.testing.assert_close(packed(ids).logits, model(ids).logits, rtol=1e-4, atol=1e-5)


def test_evaluate_runs_a_folder_on_packed_weights(tmp_path, tiny_llama, tokenizer, data_folder, capsys):
    model = torchqat.prepare(tiny_llama, torchqat.parse_recipe(RECIPE, "r.yaml")).eval()
    torchqat.export(model, tmp_path / "out", format="safetensors", tokenizer=tokenizer)
    loaded = load_any(str(tmp_path / "out"))
    assert sum(isinstance(m, PackedLinear) for m in loaded.modules()) == 14
    ids = torch.randint(0, 128, (2, 16))
    torch.testing.assert_close(loaded(ids).logits, model(ids).logits, rtol=1e-4, atol=1e-5)
    code, out, _ = call(
        capsys, "evaluate", tmp_path / "out", "--data", data_folder, "--samples", 4, "--sequence-length", 32
    )
    assert code == 0 and said(out, "evaluate.perplexity")


def test_a_folder_that_does_not_fit_is_refused_and_changes_nothing(tmp_path):
    net = nn.Sequential(nn.Linear(32, 16), nn.Linear(16, 8))
    recipe = torchqat.parse_recipe('version: 1\nlayers: [{match: "0", weight: {dtype: int4}}]\n', "r.yaml")
    torchqat.export(torchqat.prepare(net, recipe), tmp_path / "out", format="safetensors")
    for other, refusal in (
        (
            nn.Sequential(nn.Linear(32, 12), nn.Linear(16, 8)),
            matches("load.other-codes", layer=0, codes="[16, 32]", weight="[12, 32]"),
        ),
        (nn.Sequential(nn.ReLU(), nn.Linear(16, 8)), matches("load.not-of-torch", layer=0, type="ReLU")),
        (nn.Sequential(nn.Linear(32, 16)), matches("load.not-in-model", name="1.bias")),
        (
            nn.Sequential(nn.Linear(32, 16), nn.Linear(16, 9)),
            matches("load.other-shape", name="1.bias", stored="[8]", own="[9]"),
        ),
        (nn.Sequential(*net[:2], nn.Linear(2, 2)), matches("load.not-of-torch", layer=0, type="QuantLinear")),
        (
            nn.Sequential(nn.Linear(32, 16), nn.Linear(16, 8), nn.Linear(2, 2)),
            matches("load.not-in-checkpoint", name="2.weight"),
        ),
    ):
        before = {name: t.clone() for name, t in other.state_dict().items()}
        with pytest.raises(torchqat.UserError, match=refusal):
            torchqat.load(other, tmp_path / "out")
        assert all(torch.equal(before[name], t) for name, t in other.state_dict().items())
    of_floats = tmp_path / "floats" / "config.json"
    with pytest.raises(torchqat.UserError, match=matches("checkpoints.unreadable", file=of_floats)):
        torchqat.load(net, of_floats.parent)
    of_floats.parent.mkdir()
    of_floats.write_text("{}")
    with pytest.raises(torchqat.UserError, match=matches("checkpoints.no-configuration", file=of_floats)):
        torchqat.load(net, of_floats.parent)


def test_inputs_want_packed_layers(tmp_path):
    net = nn.Sequential(nn.Linear(32, 16))
    layers = '{match: "0", weight: {dtype: int8}, input: {dtype: int8, granularity: token}}'
    torchqat.prepare(net, torchqat.parse_recipe(f"version: 1\nlayers: [{layers}]\n", "r.yaml"))
    torchqat.export(net, tmp_path / "out", format="safetensors")
    with pytest.raises(torchqat.UserError, match=matches("load.input-is-quantized", layer=0, type="Linear")):
        torchqat.load(nn.Sequential(nn.Linear(32, 16)), tmp_path / "out")
    x = torch.randn(3, 32)
    packed = torchqat.load(nn.Sequential(nn.Linear(32, 16)), tmp_path / "out", packed=True)
    torch.testing.assert_close(packed(x), net(x), rtol=1e-5, atol=1e-5)
