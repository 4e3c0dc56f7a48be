"""``Schedule``: widths follow the step, scales follow the widths, and both survive saving."""

import pytest
import torch
import torchqat
from sentences import matches
from small_net import Net, recipe_for
from torch.utils._python_dispatch import TorchDispatchMode

LADDER = """schedule:
  - {until: 20%, weight: int8, input: float}
  - {until: 50%, weight: int6}
  - {until: 100%, weight: int4}
train: {steps: 10}
"""
LEARNED = "{dtype: int4, group_size: 32, scale: learned}"


def start(weight=LEARNED, input="", total=10, optimizer=None):
    recipe = recipe_for(weight, input, LADDER)
    net = torchqat.prepare(Net(), recipe)
    return net, torchqat.Schedule(net, recipe, total, optimizer and optimizer(net))


@pytest.mark.shows(trainer="own loop", feature="widths follow the steps")
def test_widths_go_down_the_ladder():
    net, schedule = start()
    widths = [net.first.weight_bits]
    changes = []
    for _ in range(10):
        changes.append(schedule.step())
        widths.append(net.first.weight_bits)
    assert widths == [8, 8, 6, 6, 6, 4, 4, 4, 4, 4, 4]
    assert [i for i, changed in enumerate(changes, 1) if changed] == [2, 5]


def test_inputs_have_a_ladder_of_their_own():
    net, schedule = start(input="{dtype: int8}")
    assert net.first.input_bits == 0
    schedule.step(), schedule.step()
    assert net.first.input_bits == 8


@pytest.mark.parametrize("weight", [LEARNED, "{dtype: nvfp4, scale: learned}"])
@pytest.mark.parametrize("input", ["{dtype: int8}", "{dtype: int8, granularity: tensor}"])
def test_a_float_stage_trains_no_scale(weight, input):
    ladder = "schedule: [{until: 50%, weight: float}, {until: 100%, weight: int4}]\ntrain: {steps: 10}\n"
    recipe = recipe_for(weight, input, ladder)
    net = torchqat.prepare(Net(), recipe)
    torchqat.calibrate(net, [torch.randn(8, 64)])
    torchqat.Schedule(net, recipe, 10)
    net(torch.randn(8, 64)).square().mean().backward()
    assert net.first.weight_scale.grad is None and net.first.weight.grad.abs().sum() > 0


def test_scales_are_rederived_from_the_master_weight():
    net, schedule = start()
    with torch.no_grad():
        net.first.weight.mul_(3.0)  # training moved it
    for _ in range(5):
        schedule.step()
    expected = torchqat.ops.choose_qparams(net.first.weight, (1, 32), 4, "narrow", "mse", torch.bfloat16)[0]
    assert torch.equal(net.first.weight_scale, expected)


def test_noise_right_after_a_drop_is_that_of_the_new_width():
    net, schedule = start("{dtype: int4, scale: learned, grid: full}")
    net.first.weight.data.normal_()
    for _ in range(5):
        schedule.step()
    w = net.first.weight.detach()
    sqnr = 10 * torch.log10(w.square().sum() / (w - net.first.quantized_weight()).square().sum())
    assert sqnr > 20.0 - 0.5  # 4 bits, 64 elements a scale: at least the floor of 128


def test_moments_of_scales_are_cleared_when_widths_change():
    net, schedule = start(optimizer=lambda net: torch.optim.Adam(net.parameters(), lr=1e-3))
    for _ in range(2):
        net(torch.randn(4, 64)).square().sum().backward()
        schedule.optimizer.step()
        schedule.step()
    state = schedule.optimizer.state
    assert not state[net.first.weight_scale]["exp_avg"].any()
    assert state[net.first.weight]["exp_avg"].any()


OPTIMIZERS = {
    "Adam": lambda p: torch.optim.Adam(p, lr=1e-4, amsgrad=True),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=1e-4, weight_decay=0.0, capturable=False, foreach=True),
    "NAdam": lambda p: torch.optim.NAdam(p, lr=1e-4),
    "Adadelta": lambda p: torch.optim.Adadelta(p, lr=1e-4),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=1e-4),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=1e-4, momentum=0.9, centered=True),
    "SGD": lambda p: torch.optim.SGD(p, lr=1e-4, momentum=0.9),
}


@pytest.mark.parametrize("name", ["weight_scale", "input_scale"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_after_a_drop_a_scale_moves_as_with_a_new_optimizer(optimizer, name):
    make = OPTIMIZERS[optimizer]
    recipe = recipe_for(
        LEARNED,
        "{dtype: int4, granularity: tensor, scale: learned}",
        "schedule: [{until: 50%, weight: int8, input: int8}, {until: 100%}]\n",
    )
    net = torchqat.prepare(Net(), recipe)
    scale = getattr(net.first, name)
    scale.grad = torch.full_like(scale, -1.0)
    used = make([{"params": [scale], "relative": False}])
    schedule = torchqat.Schedule(net, recipe, 400, used)
    for _ in range(200):
        used.step()
        changed = schedule.step()
    assert changed
    twin = scale.detach().clone().requires_grad_()
    twin.grad = scale.grad.clone()
    fresh = make([twin])
    for _ in range(20):
        before = scale.detach().clone()
        used.step()
        fresh.step()
        assert torch.equal(scale, twin)
        if optimizer.startswith("Adam"):
            assert (scale - before).abs().max() <= 1.001e-4


def test_moments_that_are_packed_to_codes_are_made_anew():
    net, schedule = start(optimizer=lambda net: torch.optim.SGD(net.parameters(), lr=1e-3))
    scale = net.first.weight_scale
    schedule.optimizer.state[scale] = {"step": 2, "state1": torch.full(scale.shape, 7, dtype=torch.uint8)}
    schedule.step(), schedule.step()
    assert scale not in schedule.optimizer.state


class HostReads(TorchDispatchMode):
    """Counts the operators that read a tensor on the host, for which a GPU would have to come to its end."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        reads = ("_local_scalar_dense", "item", "is_nonzero", "equal", "allclose", "nonzero", "masked_select")
        self.count += func.namespace == "aten" and func._schema.name.split("::")[1] in reads
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("observer", ["minmax", "moving_average"])
def test_a_step_reads_nothing_on_the_host(observer):
    """The forward of inputs whose range is followed, the backward, and the schedule."""
    recipe = recipe_for(
        LEARNED, f"{{dtype: int8, granularity: tensor, observer: {observer}}}", "train: {freeze_observers: 30%}\n"
    )
    net = torchqat.prepare(Net(), recipe)
    schedule = torchqat.Schedule(net, recipe, 1000, torch.optim.Adam(net.parameters()))
    schedule.step(), schedule.step()
    assert net.first.observing
    reads = HostReads()
    with reads:
        net.train()(torch.randn(4, 64)).square().sum().backward()
        schedule.step()
    assert reads.count == 0
    assert net.first.input_ready and net.first.input_high > 0
    assert schedule.current_step == 3 == net.state_dict()["qat_step"]


def test_the_step_is_in_the_state_dict():
    net, schedule = start()
    for _ in range(6):
        schedule.step()
    assert net.state_dict()["qat_step"].item() == 6
    with torch.no_grad():
        net.first.weight_scale.mul_(1.01)
    twin, other = start()
    twin.load_state_dict(net.state_dict())
    assert other.current_step == 6 and twin.first.weight_bits == 4
    assert torch.equal(twin.first.weight_scale, net.first.weight_scale)  # loaded, not derived again
    x = torch.randn(3, 64)
    assert torch.equal(net(x), twin(x))


def test_state_dict_of_the_schedule():
    net, schedule = start()
    schedule.step()
    assert schedule.state_dict() == {"step": 1, "total_steps": 10}
    other = start(total=20)[1]
    with pytest.raises(torchqat.UserError, match=matches("training.another-length", saved=10, steps=20)):
        other.load_state_dict(schedule.state_dict())


def test_observers_freeze():
    rest = LADDER.replace("steps: 10", "steps: 10, freeze_observers: 30%")
    recipe = recipe_for("{dtype: int4}", "{dtype: int8, granularity: tensor}", rest)
    net = torchqat.prepare(Net(), recipe)
    schedule = torchqat.Schedule(net, recipe, 10)
    seen = []
    for _ in range(5):
        seen.append(net.first.observing)
        schedule.step()
    assert seen == [True, True, True, False, False]


def test_a_calibrated_range_survives_a_change_of_width():
    recipe = recipe_for(
        "{dtype: int8}",
        "{dtype: int4, granularity: tensor, scale: mse}",
        "schedule:\n  - {until: 50%, input: int8}\n  - {until: 100%}\ntrain: {steps: 10}\n",
    )
    net = torchqat.prepare(Net(), recipe)
    torchqat.calibrate(net, [torch.randn(32, 64)])
    top = net.first.input_scale.item() * 7
    schedule = torchqat.Schedule(net, recipe, 10)
    assert net.first.input_scale.item() * 127 == pytest.approx(top, rel=1e-6)
    for _ in range(5):
        schedule.step()
    assert net.first.input_scale.item() * 7 == pytest.approx(top, rel=1e-6)


def test_finish_goes_to_the_exported_width():
    net, schedule = start()
    with pytest.raises(torchqat.UserError, match=matches("export.not-at-exported-width", dtype="int4", width="int8")):
        torchqat.convert(net)
    schedule.finish()
    assert [weights.weight.bits for weights in torchqat.convert(net)] == [4, 4]


def test_bad_arguments():
    recipe = recipe_for(LEARNED)
    with pytest.raises(torchqat.UserError, match=matches("model.not-prepared")):
        torchqat.Schedule(Net(), recipe, 10)
    with pytest.raises(torchqat.UserError, match=matches("training.negative-steps", steps=-1)):
        torchqat.Schedule(torchqat.prepare(Net(), recipe), recipe, -1)


@pytest.mark.shows(trainer="transformers' Trainer", feature="widths follow the steps")
@pytest.mark.parametrize("first", (False, True))
def test_the_trainer_of_transformers(first, tiny_llama, tmp_path):
    """A real one, with its own optimizer, logs and checkpoints."""
    from torchqat import TrainerCallback
    from transformers import Trainer, TrainingArguments
    from transformers import TrainerCallback as Base

    reported = []

    class Reporter(Base):
        def on_log(self, args, state, control, logs=None, **kwargs):
            reported.append(dict(logs))

    recipe = recipe_for(LEARNED, "", LADDER)
    model = torchqat.prepare(tiny_llama, recipe)
    rows = [{"input_ids": row, "labels": row} for row in torch.randint(0, 400, (16, 12))]
    settings = TrainingArguments(
        str(tmp_path), max_steps=10, per_device_train_batch_size=2, logging_steps=1, save_steps=5, report_to=[],
        use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    callback = TrainerCallback(recipe)
    callbacks = [Reporter()] if first else [Reporter(), callback]
    trainer = Trainer(model=model, args=settings, train_dataset=rows, callbacks=callbacks)
    if first:
        callback.add_to(trainer)
    trainer.train()
    bits = [entry["qat/weight_bits"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(bits) == 10 and bits[0] == 8 and bits[-1] == 4 and bits == sorted(bits, reverse=True)
    assert "qat/oscillating_share" in trainer.state.log_history[0]
    assert ("qat/weight_bits" in reported[0]) == first
    assert torchqat.verify(torchqat.export(model, tmp_path / "out"), model).ok


def test_trainer_callback_steps_and_resumes():
    from types import SimpleNamespace

    from torchqat import TrainerCallback

    recipe = recipe_for(LEARNED, "", LADDER)
    net = torchqat.prepare(Net(), recipe)
    callback = TrainerCallback(recipe)
    state = SimpleNamespace(max_steps=10, global_step=0)
    callback.on_train_begin(None, state, None, model=net, optimizer=None)
    for _ in range(5):
        callback.on_step_end(None, state, None)
    assert net.first.weight_bits == 4
    resumed = TrainerCallback(recipe)
    resumed.on_train_begin(None, SimpleNamespace(max_steps=10, global_step=3), None, model=net, optimizer=None)
    assert net.first.weight_bits == 6
    resumed.on_train_end(None, state, None)
    assert net.first.weight_bits == 4
