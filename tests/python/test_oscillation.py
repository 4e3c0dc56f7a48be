"""What is done about codes that keep moving to and fro: (30) to (32) against slow loops."""

import math

import pytest
import torch
import torchqat
from sentences import said
from torch import nn
from torchqat._library import OscillationSection
from torchqat.training.oscillation import Dampening, Freezing, Moves, unsettled_note

RECIPE = """version: 1
layers:
  - match: "*"
    weight: {dtype: int4, granularity: channel, grid: full, scale: mse}
"""


def layer():
    torch.manual_seed(0)
    model = torchqat.prepare(nn.Sequential(nn.Linear(16, 4, bias=False)), torchqat.parse_recipe(RECIPE, "recipe"))
    return model, model[0]


def settings(method, **values):
    found = OscillationSection()
    found.method = method
    for name, value in values.items():
        setattr(found, name, value)
    return found


def test_frequencies_follow_their_equation():
    series = torch.randint(-2, 3, (40, 3, 5), generator=torch.Generator().manual_seed(0)).to(torch.int8)
    moves = Moves(series[0])
    for codes in series[1:]:
        moves.update(codes)
    for row in range(3):
        for column in range(5):
            last, frequency = 0, 0.0
            for before, now in zip(series[:-1, row, column].tolist(), series[1:, row, column].tolist(), strict=True):
                move = (now > before) - (now < before)
                frequency = 0.99 * frequency + 0.01 * float(move != 0 and move == -last)
                last = move or last
            assert moves.frequency[row, column].item() == pytest.approx(frequency, rel=1e-5)


def test_dampening_draws_weights_to_their_levels():
    model, linear = layer()
    before, level = linear.master.clone(), linear.quantized_weight()
    codes = linear.codes()
    Dampening(model, settings("dampen", dampening=0.5), 10).step(5)
    share = 0.5 * 0.5 * (1 - math.cos(math.pi / 2))
    half = linear.weight_scale / 2
    inside = (before - level).abs() <= half * 1.0002
    assert inside.sum() > 0 and torch.equal(linear.master[~inside], before[~inside])
    torch.testing.assert_close(linear.master[inside], (before + share * (level - before))[inside])
    assert torch.equal(linear.codes(), codes)  # a weight comes nearer to the level that it has


def test_dampening_begins_at_nothing():
    model, linear = layer()
    before = linear.master.clone()
    Dampening(model, settings("dampen"), 10).step(0)
    assert torch.equal(linear.master, before)


def oscillate(model, linear, freezing, steps):
    """Element [0, 0] goes to and fro across the border of two levels, three steps of four on the upper one."""
    scale = linear.weight_scale[0, 0].item()
    for step in range(steps):
        with torch.no_grad():
            linear.weight[0, 0] = scale * (1.4 if step % 4 == 3 else 1.6)
        freezing.step(step + 1)


def test_a_weight_that_oscillates_is_held_where_it_was_on_average():
    model, linear = layer()
    freezing = Freezing(model, settings("freeze", threshold=0.02))
    others = linear.weight.clone()
    oscillate(model, linear, freezing, 40)
    assert linear.weight[0, 0] == 2 * linear.weight_scale[0, 0]
    assert freezing.share == 1 / 64
    others[0, 0] = linear.weight[0, 0].detach()
    assert torch.equal(linear.weight, others)


def test_one_that_does_not_is_left_alone():
    model, linear = layer()
    freezing = Freezing(model, settings("freeze", threshold=0.02))
    with torch.no_grad():
        for step in range(40):
            linear.weight[0, 0] += 0.01
            freezing.step(step)
    assert freezing.share == 0.0


def test_a_frozen_weight_follows_a_scale_that_moves():
    model, linear = layer()
    freezing = Freezing(model, settings("freeze", threshold=0.02))
    oscillate(model, linear, freezing, 40)
    linear.weight_scale.mul_(2)
    freezing.step(41)
    assert linear.weight[0, 0] == 2 * linear.weight_scale[0, 0]


def test_state_goes_through_a_checkpoint(tmp_path):
    model, linear = layer()
    freezing = Freezing(model, settings("freeze", threshold=0.02))
    oscillate(model, linear, freezing, 30)
    torch.save(freezing.state_dict(), tmp_path / "state.pt")
    other_model, other = layer()
    other.load_state_dict(linear.state_dict())
    resumed = Freezing(other_model, settings("freeze", threshold=0.02))
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    oscillate(model, linear, freezing, 20)
    oscillate(other_model, other, resumed, 20)
    assert torch.equal(linear.weight, other.weight) and freezing.share == resumed.share > 0


def test_a_new_width_frees_all():
    model, linear = layer()
    freezing = Freezing(model, settings("freeze", threshold=0.02))
    oscillate(model, linear, freezing, 40)
    linear.set_bits(3, 0)
    freezing.step(41)
    assert freezing.share == 0.0


RUN = """version: 1
data: {calibration: {samples: 2, sequence_length: 32}, evaluation: {samples: 4, sequence_length: 32}}
layers:
  - match: "model.layers.*"
    weight: {dtype: int2, group_size: 32, grid: full, scale: learned}
train: {steps: 8, batch_size: 2, sequence_length: 32, checkpoint_every: 4, validate_every: 0,
        learning_rate: 5.0e-3, oscillation: {METHOD}}
"""


@pytest.mark.parametrize("method", ["method: dampen, dampening: 0.2", "method: freeze, threshold: 0.005"])
def test_a_run_that_is_interrupted_ends_with_the_same_bits(method, tmp_path, model_folder, data_folder):
    from torchqat.runs.fine_tune import fine_tune
    from torchqat.runs.progress import Progress
    from torchqat.runs.run import Run

    def trained(folder, stop):
        recipe = torchqat.parse_recipe(RUN.replace("METHOD", method), "recipe")
        recipe.model.path, recipe.data.train = str(model_folder), str(data_folder)
        run = Run(recipe, folder, Progress(quiet=True))
        with run.opened():
            if stop:
                with pytest.raises(KeyboardInterrupt):
                    _stopped(fine_tune, run, stop)
            return fine_tune(run)

    def _stopped(function, run, step):
        def interrupt(*_):
            def at(taken, _figures):
                if taken == step:
                    raise KeyboardInterrupt

            return at

        steps, run.progress.steps = run.progress.steps, interrupt
        try:
            function(run)
        finally:
            run.progress.steps = steps

    whole, resumed = trained(tmp_path / "whole", 0), trained(tmp_path / "resumed", 5)
    for (name, a), (_, b) in zip(whole.state_dict().items(), resumed.state_dict().items(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("dtype", ["iq4_nl", "nvfp4"])
def test_levels_that_have_no_one_step_are_told(dtype):
    rule = "{{match: '{}', weight: {{dtype: {}}}}}".format
    recipe = torchqat.parse_recipe(f"version: 1\nlayers: [{rule('0', 'int4')}, {rule('1', dtype)}]\n", "recipe")
    model = torchqat.prepare(nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 8)), recipe)
    assert said(unsettled_note(model, settings("dampen")), "training.no-integer-levels", layers="1")
    assert unsettled_note(model, settings("none")) == unsettled_note(layer()[0], settings("freeze")) == ""
