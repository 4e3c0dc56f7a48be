"""Modules of one's own are calibrated block by block where that is right, and the rest on forwards of the whole."""

import copy
from collections import UserDict

import architectures
import pytest
import torch
import torchqat
from block_models import assert_blocks_give_what_the_model_makes_them_give, forward, prepared
from sentences import sentence
from torch import nn
from torchqat.layers.prepared import quant_layers
from torchqat.ptq.blocks import cut_into_rows


class Part(nn.Module):
    def __init__(self, size=32):
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(size), nn.Linear(size, size)

    def forward(self, x):
        return x + self.linear(self.norm(x)).relu()


class Net(nn.Module):
    def __init__(self, count=3, part=Part):
        super().__init__()
        self.layers = nn.ModuleList(part() for _ in range(count))

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


class Unfinished(Net):
    """Its last block is for training alone."""

    def forward(self, x):
        for layer in self.layers[:2]:
            x = layer(x)
        return x


class Named(Net):
    def forward(self, x):
        for layer in self.layers:
            x = layer(x=x)
        return x


class Skips(Net):
    """Its last block is given what the first gave, besides."""

    def forward(self, x):
        first = self.layers[0](x)
        return self.layers[2](self.layers[1](first) + first)


class Loops(Net):
    def forward(self, x):
        for _ in range(2):
            x = super().forward(x)
        return x


class Carries(nn.Module):
    """Adds to what the blocks after it read, apart from the hidden states."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(32, 32)

    def forward(self, x, gate=None):
        x = x + self.linear(x).relu() * (1.0 if gate is None else gate)
        return {"gate": x.sigmoid(), "x": x, "note": "of no use"}


class Side(Net):
    def __init__(self):
        super().__init__(part=Carries)

    def forward(self, x):
        gate = None
        for layer in self.layers:
            found = layer(x, gate=gate)
            x, gate = found["x"], found["gate"]
        return x


class Counts(Part):
    """Gives another result each time."""

    count = 0

    def forward(self, x):
        self.count += 1
        return super().forward(x) * self.count


class Towers(nn.Module):
    """One of its lists of blocks runs only where a batch has an image."""

    def __init__(self):
        super().__init__()
        self.vision = nn.ModuleList(Part() for _ in range(2))
        self.layers = nn.ModuleList(Part() for _ in range(2))

    def forward(self, x, image=None):
        if image is not None:
            for layer in self.vision:
                image = layer(image)
            x = x + image
        for layer in self.layers:
            x = layer(x)
        return x


class Keeps(nn.Module):
    """The first leaves what it computed in a store that later ones read, as where layers share keys and values."""

    def __init__(self):
        super().__init__()
        self.linear, self.first = nn.Linear(32, 32), False

    def forward(self, x, store):
        given = self.linear(x)
        if self.first:
            store["given"] = given.sigmoid()
        return x + given * store["given"]


class Store(Net):
    def __init__(self):
        super().__init__(part=Keeps)
        self.layers[0].first = True

    def forward(self, x):
        store = UserDict()
        for layer in self.layers:
            x = layer(x, store=store)
        return x


VECTORS = [torch.randn(64, 32, generator=torch.Generator().manual_seed(seed)) for seed in range(4)]


@pytest.mark.parametrize("kind", [Net, Unfinished, Named, Skips, Loops, Side, Store])
def test_modules_of_ones_own(kind):
    torch.manual_seed(0)
    assert_blocks_give_what_the_model_makes_them_give(kind(), VECTORS)
    torchqat.calibrate(prepared(kind(), initialize="{method: awq+gptq}"), VECTORS)


def test_blocks_that_run_for_some_batches_are_calibrated_on_these():
    torch.manual_seed(0)
    model = Towers()
    batches = [{"x": x} for x in VECTORS[:2]] + [{"x": x, "image": x + 1.0} for x in VECTORS[2:]]
    assert_blocks_give_what_the_model_makes_them_give(model, batches)
    ready = prepared(model)
    found = torchqat.calibrate(ready, batches)
    assert not found.warnings
    assert found.tokens["vision.1.linear"] == 128 and found.tokens["layers.1.linear"] == 256


def test_what_blocks_leave_for_later_ones_is_not_the_float_models():
    """The float copies, which are run beside for the drift, leave theirs elsewhere."""
    torch.manual_seed(0)
    ready = prepared(Store())
    row = cut_into_rows(ready, VECTORS, forward).rows[0]
    row.open(ready, VECTORS, forward)
    block = row.blocks[0]
    ours, theirs = block.calls[0].arguments[1]["store"], block.twins[0].arguments[1]["store"]
    assert ours is not theirs
    assert ours is row.blocks[1].calls[0].arguments[1]["store"]
    assert theirs is row.blocks[1].twins[0].arguments[1]["store"]


def test_what_is_no_row_is_said_once():
    torch.manual_seed(0)
    assert torchqat.calibrate(prepared(Net()), VECTORS).warnings == []
    assert torchqat.calibrate(prepared(Skips()), VECTORS).warnings == [
        sentence("ptq.one-block-alone", block="layers.2"),
    ]
    assert torchqat.calibrate(prepared(Loops()), VECTORS).warnings == [
        sentence("ptq.blocks-alone", count=3, block="layers.0"),
    ]


def test_blocks_that_do_not_run_are_rounded_to_nearest_and_said():
    torch.manual_seed(0)
    ready = prepared(Unfinished())
    assert torchqat.calibrate(ready, VECTORS).warnings == [sentence("ptq.one-block-idle", block="layers.2")]
    last = ready.layers[2].linear
    scale, zero = torchqat.ops.choose_qparams(last.weight, (1, -1), 4, "full", "mse", last.weight_spec.scale_dtype)
    torch.testing.assert_close(last.weight_scale.flatten().float(), scale.flatten().float())
    more = Unfinished(4)
    assert torchqat.calibrate(prepared(more), VECTORS).warnings == [
        sentence("ptq.blocks-idle", count=2, block="layers.2")
    ]


def test_blocks_that_change_when_they_run_are_left_in_the_model():
    torch.manual_seed(0)
    found = torchqat.calibrate(prepared(Net(part=Counts)), VECTORS)
    assert found.warnings == [sentence("ptq.block-not-again", block="layers.0")] and len(found.losses) == 3


def test_an_input_after_a_skip_is_what_the_quantized_blocks_give():
    """The statistics of GPTQ, seen by what it makes of the last block: as if that alone were quantized after the others."""
    torch.manual_seed(0)
    model = Skips()
    ready = prepared(model, initialize="{method: gptq, objective: layer, correction: 0}")
    torchqat.calibrate(ready, VECTORS)
    alone = prepared(model, "layers.2.linear", "{method: gptq, objective: layer, correction: 0}")
    with torch.no_grad():
        inputs = [first + ready.layers[1](first) for first in map(ready.layers[0], VECTORS)]
    torchqat.calibrate(alone, inputs, lambda net, batch: net.layers[2](batch))
    assert torch.equal(ready.layers[2].linear.quantized_weight(), alone.layers[2].linear.quantized_weight())


def test_memory_between_two_blocks_is_the_hidden_states():
    """What is recorded holds no hidden states but those that enter the row."""
    ready = prepared(architectures.build("Llama"))
    batches = architectures.tokens()
    row = cut_into_rows(ready, batches, forward).rows[0]
    entering = row.open(ready, batches, forward)
    kept = {t.data_ptr() for block in row.blocks for call in block.calls for _, t in call.tensors()}
    assert not kept & {t.data_ptr() for t in entering}
    assert len(kept) <= 3 * len(batches)  # cosines, sines and positions, which all blocks share


def test_a_cache_that_the_caller_leaves_on_changes_nothing():
    model = architectures.build("Gemma2")
    weights = []
    for options in ({}, {"use_cache": False}):
        ready = torchqat.prepare(copy.deepcopy(model), architectures.recipe("{method: gptq}"))
        torchqat.calibrate(ready, architectures.tokens(), lambda m, batch, o=options: m(batch, **o))
        weights.append([layer.quantized_weight() for _, layer in quant_layers(ready)])
        assert ready.config.use_cache
    assert all(torch.equal(one, other) for one, other in zip(*weights, strict=True))
