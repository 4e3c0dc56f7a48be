"""What a quantized layer takes over from the layer that it stands in for, and layers whose place it cannot take."""

import copy

import pytest
import torch
import torch.nn.functional as F
import torchqat
from sentences import matches
from test_weights import reasons, recipe_of
from torch import nn
from torchqat.checkpoints.export import check_exports
from torchqat.layers.linear import QuantLinear


class Marked(nn.Module):
    """Has put into its layer what it looks for there."""

    def __init__(self):
        super().__init__()
        self.proj = nn.Linear(8, 8)
        self.proj.gain = nn.Parameter(torch.full((8,), 3.0))
        self.proj.register_buffer("shift", torch.ones(8))
        self.proj.register_buffer("seen", torch.zeros(1), persistent=False)
        self.proj.after = nn.Linear(8, 8)
        self.proj.power = 2

    def forward(self, x):
        y = self.proj(x)
        y = y * getattr(self.proj, "gain", 1.0) + getattr(self.proj, "shift", 0.0)
        y = self.proj.after(y) if hasattr(self.proj, "after") else y
        return y ** getattr(self.proj, "power", 1)


def test_what_a_model_has_put_into_a_layer_stays_there(tmp_path):
    model = Marked()
    prepared = torchqat.prepare(copy.deepcopy(model), recipe_of("proj*"))
    assert isinstance(prepared.proj, QuantLinear) and isinstance(prepared.proj.after, QuantLinear)
    x = torch.randn(4, 8)
    y = F.linear(x, prepared.proj.quantized_weight(), model.proj.bias) * 3.0 + 1.0
    y = F.linear(y, prepared.proj.after.quantized_weight(), model.proj.after.bias) ** 2
    torch.testing.assert_close(prepared(x), y)
    assert set(model.state_dict()) <= set(prepared.state_dict())
    assert "proj.seen" not in prepared.state_dict()
    torchqat.export(prepared, tmp_path / "out", format="safetensors")
    torch.testing.assert_close(torchqat.load(Marked(), tmp_path / "out")(x), prepared(x))


def test_a_matrix_beside_the_weight_of_a_layer_is_named():
    model = nn.Sequential(nn.Linear(8, 8))
    model[0].mixing = nn.Parameter(torch.randn(8, 8))
    assert reasons(torchqat.make_plan(model, recipe_of("0"))) == {
        "0.mixing": "a parameter of a Linear beside its weight"
    }
    with pytest.raises(torchqat.RecipeError, match=matches("plan.uncovered", weights="0.mixing")):
        torchqat.make_plan(model, recipe_of("*"))


@pytest.mark.parametrize("name", ["kind", "adapter", "called", "weight_scale"])
def test_names_that_a_quantized_layer_needs_are_refused(name):
    model = nn.Sequential(nn.Linear(8, 8))
    setattr(model[0], name, "mine")
    with pytest.raises(torchqat.RecipeError, match=matches("plan.uncovered", weights="0")) as told:
        torchqat.prepare(model, recipe_of("*"))
    assert f"its attribute {name} has the name of one that a quantized layer has of its own" in str(told.value)


class Dropping(nn.Linear):
    """Does what a linear layer does, but not in training."""

    def forward(self, x):
        return F.linear(x, F.dropout(self.weight, 0.5, self.training), self.bias)


@pytest.mark.parametrize("training", [True, False])
def test_a_subclass_that_differs_in_training_is_not_replaced(training):
    model = nn.Sequential(Dropping(8, 8), nn.Linear(8, 8)).train(training)
    state = torch.get_rng_state()
    assert reasons(torchqat.make_plan(model, recipe_of("1"))) == {"0": "Dropping has a forward of its own"}
    assert torch.equal(torch.get_rng_state(), state) and model[0].training is training


@pytest.mark.parametrize(
    ("dtype", "shape", "why"),
    [
        (torch.float64, (4, 4), "its weight is torch.float64, not float32, float16 or bfloat16"),
        (torch.complex64, (4, 4), "its weight is torch.complex64, not float32, float16 or bfloat16"),
        (torch.float8_e4m3fn, (4, 4), "its weight is torch.float8_e4m3fn, not float32, float16 or bfloat16"),
        (torch.int8, (4, 4), "its weight is torch.int8, quantized already"),
        (torch.float32, (0, 4), "its weight has no elements"),
        (torch.float32, (4, 0), "its weight has no elements"),
    ],
)  # fmt: skip
def test_weights_that_cannot_be_rounded_are_refused(dtype, shape, why):
    model = nn.Sequential(nn.Linear(4, 4))
    model[0].weight = nn.Parameter(torch.zeros(shape, dtype=dtype), requires_grad=False)
    with pytest.raises(torchqat.RecipeError, match=matches("plan.uncovered", weights="0")) as told:
        torchqat.prepare(model, recipe_of("type:Linear"))
    assert why in str(told.value)


def test_a_layer_that_does_not_know_its_size_yet_is_refused():
    with pytest.raises(torchqat.UserError, match=matches("plan.not-made-yet", weight="0.weight")):
        torchqat.prepare(nn.Sequential(nn.LazyLinear(4)), recipe_of("*"))
    model = nn.Sequential(nn.LazyLinear(4))
    model(torch.randn(2, 8))
    assert isinstance(torchqat.prepare(model, recipe_of("*"))[0], QuantLinear)


def test_hooks_of_the_state_go_on():
    model = nn.Sequential(nn.Linear(8, 8))
    seen = []

    def note(what):
        return lambda module, *_: seen.append((what, type(module).__name__))

    handles = [
        model[0].register_state_dict_pre_hook(note("before saving")),
        model[0].register_state_dict_post_hook(note("after saving")),
        model[0]._register_state_dict_hook(note("saving")),
        model[0].register_load_state_dict_pre_hook(note("before loading")),
        model[0]._register_load_state_dict_pre_hook(lambda *_: seen.append(("loading", ""))),
        model[0].register_load_state_dict_post_hook(note("after loading")),
    ]
    prepared = torchqat.prepare(model, recipe_of("*"))
    prepared.load_state_dict(prepared.state_dict())
    names = ["before saving", "after saving", "saving", "before loading", "loading", "after loading"]
    assert seen == [(name, "" if name == "loading" else "QuantLinear") for name in names]
    for handle in handles:
        handle.remove()
    prepared.load_state_dict(copy.deepcopy(prepared).state_dict())
    assert len(seen) == len(names)


class Counting(nn.Linear):
    def get_extra_state(self):
        return {"calls": 3}

    def set_extra_state(self, state):
        self.calls = state["calls"]


class Beside(nn.Module):
    def __init__(self, state):
        super().__init__()
        self.state = state

    def get_extra_state(self):
        return self.state

    def set_extra_state(self, state):
        self.state = state

    def forward(self, x):
        return x


def test_a_layer_with_state_of_another_kind_stays():
    model = nn.Sequential(nn.Linear(8, 8), Counting(8, 8))
    why = reasons(torchqat.make_plan(model, recipe_of("0")))["1"]
    assert why == "Counting keeps state of its own (get_extra_state)"


def test_state_that_is_no_tensor_is_refused_before_it_is_paid_for(tmp_path):
    model = torchqat.prepare(nn.Sequential(nn.Linear(8, 8), Beside({"calls": 3})), recipe_of("0"))
    told = matches("export.no-tensor", name="1._extra_state", type="dict")
    with pytest.raises(torchqat.UserError, match=told):
        torchqat.export(model, tmp_path / "out", "safetensors")
    with pytest.raises(torchqat.UserError, match=told):
        torchqat.live_weights(model, "safetensors")
    plan = torchqat.make_plan(nn.Sequential(nn.Linear(8, 8), Beside("x")), recipe_of("0"))
    with pytest.raises(torchqat.UserError, match=matches("export.no-tensor", name="1._extra_state", type="str")):
        check_exports(nn.Sequential(nn.Linear(8, 8), Beside("x")), plan, ["safetensors"], False)


def test_state_that_is_a_tensor_is_written(tmp_path):
    state = torch.arange(3, dtype=torch.uint8)
    model = torchqat.prepare(nn.Sequential(nn.Linear(8, 8), Beside(state)), recipe_of("0"))
    folder = torchqat.export(model, tmp_path / "out", "safetensors")
    assert torchqat.verify(folder, model, engine="reader").ok
    loaded = torchqat.load(nn.Sequential(nn.Linear(8, 8), Beside(torch.zeros(3, dtype=torch.uint8))), folder)
    assert torch.equal(loaded[1].state, state)
