"""Training on several processes that torchrun starts (gloo): what one process gives, and nothing lost when one dies."""

import json
import re
import signal

import psutil
import pytest
import torch
from launcher import said_by, wait_until
from sentences import matches, said
from torchqat.files import load_state


def state(folder):
    return load_state(folder / "checkpoints" / "train.pt")["model"]


def losses(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 9))
    return torch.tensor([line["loss"] for line in lines])


@pytest.mark.shows(trainer="`torchqat train`", feature="several processes (DDP)")
@pytest.mark.parametrize("scale", ["minmax", "learned"])
def test_two_processes_give_the_bits_of_one(scale, train):
    """One process adds the halves of a batch one after the other, as two of them do: the same sums in the same order."""
    alone = train.alone(SCALE=scale, ACCUMULATION=2)
    together, printed = train("together", 2, SCALE=scale, ACCUMULATION=2, by_torchrun=scale == "learned")
    assert torch.equal(losses(alone), losses(together))
    for name, tensor in state(alone).items():
        assert torch.equal(tensor, state(together)[name]), name
    assert len(re.findall(matches("runs.trained-state"), printed)) == 1


def test_four_processes_come_to_the_same_but_for_the_order_of_sums(train):
    alone = train.alone()
    together, _ = train("together", 4)
    torch.testing.assert_close(losses(alone), losses(together), rtol=1e-4, atol=1e-5)
    for name, tensor in state(alone).items():
        torch.testing.assert_close(tensor, state(together)[name], rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize("observer", ["minmax", "moving_average"])
def test_ranges_of_inputs_are_those_of_all_processes(observer, train):
    given = f"input: {{dtype: int8, granularity: tensor, observer: {observer}}}"
    alone = train.alone(INPUT=given)
    together, _ = train("together", 2, INPUT=given)
    one, two = state(alone), state(together)
    ranges = [name for name in one if name.endswith(("input_low", "input_high"))]
    assert len(ranges) == 28
    for name in ranges:
        torch.testing.assert_close(one[name], two[name], rtol=0.05, atol=0.02, msg=name)


@pytest.mark.parametrize("given", ["{dtype: int8}", "{dtype: mxfp4}"])
def test_inputs_without_a_range_have_none_to_share(given, train):
    given = f"input: {given}"
    alone = train.alone(INPUT=given, ACCUMULATION=2, VALIDATE=0)
    together, _ = train("together", 2, INPUT=given, ACCUMULATION=2, VALIDATE=0)
    assert torch.equal(losses(alone), losses(together))
    for name, tensor in state(alone).items():
        assert torch.equal(tensor, state(together)[name]), name


def test_a_run_goes_on_with_another_number_of_processes(train, tmp_path):
    whole = train.alone(ACCUMULATION=2)
    process = train.start("parts", 2, ACCUMULATION=2)
    checkpoint = tmp_path / "parts" / "checkpoints" / "train.pt"
    wait_until(checkpoint.is_file, process)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    resumed, _ = train("parts", 1, "--resume", ACCUMULATION=2)
    for name, tensor in state(whole).items():
        assert torch.equal(tensor, state(resumed)[name]), name


def test_a_process_that_dies_ends_the_others_and_the_run_can_go_on(train, tmp_path):
    whole = train.alone(ACCUMULATION=2)
    process = train.start("broken", 2, ACCUMULATION=2, by_torchrun=True)
    checkpoint = tmp_path / "broken" / "checkpoints" / "train.pt"
    wait_until(checkpoint.is_file, process)
    workers = [child for child in psutil.Process(process.pid).children() if "torchqat" in child.cmdline()]
    if workers:  # it may have finished
        workers[-1].kill()
    process.communicate(timeout=120)
    resumed, _ = train("broken", 2, "--resume", ACCUMULATION=2)
    for name, tensor in state(whole).items():
        assert torch.equal(tensor, state(resumed)[name]), name


def test_rows_that_cannot_be_shared_are_said(train):
    process = train.start("odd", 3, by_torchrun=True)
    _, err = process.communicate(timeout=120)
    assert process.returncode != 0
    assert said(err, "training.rows-not-shared", processes=3, rows=4)


SEEN = """
import sys, torch, torchqat
from torch import nn
from torchqat.training.spread import share_ranges
from torchqat.training.processes import processes, rank

with processes():
    recipe = torchqat.load_recipe("RECIPE")
    model = torchqat.prepare(nn.ModuleList([nn.Linear(8, 8) for _ in range(3)]), recipe).train()
    model[0].set_input_range(-1.0, 1.0 + 2.0 * rank())  # as their own calibration found it
    if rank() == 1:
        model[1].set_input_range(-1.0, 5.0)
    for layer in model:
        layer.observing = True
    share_ranges(model)
    found = [(layer.input_ready, round(layer.input_high.item(), 4)) for layer in model]
    sys.stdout.write(f"{found}\\n")
"""


@pytest.mark.parametrize("observer, shared", [("minmax", 3.0), ("moving_average", 2.0)])
def test_a_range_is_that_of_the_processes_that_saw_the_input(observer, shared, tmp_path):
    """Of the second layer one process saw an input; of the third none did, so that it has no range, not one of 0."""
    recipe = tmp_path / "recipe.yaml"
    given = f"{{dtype: int8, granularity: tensor, observer: {observer}}}"
    recipe.write_text(f"version: 1\nlayers: [{{match: '*', weight: {{dtype: int8}}, input: {given}}}]\n")
    printed = said_by(SEEN.replace("RECIPE", str(recipe)), tmp_path, 2)
    assert printed.count(f"[(True, {shared}), (True, 5.0), (False, 0.0)]") == 2, printed
