"""``calibrate``: ranges of inputs whose scale is fixed."""

import copy

import pytest
import torch
import torchqat
from sentences import matches
from small_net import Net, recipe_for

STATIC = "{dtype: int8, granularity: tensor%s}"


def prepared(extra=""):
    return torchqat.prepare(Net(), recipe_for("{dtype: int8}", STATIC % extra))


def test_minmax_takes_the_union_of_the_batches():
    net = prepared()
    ranges = torchqat.calibrate(net, [torch.full((2, 64), 2.0), torch.full((2, 64), -254.0)]).ranges
    assert ranges["first"] == (-254.0, 2.0)
    assert net.first.input_scale.item() == 2.0


def test_what_is_not_finite_is_ignored():
    net = prepared()
    batch = torch.ones(1, 64)
    batch[0, 0], batch[0, 1] = float("nan"), float("inf")
    assert torchqat.calibrate(net, [batch]).ranges["first"] == (1.0, 1.0)


def test_mse_clips_outliers():
    batch = torch.randn(64, 64)
    batch[0, 0] = 40.0
    widest, searched = prepared(), prepared(", scale: mse")
    for net in (widest, searched):
        torchqat.calibrate(net, [batch])

    def error(net):
        return (net.first.quantized_input(batch) - batch).square().sum()

    assert searched.first.input_scale < widest.first.input_scale
    assert error(searched) <= error(widest)


def test_asymmetric_ranges_have_a_zero_point():
    net = prepared(", symmetric: false")
    torchqat.calibrate(net, [torch.rand(4, 64)])
    assert net.first.input_zero_point.item() == -128
    assert torchqat.convert(net)[0].input_zero_point.item() == -128


def test_learned_inputs_start_from_the_search_and_train():
    net = prepared(", scale: learned")
    x = torch.randn(8, 64)
    torchqat.calibrate(net, [x])
    net(x).square().sum().backward()
    assert net.first.input_scale.grad.abs().item() > 0
    assert torchqat.convert(net)[0].input_scale.item() == pytest.approx(net.first.input_scale.item())


def test_dynamic_inputs_need_no_calibration():
    net = torchqat.prepare(Net(), recipe_for("{dtype: int8}", "{dtype: int8}"))
    assert torchqat.calibrate(net, []).ranges == {}


def test_blocks_that_are_run_again_and_again_keep_no_keys_and_values(tiny_llama):
    """A model called as users call it begins a cache, which would grow with each run of a block."""
    layers = "layers: [{match: 'model.layers.*', weight: {dtype: int4, group_size: 32}}]"
    text = f"version: 1\n{layers}\ninitialize: {{method: gptq}}\n"
    batches = [torch.randint(0, 400, (2, 16)) for _ in range(2)]

    def codes(use_cache):
        model = torchqat.prepare(copy.deepcopy(tiny_llama), torchqat.parse_recipe(text, "recipe"))
        torchqat.calibrate(model, batches, forward=lambda model, batch: model(batch, use_cache=use_cache))
        return [layer.codes for layer in torchqat.convert(model)]

    assert all(map(torch.equal, codes(True), codes(False)))


def test_no_batches_is_an_error():
    with pytest.raises(torchqat.UserError, match=matches("ptq.no-batches")):
        torchqat.calibrate(prepared(), [])


def test_an_unprepared_model_is_an_error():
    with pytest.raises(torchqat.UserError, match=matches("model.not-prepared")):
        torchqat.calibrate(Net(), [torch.ones(1, 64)])


def test_evaluation_does_not_move_a_range():
    net = prepared()
    torchqat.calibrate(net, [torch.ones(1, 64)])
    net.first.observing = True
    net.eval()(torch.full((1, 64), 100.0))
    assert net.first.input_high.item() == 1.0
    net.train()(torch.full((1, 64), 100.0))
    assert net.first.input_high.item() == 100.0


def test_learned_inputs_have_no_part_while_they_pass_as_they_are():
    """In a stage that leaves inputs in floating point, and before they are calibrated."""
    rest = "schedule: [{until: 50%, weight: int8, input: float}, {until: 100%}]\n"
    of = recipe_for("{dtype: int8}", STATIC % ", scale: learned", rest)
    for calibrates in (True, False):
        net = torchqat.prepare(Net(), of)
        if calibrates:
            torchqat.calibrate(net, [torch.randn(4, 64)])
        schedule = torchqat.Schedule(net, of, 4, say=lambda _note: None)
        for _ in range(4):
            net.zero_grad()
            net(torch.randn(4, 64)).square().sum().backward()
            rounds = calibrates and schedule.current_step >= 2
            assert (net.first.input_scale.grad is not None) == rounds
            schedule.step()
