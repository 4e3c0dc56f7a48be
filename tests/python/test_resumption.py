"""Forwards of a block that go on where they stopped: the same bits with fewer products, whatever a block is made of."""

import copy

import pytest
import torch
import torchqat
from torch import nn
from torchqat.layers.linear import QuantLinear
from torchqat.layers.prepared import quant_layers
from torchqat.ptq import resumption
from torchqat.ptq.skipped import NotSkippable, Skipped, form_of, is_whole

SETTINGS = """version: 1
layers: [{{match: "*", weight: {{dtype: int4, group_size: 16, scale: mse}}{rest}}}]
initialize: {{method: gptq, objective: layer, correction: {correction}}}
"""


class Part(nn.Module):
    """Four stages, the second a residual that the fourth's sum takes again; the code between them as ``how`` says."""

    def __init__(self, how: str):
        super().__init__()
        self.how, self.norm = how, nn.LayerNorm(32)
        self.q, self.k, self.o = (nn.Linear(32, 32) for _ in range(3))
        self.up, self.down = nn.Linear(32, 48), nn.Linear(48, 32)

    def forward(self, x):
        given = self.norm(x)
        q, k = self.q(given), self.k(given)
        between = torch.softmax(q @ k.transpose(1, 2), -1) @ given
        if self.how == "asks for elements":
            between = between / float(q.abs().max().clamp_min(1))
        result = self.o(between)
        if self.how == "writes into a result":
            result += x
        elif self.how == "writes into its own":
            kept = torch.zeros_like(x)
            kept[:, ::2] = result[:, ::2]
            result = kept + x
        else:
            result = result + x
        middle = self.up(torch.tanh(result)).relu()
        if self.how == "calls a layer twice":
            middle = self.up(self.down(middle)).relu()
        return result + self.down(middle)


HOW = ["plainly", "asks for elements", "writes into a result", "writes into its own", "calls a layer twice"]


class Model(nn.Module):
    def __init__(self, how: str):
        super().__init__()
        self.parts = nn.ModuleList([Part(how) for _ in range(3)])

    def forward(self, x):
        for part in self.parts:
            x = part(x)
        return x


def calibrated(how: str = "plainly", correction: float = 0.5, rest: str = "") -> tuple[nn.Module, int]:
    """A calibrated model, and how many rows its layers multiplied meanwhile."""
    torch.manual_seed(0)
    recipe = torchqat.parse_recipe(SETTINGS.format(correction=correction, rest=rest))
    model = torchqat.prepare(Model(how), recipe)
    batches = [torch.randn(2, length, 32) for length in (8, 8, 12, 16)]
    multiplied = 0

    def count(module, inputs, _output) -> None:
        nonlocal multiplied
        multiplied += inputs[0].shape[:-1].numel() * (type(inputs[0]) is torch.Tensor)

    own = QuantLinear.forward

    def forward(self, x):
        result = own(self, x)
        count(self, (x,), result)
        return result

    QuantLinear.forward = forward
    try:
        torchqat.calibrate(model, batches)
    finally:
        QuantLinear.forward = own
    return model, multiplied


def bits(model: nn.Module) -> list[torch.Tensor]:
    layers = [layer for _, layer in quant_layers(model)]
    return [tensor for layer in layers for tensor in (layer.codes(), layer.weight_scale, layer.master)]


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(bits(one), bits(other), strict=True))


@pytest.fixture
def anew(monkeypatch):
    """Every forward begins anew, as it would by the definition."""

    def run(*args, **kwargs):
        with monkeypatch.context() as patched:
            patched.setattr(resumption.Needs, "of", classmethod(lambda *_: None))
            return calibrated(*args, **kwargs)

    return run


@pytest.mark.parametrize("correction", [0.0, 0.5])
@pytest.mark.parametrize("how", HOW)
def test_the_bits_are_those_of_forwards_that_begin_anew(how, correction, anew):
    assert same(calibrated(how, correction)[0], anew(how, correction)[0])


@pytest.mark.parametrize(
    "rest", [", input: {dtype: int8, granularity: tensor, dynamic: false}", ", input: {dtype: int8}"]
)
def test_so_they_are_with_rounded_inputs(rest, anew):
    assert same(calibrated(rest=rest)[0], anew(rest=rest)[0])


def test_no_product_is_computed_twice(anew):
    resumed, begun_anew = calibrated()[1], anew()[1]
    tokens, layers, blocks, trials = 2 * (8 + 8 + 12 + 16), 5, 3, 5 * 2 * 8
    # Each layer once in both models, besides the forwards of the first batch that show how the model is built.
    assert resumed <= blocks * layers * (2 * tokens + trials)
    assert resumed < 0.6 * begun_anew


def test_without_room_nothing_is_kept_and_the_bits_are_the_same(monkeypatch, anew):
    expected = anew()[0]
    monkeypatch.setattr(resumption, "_SHARE", 0)
    model, multiplied = calibrated()
    assert same(model, expected)
    monkeypatch.setattr(resumption, "_SHARE", 2)
    assert multiplied > calibrated()[1]


def test_what_is_kept_stays_within_its_room(monkeypatch):
    rooms = []
    own = resumption.Room.__init__
    monkeypatch.setattr(
        resumption.Room, "__init__", lambda self, *args: (own(self, *args), rooms.append((self, self.left)))[0]
    )
    calibrated()
    assert all(room.left == most for room, most in rooms[:2])  # all of it was given back
    assert 0 <= rooms[2][0].left < rooms[2][1]  # no block takes what the last one gives


def skipped(shape=(2, 3), source: int = 0) -> Skipped:
    return Skipped.of(form_of(torch.empty(shape)), [source], torch.device("cpu"))


def test_what_is_made_of_a_skipped_tensor_is_skipped_and_knows_its_sources():
    one, other, ordinary = skipped(source=1), skipped(source=2), torch.ones(2, 3)
    made = torch.cat([ordinary, (one * ordinary).softmax(-1)]).sum(0, keepdim=True) @ other.t()
    assert isinstance(made, Skipped) and made.shape == (1, 2) and made.sources == {1, 2}
    assert made.device == torch.device("cpu") and made.dtype == torch.float32
    assert type(ordinary * 2) is torch.Tensor and is_whole((ordinary, None, {"a": [1.0]}))
    assert not is_whole({"a": (made,)}) and not is_whole([object()])


def test_what_is_written_into_a_skipped_tensor_is_noted():
    one = skipped(source=1)
    one[:, 0] = skipped((2,), source=2)
    assert one.sources == {1, 2}


@pytest.mark.parametrize(
    "write",
    [
        lambda x, s: x.add_(s),
        lambda x, s: x.__setitem__(0, s[0]),
        lambda x, s: torch.add(s, s, out=x),
        lambda x, s: x.__iadd__(s),
        lambda x, s: s.tolist(),
        lambda x, s: float(s[0, 0]),
        lambda x, s: x[s > 0],
    ],
)
def test_elements_of_a_skipped_tensor_reach_no_ordinary_one(write):
    x = torch.zeros(2, 3)
    with pytest.raises((NotSkippable, RuntimeError, NotImplementedError)):
        write(x, skipped())
    assert torch.equal(x, torch.zeros(2, 3))


def test_a_copied_model_is_not_tied_to_what_was_kept():
    model, _ = calibrated()
    assert same(copy.deepcopy(model), model)
