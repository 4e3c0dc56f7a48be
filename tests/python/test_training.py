"""The loop: learning rates, groups, accumulation, checkpoints, and what stops it."""

import copy

import pytest
import torch
import torchqat
from loops import loop_for, settings
from sentences import matches
from small_net import Net, recipe_for
from torchqat.files import load_state
from torchqat.training.optimizers import fine_tuning_optimizers, rate_factor, scratch_optimizers


def test_the_rate_warms_up_and_decays():
    section = settings(steps=100)
    rates = [rate_factor(section, step) for step in range(100)]
    assert rates[0] == pytest.approx(0.2) and rates[4] == 1.0
    assert rates[-1] < 0.06 and all(a >= b for a, b in zip(rates[5:], rates[6:], strict=False))
    assert rate_factor(settings(steps=100, learning_rate_decay="constant"), 99) == 1.0


def test_scales_have_a_group_each_without_decay():
    net = torchqat.prepare(Net(), recipe_for("{dtype: int4, group_size: 32, scale: learned, symmetric: false}"))
    (optimizer,) = fine_tuning_optimizers(net, settings(weight_decay=0.1))
    of = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    assert of[id(net.first.weight)]["weight_decay"] == 0.1
    assert of[id(net.first.bias)]["weight_decay"] == 0.0
    assert of[id(net.first.weight_scale)]["relative"] and of[id(net.first.weight_scale)]["weight_decay"] == 0.0
    assert not of[id(net.first.weight_zero_point)]["relative"]


def test_accumulation_is_one_large_batch(tiny_llama):
    whole, parts = copy.deepcopy(tiny_llama), copy.deepcopy(tiny_llama)
    torch.manual_seed(5)
    loop_for(whole, settings(steps=1)).run()
    torch.manual_seed(5)
    loop_for(parts, settings(steps=1, gradient_accumulation=4)).run()
    a, b = whole.model.layers[0].mlp.up_proj.weight, parts.model.layers[0].mlp.up_proj.weight
    # Adam's first step is the sign of the gradient: nearly all signs agree, whatever the order of the sums.
    assert ((a - b).abs() < 1e-6).float().mean() > 0.999


@pytest.mark.parametrize("stop_after", (1, 3, 4, 7))
def test_a_run_that_died_goes_on_with_the_same_bits(stop_after, tiny_llama, tmp_path):
    recipe = recipe_for(
        "{dtype: int4, group_size: 32, scale: learned}", "",
        "schedule:\n  - {until: 40%, weight: int8}\n  - {until: 100%, weight: int4}\n",
    )  # fmt: skip

    class Killed(Exception):
        pass

    def train(folder, stop=None):
        torch.manual_seed(9)
        model = torchqat.prepare(copy.deepcopy(tiny_llama), recipe)

        def on_step(step, figures):
            if step == stop:
                raise Killed

        loop = loop_for(
            model,
            settings(steps=8, checkpoint_every=3),
            schedule=lambda optimizer: torchqat.Schedule(model, recipe, 8, optimizer),
            checkpoint=folder / "train.pt",
            on_step=on_step,
        )
        return loop.run()

    expected = train(tmp_path / "whole").state_dict()
    with pytest.raises(Killed):
        train(tmp_path / "parts", stop_after)
    resumed = train(tmp_path / "parts").state_dict()
    assert expected.keys() == resumed.keys()
    assert all(torch.equal(expected[key], resumed[key]) for key in expected)


def test_a_checkpoint_of_another_run_is_refused(tiny_llama, tmp_path):
    loop_for(tiny_llama, settings(steps=1), checkpoint=tmp_path / "train.pt", identity="one").run()
    with pytest.raises(torchqat.UserError, match=matches("training.another-run")):
        loop_for(tiny_llama, settings(steps=2), checkpoint=tmp_path / "train.pt", identity="two").run()


def test_a_damaged_checkpoint_is_one_sentence(tmp_path):
    (tmp_path / "train.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(torchqat.UserError, match=matches("training.checkpoint-does-not-load")):
        load_state(tmp_path / "train.pt")


def test_a_loss_that_is_not_finite_stops_the_run(tiny_llama):
    loop = loop_for(tiny_llama, settings(steps=3))
    loop.loss = lambda batch: tiny_llama.model.norm.weight.sum() * float("nan")
    with pytest.raises(torchqat.UserError, match=matches("training.loss-not-finite", loss="nan", step=0)):
        loop.run()


def test_scratch_optimizers_cover_every_parameter_once(tiny_llama):
    optimizers = scratch_optimizers(tiny_llama, settings(learning_rate=2e-2))
    covered = [id(p) for o in optimizers for group in o.param_groups for p in group["params"]]
    assert sorted(covered) == sorted({id(p) for p in tiny_llama.parameters()})
