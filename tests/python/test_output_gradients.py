"""GPTQ for the model's output: gradients against what they stand for, rows against a float64 twin, and models end to end."""

import copy

import architectures
import pytest
import reference
import reference_ptq as twin
import torch
import torchqat
from architectures import recipe, tokens
from sentences import matches, said
from test_gptq import problem, spec_of, statistics_of
from torch import nn
from torchqat import QuantSpec
from torchqat._library import gptq, preset
from torchqat.device import find_device
from torchqat.layers.prepared import quant_layers
from torchqat.model.placement import Placed
from torchqat.ptq import output_gradients
from torchqat.ptq.output_gradients import output_hessians

WEIGHT = "dtype: int4, group_size: 16, grid: full, scale: learned"


def hessian_of_output(rows=48, seed=1):
    """Second moments of gradients that lie in few directions, of very different size."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(rows, rows, generator=generator) * torch.rand(rows, generator=generator).pow(3)
    gradients = torch.randn(4000, rows, generator=generator) @ mix
    return gradients.T @ gradients / len(gradients)


def two_sided(error, hessian, output_hessian):
    """tr(G ΔW H ΔWᵀ)."""
    return torch.trace(output_hessian.double() @ error.double() @ hessian.double() @ error.double().T).item()


@pytest.mark.parametrize(("bits", "group", "grid"), [(4, 64, "full"), (2, 32, "asymmetric")])
def test_rows_are_those_of_the_float64_twin(bits, group, grid):
    weight, x = problem()
    hessian, outputs = statistics_of(x).hessian, hessian_of_output()
    found = gptq(weight, hessian, spec_of(bits, group, grid), bits, order="plain", output_hessian=outputs, sweeps=0)
    codes, scale, zero = twin.gptq_by_rows(weight, hessian, outputs, bits, group, grid)
    rounded = reference.fake_quantize(found.weight, scale, zero, (1, group), *reference.quant_range(bits, grid))
    # The first rows are moved by none before them; later ones by the float32 of those.
    first = outputs.diagonal().argsort(descending=True, stable=True)[:8]
    same = (found.codes[first] == codes[first]).all(1)
    assert same.float().mean() >= 0.75
    assert torch.equal(found.scale[first][same], scale[first][same])
    assert (found.codes == codes).float().mean() >= 0.8
    assert two_sided(weight - found.weight, hessian, outputs) == pytest.approx(
        two_sided(weight - twin.dequantized(codes, scale, zero, group), hessian, outputs), rel=0.05
    )
    assert rounded.shape == weight.shape


@pytest.mark.parametrize("order", ["plain", "group", "column"])
@pytest.mark.parametrize(
    "spec",
    [
        spec_of(4),
        spec_of(2, 32, "asymmetric"),
        QuantSpec(4, granularity="channel", grid="full"),
        QuantSpec(4, granularity="block", block=[8, 64], grid="full"),
        preset("nvfp4"),
        preset("q4_k"),
    ],
    ids=["int4", "int2", "channel", "block", "nvfp4", "q4_k"],
)
def test_what_reaches_the_output_is_less(spec, order):
    weight, x = problem(cols=256)
    hessian, outputs = statistics_of(x).hessian, hessian_of_output()
    alone = gptq(weight, hessian, spec, spec.bits, order=order, sweeps=0)
    found = gptq(weight, hessian, spec, spec.bits, order=order, sweeps=0, output_hessian=outputs)
    errors = [two_sided(weight - one.weight, hessian, outputs) for one in (found, alone)]
    assert errors[0] < (0.9 if spec.block[0] == 8 or order == "column" else 0.75) * errors[1]
    damped = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(len(hessian))
    assert found.loss == pytest.approx(twin.objective(weight - found.weight, damped), rel=1e-5)
    assert alone.loss < found.loss  # of the layer's own output, which gives way


def test_rows_that_share_a_scale_are_rounded_together():
    weight, x = problem(rows=16, cols=64)
    hessian = statistics_of(x).hessian
    spec = QuantSpec(4, granularity="tensor", grid="full")
    found = gptq(weight, hessian, spec, 4, sweeps=0, output_hessian=hessian_of_output(16))
    assert torch.equal(found.weight, gptq(weight, hessian, spec, 4, sweeps=0).weight)


def test_outputs_that_hang_together_with_none_change_nothing():
    weight, x = problem()
    hessian = statistics_of(x).hessian
    alone = gptq(weight, hessian, spec_of(4), 4)
    found = gptq(weight, hessian, spec_of(4), 4, output_hessian=torch.eye(len(weight)))
    # Products of fewer rows at once may differ in the last bit.
    assert (found.codes != alone.codes).float().mean() < 0.02
    assert found.loss == pytest.approx(alone.loss, rel=0.02)


def test_what_does_not_fit_is_refused():
    weight, x = problem(rows=8, cols=64)
    hessian = statistics_of(x).hessian
    with pytest.raises(ValueError, match=matches("ptq.gptq-output-shapes")):
        gptq(weight, hessian, spec_of(4), 4, output_hessian=torch.eye(9))
    with pytest.raises(ValueError, match=matches("ptq.gptq-output-hessian")):
        gptq(weight, hessian, spec_of(4), 4, output_hessian=torch.full((8, 8), torch.nan))


class Choices(nn.Module):
    """Logits by one layer, whose gradients are known."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(16, 12)

    def forward(self, x):
        return self.head(x)


def prepared(model, initialize="{method: gptq}", weight=WEIGHT):
    return torchqat.prepare(
        copy.deepcopy(model),
        torchqat.parse_recipe(
            f"version: 1\nlayers: [{{match: '*', weight: {{{weight}}}}}]\ninitialize: {initialize}\n", "r"
        ),
    ).eval()


def without_cache(model, batch):
    return model(input_ids=batch, use_cache=False)


def found_for(model, batches, forward=lambda model, batch: model(batch)):
    return output_hessians(model, batches, forward, Placed(find_device("cpu")))


def test_gradients_of_logits_are_fishers():
    model = prepared(Choices())
    x = torch.randn(16_384, 16)
    found = found_for(model, [x])["head"]
    with torch.no_grad():
        p = torch.softmax(nn.functional.linear(x, model.head.master, model.head.bias), -1)
    wanted = torch.diag(p.mean(0)) - p.T @ p / len(p)
    torch.testing.assert_close(found, wanted, rtol=0, atol=0.04 * wanted.diagonal().max().item())


class Vectors(Choices):
    """What has no logits counts by its squared error."""

    def forward(self, x):
        return {"last_hidden_state": 3.0 * self.head(x)}


def test_gradients_of_vectors_are_those_of_squared_errors():
    found = found_for(prepared(Vectors()), [torch.randn(16_384, 16)])["head"]
    torch.testing.assert_close(found, 9.0 * torch.eye(12), rtol=0, atol=0.6)


def test_no_more_batches_are_read_than_are_needed(monkeypatch):
    monkeypatch.setattr(output_gradients, "TOKENS", 100)
    read = []
    found_for(prepared(Choices()), [torch.randn(60, 16)] * 5, lambda model, batch: (read.append(1), model(batch))[1])
    assert len(read) == 2


@pytest.mark.parametrize("name", ["Llama", "Gemma", "Phi"])
def test_blocks_that_run_again_give_the_same_gradients(name, monkeypatch):
    model = prepared(architectures.build(name), weight="dtype: int4, group_size: 8, grid: full, scale: learned")
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    found = found_for(model, tokens(), without_cache)
    monkeypatch.setattr(output_gradients, "blocks_of", lambda model: [])
    whole = found_for(model, tokens(), without_cache)
    assert found.keys() == whole.keys() == {name for name, layer in quant_layers(model) if isinstance(layer, nn.Linear)}
    for name in found:
        scale = whole[name].abs().max().item()
        torch.testing.assert_close(found[name], whole[name], rtol=0, atol=2e-2 * scale)
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad and parameter.grad is None
        assert torch.equal(parameter, before[name])


def test_of_wide_layers_there_are_none(monkeypatch):
    monkeypatch.setattr(output_gradients, "WIDEST", 11)
    assert not found_for(prepared(Choices()), [torch.randn(4, 16)])


def calibrated(model, initialize):
    found = prepared(model, initialize, "dtype: int3, group_size: 8, grid: full, scale: learned")
    assert torchqat.calibrate(found, tokens()).objective == ("layer" if "layer" in initialize else "model")
    return found.eval()


def divergence(model, other):
    total = 0.0
    for batch in tokens():
        with torch.no_grad():
            wanted, found = (torch.log_softmax(m(input_ids=batch).logits, -1) for m in (model, other))
        total += nn.functional.kl_div(found, wanted, log_target=True, reduction="sum").item()
    return total


def test_the_models_output_is_nearer():
    model = architectures.build("Qwen3")
    layer, whole, auto = (
        divergence(model, calibrated(model, f"{{method: gptq{objective}}}"))
        for objective in (", objective: layer", ", objective: model", "")
    )
    assert whole < 0.95 * layer
    assert auto == whole


def test_weights_of_two_bits_are_rounded_for_their_own_output_unless_it_is_asked_for():
    model = architectures.build("Llama")
    weight = WEIGHT.replace("int4", "int2")
    rounded = {}
    for objective in ("auto", "layer", "model"):
        text = f"version: 1\nlayers: {{weight: {{{weight}}}}}\ninitialize: {{method: gptq, objective: {objective}}}\n"
        found = torchqat.prepare(copy.deepcopy(model), torchqat.parse_recipe(text, "recipe"))
        assert torchqat.calibrate(found, tokens()).objective == ("model" if objective == "model" else "layer")
        rounded[objective] = [layer.codes() for _, layer in quant_layers(found)]
    assert all(map(torch.equal, rounded["auto"], rounded["layer"]))
    assert not all(map(torch.equal, rounded["auto"], rounded["model"]))


class OneWay(nn.Module):
    """What is not differentiable, as a kernel for inference alone."""

    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Linear(16, 16), nn.Linear(16, 4)

    def forward(self, x):
        hidden = self.first(x)
        return self.head(Forwards.apply(hidden))


class Forwards(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.relu()

    @staticmethod
    def backward(ctx, gradient):
        raise NotImplementedError("relu of inference has no backward")


def test_a_model_without_gradients_is_rounded_layer_by_layer_and_says_so():
    batches, model = [torch.randn(64, 16)], OneWay()
    alone = prepared(model, "{method: gptq, objective: layer}")
    torchqat.calibrate(alone, batches)
    auto = prepared(model)
    found = torchqat.calibrate(auto, batches)
    warnings = found.warnings
    assert found.objective == "layer"
    assert said("\n".join(warnings), "ptq.no-gradient-said", why="relu of inference has no backward")
    assert torch.equal(auto.first.quantized_weight(), alone.first.quantized_weight())
    with pytest.raises(torchqat.UserError, match=matches("ptq.no-gradient", why="relu of inference has no backward")):
        torchqat.calibrate(prepared(model, "{method: gptq, objective: model}"), batches)


def test_a_forward_of_inference_alone_is_said():
    @torch.no_grad()
    def forward(model, batch):
        return model(batch)

    warnings = torchqat.calibrate(prepared(Choices()), [torch.randn(64, 16)], forward).warnings
    assert said("\n".join(warnings), "ptq.no-gradient-said", why="what it gave has no gradient")


def test_a_streamed_model_has_none(tmp_path):
    architectures.build("Llama").save_pretrained(tmp_path / "float")
    text = "version: 1\nlayers: {weight: {dtype: int4, group_size: 8, scale: mse}}\n"
    text += "initialize: {method: gptq, objective: model}\n"
    with pytest.raises(torchqat.UserError, match=matches("ptq.streamed-objective")):
        torchqat.quantize_folder(tmp_path / "float", tmp_path / "out", torchqat.parse_recipe(text, "r"), tokens())


def test_where_it_can_not_be_had_it_is_refused():
    for method in ("awq+gptq", "smoothquant+gptq", "rtn", "awq"):
        with pytest.raises(torchqat.RecipeError, match=matches("recipe.objective-of-method")):
            recipe(f"{{method: {method}, objective: model}}")
    assert not recipe("{method: awq+gptq}").initialize.weighs_outputs
    assert recipe("{method: hadamard+gptq}").initialize.weighs_outputs
