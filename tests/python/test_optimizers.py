"""Groups of parameters: scales train at rates relative to their size, under any optimizer that a schedule knows."""

import pytest
import torch
import torchqat
from torch import nn

RECIPE = """version: 1
layers: [{match: "*", weight: {dtype: int4, group_size: 8, grid: full, scale: learned}}]
schedule: [{until: 50%, weight: int8}, {until: 100%, weight: int4}]
train: {learning_rate: 1.0e-3, scale_learning_rate: 1.0e-2, weight_decay: 0.1}
"""


@pytest.fixture
def recipe():
    return torchqat.parse_recipe(RECIPE)


@pytest.fixture
def model(recipe):
    net = nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 4))
    with torch.no_grad():
        net[2].weight.mul_(100)
    return torchqat.prepare(net, recipe)


def test_every_parameter_is_in_one_group(model, recipe):
    groups = torchqat.parameter_groups(model, recipe)
    ids = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(ids) == sorted(map(id, model.parameters())) and len(set(ids)) == len(ids)
    assert [(group["lr"], group["weight_decay"]) for group in groups] == [(1e-3, 0.1), (1e-3, 0.0)] + [(1e-2, 0.0)] * 2
    assert [group["relative"] for group in groups] == [False, False, True, True]
    assert torchqat.parameter_groups(model, recipe.train)[2:] == groups[2:]
    model.requires_grad_(False)
    assert torchqat.parameter_groups(model, recipe) == []


@pytest.mark.parametrize("scheduled", [False, True])
def test_a_scale_moves_by_a_share_of_its_size(model, recipe, scheduled):
    """The first step of Adam is the rate itself: a hundredth of the mean magnitude, whatever that is, at every width."""
    optimizer = torch.optim.AdamW(torchqat.parameter_groups(model, recipe))
    rates = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5) if scheduled else None
    torchqat.Schedule(model, recipe, 4, optimizer)
    schedule = torchqat.Schedule(model, recipe, 4, optimizer)  # a second one multiplies no second time
    for step in range(4):
        scales = [layer.weight_scale for layer in (model[0], model[2])]
        before = [scale.detach().clone() for scale in scales]
        optimizer.state.clear()
        model(torch.randn(64, 32)).square().sum().backward()
        optimizer.step()
        rate = 1e-2 * (0.5**step if scheduled else 1)
        for scale, old in zip(scales, before, strict=True):
            moved = (scale.detach() - old).abs()
            assert torch.allclose(moved, rate * old.abs().mean().expand_as(moved), rtol=1e-3)
        assert [group["lr"] for group in optimizer.param_groups[2:]] == [pytest.approx(rate)] * 2  # as it was
        optimizer.zero_grad()
        schedule.step()
        if rates is not None:
            rates.step()


def test_other_groups_are_left_alone(model, recipe):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    torchqat.Schedule(model, recipe, 4, optimizer)
    before = model[0].weight.detach().clone()
    model(torch.randn(8, 32)).sum().backward()
    gradient = model[0].weight.grad.clone()
    optimizer.step()
    assert torch.equal(model[0].weight, before - 0.5 * gradient)


def relative_step(model, optimizer):
    """By how much of its size the first scale moves in a step, at a rate of a hundredth."""
    before = model[0].weight_scale.detach().clone()
    model(torch.randn(64, 32)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    return ((model[0].weight_scale.detach() - before).abs() / before.abs().mean()).max().item()


def test_wrapped_and_copied_optimizers_and_tensor_rates(model, recipe):
    import copy
    from types import SimpleNamespace

    optimizer = torch.optim.AdamW(torchqat.parameter_groups(model, recipe))
    torchqat.Schedule(model, recipe, 4, SimpleNamespace(optimizer=optimizer))  # as Accelerate wraps it
    assert relative_step(model, optimizer) == pytest.approx(1e-2, rel=1e-4)
    for group in optimizer.param_groups:
        group["lr"] = torch.tensor(group["lr"])
    optimizer.state.clear()
    assert relative_step(model, optimizer) == pytest.approx(1e-2, rel=1e-4)
    assert optimizer.param_groups[2]["lr"] == pytest.approx(1e-2)
    copied_model, copied = copy.deepcopy((model, optimizer))
    copied.state.clear()
    torchqat.Schedule(copied_model, recipe, 4).optimizer = copied  # as Lightning's callback sets it
    assert relative_step(copied_model, copied) == pytest.approx(1e-2, rel=1e-4)


def test_a_step_that_fails_leaves_the_rates(model, recipe):
    optimizer = torch.optim.AdamW(torchqat.parameter_groups(model, recipe))
    torchqat.Schedule(model, recipe, 4, optimizer)

    def fail():
        raise ZeroDivisionError

    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            optimizer.step(fail)
    optimizer.state.clear()
    assert relative_step(model, optimizer) == pytest.approx(1e-2, rel=1e-4)
    assert optimizer.param_groups[2]["lr"] == 1e-2
