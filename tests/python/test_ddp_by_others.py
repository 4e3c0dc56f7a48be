"""DDP by way of transformers' Trainer, Accelerate and Lightning, on two processes (gloo)."""

from pathlib import Path

import pytest
import torch
from forked import Program

PROGRAM = Path(__file__).with_name("ddp_by_others.py")


@pytest.mark.shows(feature="several processes (DDP)")
@pytest.mark.parametrize(
    "trainer",
    [
        pytest.param("trainer", marks=pytest.mark.shows(trainer="transformers' Trainer")),
        pytest.param("recomputing", marks=pytest.mark.shows(trainer="transformers' Trainer")),
        pytest.param("accelerate", marks=pytest.mark.shows(trainer="Accelerate")),
        pytest.param("lightning", marks=pytest.mark.shows(trainer="Lightning")),
    ],
)
def test_two_processes_come_to_what_one_does(trainer, tmp_path):
    """Ranges of inputs, which follow, are those of the rows of both: DDP itself keeps what the first has seen alone."""
    for count in (1, 2):
        program = Program([PROGRAM, trainer, tmp_path], tmp_path, str(count), count)
        _, err = program.communicate()
        assert program.returncode == 0, err[-3000:]
    alone, first, second = (torch.load(tmp_path / f"{name}.pt") for name in ("1-0", "2-0", "2-1"))
    for name, tensor in alone.items():
        assert torch.equal(first[name], second[name]), name
        if name.endswith(("input_low", "input_high")):
            torch.testing.assert_close(first[name], tensor, rtol=0.05, atol=0.02, msg=name)
        elif name.endswith(".weight"):
            torch.testing.assert_close(first[name], tensor, rtol=0.0, atol=1e-3, msg=name)
    assert int(next(value for name, value in first.items() if name.endswith("qat_step"))) == 8
