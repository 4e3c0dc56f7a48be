"""FSDP2 by way of Accelerate and transformers' Trainer, on two processes (gloo)."""

import json
from pathlib import Path

import pytest
from forked import Program
from sentences import said

PROGRAM = Path(__file__).with_name("fsdp_by_others.py")


@pytest.fixture
def found(tmp_path):
    """What two processes of the program find."""

    def found(what):
        program = Program([PROGRAM, what, tmp_path], tmp_path, count=2)
        _, err = program.communicate()
        assert program.returncode == 0, err
        return json.loads((tmp_path / "found.json").read_text())

    return found


@pytest.mark.shows(trainer="Accelerate", feature="several processes (FSDP2)")
def test_accelerate_spreads_a_model_and_resumes_it_with_the_same_bits(found):
    """Each process observes the inputs of its own rows: ranges are shared, or each would round by its own."""
    seen = found("accelerate")
    assert seen.pop("equal codes") > 0.98  # than of one process: sums have another order
    assert seen == {"sharded": True, "same bits": True, "same ranges": True, "written": True}


@pytest.mark.shows(trainer="transformers' Trainer", feature="several processes (FSDP2)")
def test_the_trainer_spreads_a_model(found):
    assert found("trainer") == {"sharded": True, "widths": [8.0] * 3 + [4.0] * 5}


def test_accelerates_bf16_is_refused(found):
    """It gathers weights in bfloat16, before they are rounded."""
    assert said(found("bf16")["refused"], "training.gathered-in-another-dtype", dtype="float32", found="bfloat16")
