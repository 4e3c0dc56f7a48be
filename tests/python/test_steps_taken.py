"""A schedule beside optimizers that accumulate gradients over several batches."""

import pytest
import torch
import torchqat
from accelerate import Accelerator
from sentences import said
from small_net import Net

RECIPE = torchqat.parse_recipe(
    "version: 1\nlayers: [{match: '*', weight: {dtype: int4, group_size: 32}}]\n"
    "schedule: [{until: 50%, weight: int8}, {until: 100%, weight: int4}]\n",
    "recipe",
)
EACH = 4  # batches of a step


def parts():
    net = torchqat.prepare(Net(), RECIPE)
    return net, torch.optim.SGD(net.parameters(), lr=0.01)


def batches(count):
    return [torch.randn(2, 64) for _ in range(count)]


@pytest.mark.parametrize("where", ["each", "where it syncs"])
def test_accelerate_counts_steps_and_not_batches(where):
    accelerator, (net, optimizer), heard = Accelerator(cpu=True, gradient_accumulation_steps=EACH), parts(), []
    net, optimizer = accelerator.prepare(net, optimizer)
    schedule, bits = torchqat.Schedule(net, RECIPE, 8, optimizer, say=heard.append), []
    for batch in batches(8 * EACH):
        with accelerator.accumulate(net):
            accelerator.backward(net(batch).square().mean())
            optimizer.step()
            if where == "each" or accelerator.sync_gradients:
                schedule.step()
            optimizer.zero_grad()
        bits.append(schedule.weight_bits)
    assert schedule.current_step == 8 and heard == []
    assert bits == [8] * (4 * EACH - 1) + [4] * (4 * EACH + 1)


@pytest.mark.parametrize("each", [1, EACH])
def test_a_loop_of_the_users_own_that_counts_batches_is_told_once(each):
    (net, optimizer), heard = parts(), []
    schedule = torchqat.Schedule(net, RECIPE, 1000, optimizer, say=heard.append)
    for index, batch in enumerate(batches(40)):
        net(batch).square().mean().backward()
        if index % each == each - 1:
            optimizer.step()
            optimizer.zero_grad()
        schedule.step()
    assert len(heard) == (each > 1)
    assert all(said(note, "training.counts-batches", counted=16, taken=4) for note in heard)


def test_steps_that_mixed_precision_skips_at_first_are_not_told():
    (net, optimizer), heard = parts(), []
    schedule = torchqat.Schedule(net, RECIPE, 1000, optimizer, say=heard.append)
    for index, batch in enumerate(batches(40)):
        net(batch).square().mean().backward()
        if index >= 5:
            optimizer.step()
        schedule.step()
    assert heard == []


def test_an_optimizer_that_is_given_again_is_counted_once():
    net, optimizer = parts()
    schedule = torchqat.Schedule(net, RECIPE, 8, optimizer)
    before = len(optimizer._optimizer_step_post_hooks)
    for _ in range(3):
        schedule.optimizer = optimizer
    assert len(optimizer._optimizer_step_post_hooks) == before
    schedule.optimizer = None
    assert len(optimizer._optimizer_step_post_hooks) == before - 1
