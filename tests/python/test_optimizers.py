"""Groups of parameters: scales train at rates relative to their size, under any optimizer that a schedule knows."""

import contextlib

import pytest
import torch
import torchqat
from sentences import matches
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
    optimizer = torch.optim.SGD([{"params": list(model.parameters()), "relative": False}], lr=0.5)
    torchqat.Schedule(model, recipe, 4, optimizer)
    before, old_scale = model[0].weight.detach().clone(), model[0].weight_scale.detach().clone()
    model(torch.randn(8, 32)).sum().backward()
    gradient = model[0].weight.grad.clone()
    optimizer.step()
    assert torch.equal(model[0].weight, before - 0.5 * gradient)
    scale = model[0].weight_scale
    assert torch.equal(scale, old_scale - 0.5 * scale.grad)


def relative_step(model, optimizer):
    """By how much of its size the first scale moves in a step, at a rate of a hundredth."""
    before = model[0].weight_scale.detach().clone()
    model(torch.randn(64, 32)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    return ((model[0].weight_scale.detach() - before).abs() / before.abs().mean()).max().item()


def falling(optimizer):
    return torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)


def rising(optimizer):
    shape = {"total_steps": 5, "pct_start": 0.4, "div_factor": 4.0, "anneal_strategy": "linear"}
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.0, **shape)


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize(
    ("scheduler", "shares"), [(falling, [1.0, 0.5, 0.25]), (rising, [0.25, 1.0, 2 / 3])], ids=["falls", "one-cycle"]
)
def test_the_rate_of_a_scale_among_weights_goes_along_with_theirs(model, recipe, scheduler, shares, first):
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.3, weight_decay=0.1)
    rates = scheduler(optimizer) if first else None
    torchqat.Schedule(model, recipe, 4, optimizer)
    rates = rates or scheduler(optimizer)
    for share in shares:
        optimizer.state.clear()
        assert relative_step(model, optimizer) == pytest.approx(1e-2 * share, rel=1e-3)
        rates.step()


def test_a_rate_that_is_set_by_hand_is_relative_to_the_first(model, recipe):
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.3)
    torchqat.Schedule(model, recipe, 4, optimizer)
    optimizer.param_groups[0]["lr"] = 0.03
    again = torch.optim.AdamW(model.parameters())
    again.load_state_dict(optimizer.state_dict())  # which a schedule that goes on has to know
    torchqat.Schedule(model, recipe, 4, again)
    assert relative_step(model, again) == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize("in_tensor", [False, True])
def test_a_rate_that_is_warmed_up_from_zero_by_hand_moves_scales(model, recipe, in_tensor):
    of = torch.tensor if in_tensor else float
    optimizer = torch.optim.AdamW(model.parameters(), lr=of(0.0))
    torchqat.Schedule(model, recipe, 4, optimizer)
    for rate, share in ((0.0, 0.0), (0.1, 1.0), (0.3, 1.0), (0.03, 0.1)):
        optimizer.param_groups[0]["lr"] = of(rate)
        optimizer.state.clear()
        assert relative_step(model, optimizer) == pytest.approx(1e-2 * share, rel=1e-3)


def test_a_rate_that_rises_above_the_first_takes_scales_no_further(model, recipe):
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.3)
    torch.optim.lr_scheduler.CyclicLR(optimizer, 1e-3, 0.3, cycle_momentum=False)
    torchqat.Schedule(model, recipe, 4, optimizer)
    optimizer.param_groups[0]["lr"] = 0.3
    assert relative_step(model, optimizer) == pytest.approx(1e-2, rel=1e-3)


class Around(torch.optim.Optimizer):
    """As wrappers of optimizers are written: it steps by one inside, which has its groups or a list of its own."""

    def __init__(self, parameters, shares):
        super().__init__(parameters, {"lr": 0.3})
        self.inside = torch.optim.AdamW(self.param_groups, lr=0.3)
        if shares:
            self.param_groups = self.inside.param_groups

    def step(self, closure=None):
        self.inside.step()


def test_an_optimizer_around_another_moves_scales_where_both_have_the_groups(model, recipe):
    optimizer = Around(model.parameters(), shares=True)
    torchqat.Schedule(model, recipe, 4, optimizer)
    assert relative_step(model, optimizer) == pytest.approx(1e-2, rel=1e-3)
    sentence = matches("training.groups-inside", optimizer="Around", first="0.weight_scale", count=2)
    with pytest.raises(torchqat.UserError, match=sentence):
        torchqat.Schedule(model, recipe, 4, Around(model.parameters(), shares=False))


def test_zero_points_among_weights_are_in_levels():
    recipe = torchqat.parse_recipe(RECIPE.replace("grid: full", "symmetric: false"))
    model = torchqat.prepare(nn.Sequential(nn.Linear(32, 4)), recipe)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.3, weight_decay=0.1)
    torchqat.Schedule(model, recipe, 4, optimizer)
    before = model[0].weight_zero_point.detach().clone()
    model(torch.randn(64, 32)).square().sum().backward()
    optimizer.step()
    assert (model[0].weight_zero_point - before).abs().max().item() == pytest.approx(1e-2, rel=1e-3)


def test_outside_of_a_step_groups_are_as_they_were(model, recipe):
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.3)
    torchqat.Schedule(model, recipe, 4, optimizer)
    parameters = list(model.parameters())

    def fail():
        assert len(optimizer.param_groups) == 3
        raise ZeroDivisionError

    model(torch.randn(8, 32)).sum().backward()
    for run in (optimizer.step, lambda: optimizer.step(fail)):
        with contextlib.suppress(ZeroDivisionError):
            run()
        state = optimizer.state_dict()
        assert [group["params"] for group in state["param_groups"]] == [list(range(len(parameters)))]
        assert [list(map(id, group["params"])) for group in optimizer.param_groups] == [list(map(id, parameters))]


class OfItsOwnRate(torch.optim.SGD):
    """As Adafactor with ``relative_step``."""

    def __init__(self, parameters):
        super().__init__(parameters, lr=1.0)
        self.param_groups[0]["lr"] = None


@pytest.mark.parametrize("kind", [torch.optim.LBFGS, OfItsOwnRate])
def test_an_optimizer_without_a_rate_for_scales_is_refused(model, recipe, kind):
    optimizer = kind(model.parameters())
    sentence = matches("training.no-rate-of-a-group", first="0.weight_scale", count=2, optimizer=kind.__name__)
    with pytest.raises(torchqat.UserError, match=sentence):
        torchqat.Schedule(model, recipe, 4, optimizer)


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
