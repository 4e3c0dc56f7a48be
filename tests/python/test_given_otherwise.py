"""Functions that are given something of another kind than they take say what that is."""

import pytest
import torch
import torchqat
from sentences import matches
from small_net import Net, recipe_for
from torchqat.sensitivity import sensitivity

RECIPE = recipe_for("{dtype: int4, group_size: 32}")
IDS = torch.arange(8).view(1, 8)


def prepared():
    return torchqat.prepare(Net(), RECIPE)


@pytest.mark.parametrize(
    "take",
    [
        lambda model: torchqat.prepare(model, RECIPE),
        lambda model: torchqat.make_plan(model, RECIPE),
        lambda model: torchqat.calibrate(model, []),
        lambda model: torchqat.Schedule(model, RECIPE, 4),
        lambda model: torchqat.parameter_groups(model, RECIPE),
        lambda model: torchqat.evaluate(model, [IDS]),
        lambda model: torchqat.evaluate(Net(), [IDS], model or "none"),
        lambda model: sensitivity(model, torchqat.make_plan(Net(), RECIPE), [IDS]),
        lambda model: torchqat.convert(model),
        lambda model: torchqat.pack(model),
        lambda model: list(torchqat.live_weights(model)),
        lambda model: torchqat.freeze_codes(model),
    ],
)
def test_models(take, tmp_path):
    for given, what in (("model", "'model'"), (Net, "the class Net"), ([Net()], "list")):
        with pytest.raises(torchqat.UserError, match=matches("given.no-module", given=what)):
            take(given)
    with pytest.raises(torchqat.UserError, match=matches("given.no-module")):
        torchqat.export("model", tmp_path / "out", "safetensors")
    with pytest.raises(torchqat.UserError, match=matches("given.no-module")):
        torchqat.load("model", torchqat.export(prepared(), tmp_path / "out", "safetensors"))


@pytest.mark.parametrize("given", (None, 3, b"out"))
def test_paths(given, tmp_path):
    net = prepared()
    for name, take in {
        "output": lambda: torchqat.export(net, given, "safetensors"),
        "folder": lambda: torchqat.verify(given, net),
        "source": lambda: torchqat.quantize_folder(given, tmp_path, RECIPE, [IDS]),
    }.items():
        with pytest.raises(torchqat.UserError, match=matches("given.no-path", name=name, given=repr(given))):
            take()
    with pytest.raises(torchqat.UserError, match=matches("given.no-path", name="folder")):
        torchqat.load(Net(), given)
    with pytest.raises(torchqat.UserError, match=matches("given.no-path", name="output")):
        torchqat.quantize_folder(tmp_path, given, RECIPE, [IDS])
    with pytest.raises(torchqat.UserError, match=matches("given.no-path", name="output")):
        torchqat.imatrix(net, [IDS], given)


def test_recipes():
    for given in ("int4", {"version": 1}, None):
        with pytest.raises(torchqat.UserError, match=matches("given.no-recipe", type=type(given).__name__)):
            torchqat.Schedule(prepared(), given, 4)


@pytest.mark.parametrize("steps", (10.5, 10.0, "10", None))
def test_steps(steps):
    with pytest.raises(torchqat.UserError, match=matches("given.no-steps", steps=repr(steps))):
        torchqat.Schedule(prepared(), RECIPE, steps)


def test_optimizers_and_their_rates():
    net = prepared()
    for given, what in ((torch.optim.AdamW, "the class AdamW"), (net.parameters(), "a generator")):
        with pytest.raises(torchqat.UserError, match=matches("given.no-optimizer", given=what)):
            torchqat.Schedule(net, RECIPE, 4, given)
    for given in (1e-3, "int4", None):
        with pytest.raises(torchqat.UserError, match=matches("given.no-settings", type=type(given).__name__)):
            torchqat.parameter_groups(net, given)


@pytest.mark.parametrize("dtype", ("bfloat16", torch.int8, 16))
def test_dtypes(dtype, tmp_path):
    net, said = prepared(), matches("given.no-dtype", dtype=repr(dtype))
    for take in (
        lambda: torchqat.export(net, tmp_path / "out", "safetensors", dtype=dtype),
        lambda: torchqat.convert(net, dtype),
        lambda: list(torchqat.live_weights(net, "safetensors", dtype)),
    ):
        with pytest.raises(torchqat.UserError, match=said):
            take()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ("gpt", 3, None))
def test_kinds(kind):
    with pytest.raises(torchqat.UserError, match=matches("given.no-kind", kind=kind)):
        torchqat.evaluate(Net(), [IDS], kind=kind)
