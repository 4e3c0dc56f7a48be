"""What a ``Schedule`` does not take."""

import pytest
import torchqat
from sentences import matches
from small_net import Net, recipe_for
from test_schedule import LEARNED, start


@pytest.mark.parametrize(
    "state, key, what",
    [
        ({}, "step", "is an empty dict"),
        (None, "step", "is NoneType"),
        ({"step": 1}, "total_steps", "is a dict of step"),
        ({"step": "1", "total_steps": 10}, "step", "has '1' there"),
        ({"step": -1, "total_steps": 10}, "step", "has -1 there"),
        ({"step": 1, "total_steps": 10.0}, "total_steps", "has 10.0 there"),
    ],
)
def test_what_is_no_state_of_a_schedule(state, key, what):
    net, schedule = start()
    with pytest.raises(torchqat.UserError, match=matches("given.no-schedule-state", key=key, what=what)):
        schedule.load_state_dict(state)
    assert schedule.current_step == 0 == net.state_dict()["qat_step"]


def test_a_run_that_is_too_short_for_the_last_stage():
    """It would train at 8 bits alone, and be exported in 4."""
    recipe = recipe_for(LEARNED, "", "schedule: [{until: 50, weight: int8}, {until: 100%}]\n")
    net = torchqat.prepare(Net(), recipe)
    with pytest.raises(torchqat.UserError, match=matches("training.last-stage-not-reached", steps=10, begins=50)):
        torchqat.Schedule(net, recipe, 10)
    assert torchqat.Schedule(net, recipe, 60).weight_bits == 8
