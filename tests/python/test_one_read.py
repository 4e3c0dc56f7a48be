"""A training step waits for its device once: what is to be known of it is put together there and read in one piece.

On a GPU that is none (gpu.py), whose numbers do not count, and where nothing else can be read by accident.
"""

import copy
from types import SimpleNamespace

import pytest
import torch
import torchqat
from gpu import CUDA, OTHER, Gpu
from loops import settings
from test_experts import TOKENS, build
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torchqat._library import OscillationSection
from torchqat.layers.prepared import quant_layers
from torchqat.losses import forward_kl
from torchqat.monitor import Monitor
from torchqat.training.loop import TrainingLoop
from torchqat.training.oscillation import Freezing, against_oscillation

_READS = ("_local_scalar_dense", "item", "is_nonzero", "equal", "allclose", "nonzero", "masked_select")


class Reads(TorchDispatchMode):
    """Counts what waits for a device: numbers read from it, and copies to the host that are not left to go on."""

    def __init__(self, device=None):
        super().__init__()
        self.count, self.device = 0, device

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func._schema.name.split("::")[1]
        self.count += func.namespace == "aten" and self._waits(name, args, kwargs)
        return func(*args, **kwargs)

    def _waits(self, name, args, kwargs):
        if name in _READS:
            return self.device is None or any(self._is_there(argument) for argument in args)
        if name == "copy_":
            return args[0].device.type == "cpu" and self._is_there(args[1])
        to = kwargs.get("device")
        return name == "_to_copy" and self._is_there(args[0]) and to is not None and to.type == "cpu" and (
            not kwargs.get("non_blocking")
        )  # fmt: skip

    def _is_there(self, argument):
        return torch.is_tensor(argument) and self.device is not None and argument.device.type == self.device.type


@pytest.fixture
def gpu():
    with Gpu() as gpu, torch.autograd.set_multithreading_enabled(False):
        yield gpu


def net(device, dtype=torch.float32):
    return nn.Sequential(
        nn.Linear(64, 96, device=device, dtype=dtype), nn.ReLU(), nn.Linear(96, 32, device=device, dtype=dtype)
    )


def recipe_of(rule, train=""):
    return torchqat.parse_recipe(
        f'version: 1\nlayers: [{{match: "*", {rule}}}]\n'
        f"schedule: [{{until: 50%, weight: int8}}, {{until: 100%, weight: int4}}]\ntrain: {{{train}}}\n"
    )


WEIGHT = "weight: {dtype: int4, group_size: 32, scale: %s}"
INPUT = ", input: {dtype: int8, granularity: tensor, observer: moving_average}"
CASES = {
    "minmax": (WEIGHT % "minmax", {}),
    "learned": (WEIGHT % "learned", {}),
    "asymmetric": ("weight: {dtype: int4, group_size: 32, symmetric: false, scale: learned}", {}),
    "learned, micro-batches": (WEIGHT % "learned", {"gradient_accumulation": 2}),
    "learned, sgd": (WEIGHT % "learned", {"optimizer": "sgd"}),
    "learned, muon": (WEIGHT % "learned", {"optimizer": "muon"}),
    "inputs": (WEIGHT % "mse" + INPUT, {}),
    "skips": (WEIGHT % "learned", {"non_finite": "skip"}),
    "frozen": (WEIGHT % "learned", {"oscillation": "freeze"}),
    "dampened": (WEIGHT % "learned", {"oscillation": "dampen"}),
}


def loop_on(device, case, dtype=torch.float32):
    rule, values = CASES[case]
    values = dict(values)
    oscillation = OscillationSection()
    oscillation.method = values.pop("oscillation", "none")
    recipe = recipe_of(rule)
    model = torchqat.prepare(net(device, dtype), recipe)
    teacher = net(device, dtype).requires_grad_(False)
    rows = [torch.randn(4, 64, dtype=dtype) for _ in range(6)]
    return TrainingLoop(
        model, lambda batch: forward_kl(model(batch), teacher(batch)), rows, settings(steps=6, **values),
        schedule=lambda optimizer: torchqat.Schedule(model, recipe, 6, optimizer),
        monitor=Monitor(model), settles=against_oscillation(model, oscillation, 6),
    )  # fmt: skip


def reads_of_each_step(loop, reads):
    found, before = [], reads.count

    def on_step(step, figures):
        nonlocal before
        found.append(reads.count - before)
        before = reads.count
        assert set(figures) >= {"loss", "gradient_norm", "clipped_share", "moved_share"}

    loop.on_step = on_step
    with reads:
        loop.run()
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", CASES)
def test_a_step_is_read_once(case, dtype, gpu):
    """But the first, with which the schedule begins, and the last, after which the state is kept; a stage ends between."""
    found = reads_of_each_step(loop_on(OTHER, case, dtype), Reads(OTHER))
    assert found[1:-1] == [1] * 4, found


def grown(model):
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)


@pytest.mark.parametrize("case", ["minmax", "learned", "inputs"])
def test_under_a_trainer_nothing_is_read_but_what_is_logged(case, gpu):
    from torchqat.training.trainer_callback import TrainerCallback

    recipe = recipe_of(CASES[case][0])
    model = torchqat.prepare(net(CUDA), recipe)
    optimizer = torch.optim.AdamW(torchqat.parameter_groups(model, recipe), foreach=False)
    callback, state = TrainerCallback(recipe), SimpleNamespace(max_steps=10, global_step=0, log_history=[])
    callback.on_train_begin(None, state, None, model=model, optimizer=optimizer)
    reads, found = Reads(CUDA), []
    for _ in range(4):
        before = reads.count
        with reads:
            grown(model)
            optimizer.step()
            callback.on_step_end(None, state, None)
        found.append(reads.count - before)
    assert found == [int(case == "learned"), 0, 0, 0]  # before the first step, scales were not sent ahead
    logs, before = {}, reads.count
    with reads:
        callback.on_log(None, state, None, logs=logs)
    assert reads.count - before == 1 and "qat/clipped_share" in logs


def test_scales_sent_ahead_are_those_of_the_step(monkeypatch):
    """What is read ahead is what would be read in the step, and is not used where a scale was written to since."""
    from torchqat.training import relative_rates

    recipe = recipe_of(CASES["learned"][0], "scale_learning_rate: 1.0e-2")
    ours, theirs = (torchqat.prepare(model, recipe) for model in (lambda m: (m, copy.deepcopy(m)))(net("cpu")))
    monkeypatch.setattr(relative_rates, "_sends", lambda scale: True)
    states = []
    for model in (ours, theirs):
        torch.manual_seed(3)
        optimizer = torch.optim.AdamW(torchqat.parameter_groups(model, recipe))
        schedule = torchqat.Schedule(model, recipe, 8, optimizer)
        for step in range(8):
            model(torch.randn(8, 64)).square().sum().backward()
            if step == 5:
                with torch.no_grad():
                    model[0].weight_scale.mul_(3.0)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        states.append(model.state_dict())
        monkeypatch.setattr(relative_rates, "_sends", lambda scale: False)
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize("scale", ["minmax", "learned"])
def test_experts_read_no_more_than_the_float_model_does(scale):
    """Which tokens an expert gets is read by transformers' own loop."""
    plain = build("qwen3_moe")
    recipe = torchqat.parse_recipe(
        f'version: 1\nlayers: [{{match: "blocks", weight: {{dtype: int4, group_size: 16, scale: {scale}}}}}]\n'
    )
    prepared = torchqat.prepare(copy.deepcopy(plain), recipe)
    assert quant_layers(prepared)
    counts = []
    for model in (plain, prepared):
        reads = Reads()
        with reads:
            model.train()(input_ids=TOKENS).logits.float().square().mean().backward()
        counts.append(reads.count)
    assert counts[0] == counts[1], counts


def test_what_is_frozen_goes_to_the_device_of_its_layer(gpu):
    model = torchqat.prepare(net(OTHER), recipe_of(CASES["learned"][0]))
    freezing = Freezing(model, OscillationSection())
    freezing.step(1)
    state = freezing.state_dict()
    on_host = {
        name: {key: value.cpu() if torch.is_tensor(value) else value for key, value in kept.items()}
        for name, kept in state.items()
    }
    freezing.load_state_dict(on_host)
    freezing.step(2)
    assert all(
        t.device == OTHER for kept in freezing.state_dict().values() for t in kept.values() if torch.is_tensor(t)
    )
