"""Each trainer, on a schedule that changes widths: what docs/trainers.md says of it (tools/trainer_table.py)."""

import pytest
import torch
import torchqat
from trainers import STEPS, TRAINERS, recipe

EACH = [pytest.param(name, marks=pytest.mark.shows(trainer=name)) for name in TRAINERS]


@pytest.mark.shows(feature="resumed, ends with the same bits")
@pytest.mark.parametrize("scale", ["learned", "mse"])
@pytest.mark.parametrize("trainer", EACH)
def test_a_resumed_training_ends_as_one_that_was_not_stopped(trainer, scale, tmp_path):
    train, of = TRAINERS[trainer], recipe(scale)
    whole = train(tmp_path / "whole", False, of)
    resumed = train(tmp_path / "resumed", True, of)
    assert int(next(value for name, value in whole.state_dict().items() if name.endswith("qat_step"))) == STEPS
    for (name, a), (_, b) in zip(whole.state_dict().items(), resumed.state_dict().items(), strict=True):
        assert torch.equal(a, b), name
