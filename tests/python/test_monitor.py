"""What Monitor counts, on weights whose moves are known."""

import json

import pytest
import torch
import torchqat
from command import call
from conftest import RECIPE
from interrupting import Interrupting
from sentences import said
from small_net import Net, recipe_for
from torch import nn
from torchqat.training.monitor import FIGURES, Monitor


def line(
    weight: str = "{dtype: int4, granularity: tensor, grid: full, scale: mse, scale_dtype: float32}", rows: int = 4
):
    """One layer whose scale is 1."""
    model = torchqat.prepare(nn.Sequential(nn.Linear(32, rows, bias=False)), recipe_for(weight))
    with torch.no_grad():
        model[0].weight_scale.fill_(1.0)
        model[0].weight.zero_()
    return model


def put(model, value, count):
    with torch.no_grad():
        model[0].weight.view(-1)[:count] = value


def test_clipped_weights_lie_beyond_the_grid():
    model = line()
    put(model, 7.49, 20)  # the highest level is 7
    assert Monitor(model).step()["clipped_share"] == 0
    put(model, 7.6, 10)
    assert Monitor(model).step()["clipped_share"] == pytest.approx(10 / 128)
    put(model, -8.4, 10)
    assert Monitor(model).step()["clipped_share"] == 0


def test_moves_and_oscillation():
    """Two codes go to and fro, three go up and up."""
    model, seen = line(), None
    monitor = Monitor(model)
    monitor.step()
    for step in range(4):
        with torch.no_grad():
            model[0].weight.view(-1)[:2] = float(step % 2 == 0)
            model[0].weight.view(-1)[2:5] = float(step + 1)
        seen = monitor.step()
        assert seen["moved_share"] == pytest.approx(5 / 128)
        # The first move has no direction to be against.
        assert seen["oscillating_share"] == pytest.approx((2 if step >= 1 else 0) / 128)
    for _ in range(300):
        seen = monitor.step()
    assert seen["moved_share"] == 0 and seen["oscillating_share"] == 0


def test_scales_are_followed_from_where_the_width_was_new():
    model = line("{dtype: int4, granularity: tensor, scale: learned, scale_dtype: float32}")
    with torch.no_grad():
        model[0].weight.normal_()
        model[0].weight_scale.fill_(0.5)
        monitor = Monitor(model)
        assert monitor.step()["scale_change"] == 0
        model[0].weight_scale.fill_(2.0)
    assert monitor.step()["scale_change"] == pytest.approx(2.0)
    model[0].set_bits(3, 0)
    assert monitor.step()["scale_change"] == 0


@pytest.mark.parametrize("sample", (1, 100, 1 << 20))
@pytest.mark.parametrize(
    "weight",
    [
        "{dtype: int4, group_size: 16}",
        "{dtype: int3, scale: learned, symmetric: false}",
        "{dtype: int2, block: [4, 8], symmetric: false}",
        "{dtype: int4, granularity: tensor}",
        "{dtype: int8, grid: signed, group_size: 32, scale: mse}",
    ],
)
def test_every_kind_of_weight_can_be_followed(weight, sample):
    model = torchqat.prepare(Net(), recipe_for(weight))
    monitor = Monitor(model, sample)
    monitor.step()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    seen = monitor.step()
    assert set(seen) == {"clipped_share", "moved_share", "oscillating_share", "scale_change"}
    assert all(0 <= value < 1 for value in seen.values())


def test_the_whole_is_what_the_sample_is_of():
    model = torchqat.prepare(Net(), recipe_for("{dtype: int4, group_size: 16, scale: learned, grid: full}"))
    with torch.no_grad():
        for layer in (model.first, model.second):
            layer.weight_scale.mul_(0.3)
    expected = []
    for layer in (model.first, model.second):
        error = (layer.weight - layer.quantized_weight()).abs()
        half = layer.stored_qparams()[0].repeat_interleave(16, 1)[:, : layer.in_features] / 2
        expected.append((error > half * 1.0001).float().mean().item())
    assert Monitor(model, 1 << 20).step()["clipped_share"] == pytest.approx(sum(expected) / 2)


def test_float_and_fp8_layers_have_no_codes():
    assert Monitor(torchqat.prepare(Net(), recipe_for("{dtype: fp8_e4m3}"))).step() == {}
    recipe = torchqat.parse_recipe(
        'version: 1\nlayers:\n  - {match: "*", weight: {dtype: int4}}\n'
        "schedule:\n  - {until: 50%, weight: float}\n  - {until: 100%, weight: int4}\n"
    )
    model = torchqat.prepare(Net(), recipe)
    torchqat.Schedule(model, recipe, 4)
    assert Monitor(model).step() == {}


def test_a_run_writes_what_it_saw(arguments, recipe_file, tmp_path, capsys):
    assert call(capsys, "train", *arguments)[0] == 0
    lines = [json.loads(text) for text in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 8 and all("oscillating_share" in found for found in lines)
    recipe_file.write_text(recipe_file.read_text().replace("train: {", "train: {monitor: false, "))
    assert call(capsys, "train", *arguments, "--restart")[0] == 0
    assert "clipped_share" not in (tmp_path / "run" / "metrics.jsonl").read_text()


def test_a_run_that_is_resumed_counts_on(arguments, begin, tmp_path):
    """Codes are compared with those of the step before, and scales with those that a width began with."""

    def figures(folder):
        lines = [json.loads(text) for text in (folder / "metrics.jsonl").read_text().splitlines()]
        return {line["step"]: {name: line[name] for name in FIGURES} for line in lines}  # the last line counts

    recipe = RECIPE.replace("learned", "learned, scale_dtype: float32")
    begin(recipe, output=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        begin(recipe, Interrupting(8))  # the state that is kept is that after 6 steps
    begin(recipe, resume=True)
    whole = figures(tmp_path / "whole")
    assert figures(tmp_path / "run") == whole
    for name in ("moved_share", "scale_change", "oscillating_share"):
        assert max(whole[step][name] for step in (7, 8)) > 0, name


def test_tensorboard_that_is_missing_is_named(arguments, recipe_file, capsys, monkeypatch):
    import builtins

    load = builtins.__import__

    def without(name, *rest):
        if name.startswith("torch.utils.tensorboard"):
            raise ImportError(name)
        return load(name, *rest)

    recipe_file.write_text(recipe_file.read_text().replace("train: {", "train: {tensorboard: true, "))
    monkeypatch.setattr(builtins, "__import__", without)
    code, _, err = call(capsys, "train", *arguments)
    assert code == 2 and said(err, "runs.no-tensorboard")


def test_tensorboard_reads_every_step(arguments, recipe_file, tmp_path, capsys):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    recipe_file.write_text(recipe_file.read_text().replace("train: {", "train: {tensorboard: true, "))
    assert call(capsys, "train", *arguments)[0] == 0
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    lines = [json.loads(text) for text in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [(event.step, event.value) for event in events.Scalars("loss")]
    assert losses == [(found["step"], pytest.approx(found["loss"], rel=1e-6)) for found in lines]
    assert [event.value for event in events.Scalars("weight_bits")] == [max(found["weight_bits"]) for found in lines]
    assert "oscillating_share" in events.Tags()["scalars"]
