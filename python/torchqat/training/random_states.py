"""The generators of random numbers that models draw from in training, of each process its own."""

import random

import numpy as np
import torch
from torch import Tensor

from torchqat.training.processes import gathered, rank

# Between the seeds of processes that begin at a step at which they were not there, and of those that were.
_APART = 1_000_003

States = dict[str, Tensor]


def seed_generators(seed: int) -> None:
    """Seed torch's generators, Python's and NumPy's for this process: no two of them draw the same dropout."""
    seed += rank()
    torch.manual_seed(seed)  # of each device
    random.seed(seed)
    np.random.seed(seed % 2**32)


def generator_states() -> list[States]:
    """What the generators of each process would draw next. All have to call it."""
    _, numbers, position = np.random.get_state()[:3]
    states = {
        "cpu": torch.get_rng_state(),
        "python": torch.tensor(random.getstate()[1]),
        "numpy": torch.tensor([*numbers.tolist(), position]),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        states["cuda"] = torch.cuda.get_rng_state()
    return gathered(states)


def restore_generators(states: States, step: int, own: bool = True) -> None:
    """Go on from ``states``.

    Args:
        states: By ``generator_states``; those of torch's on the host at least.
        step: The step that they were kept after.
        own: Whether they are those of this process. One that was not there then takes a seed of its own.
    """
    torch.set_rng_state(states["cpu"])
    if not own:
        seed_generators(torch.initial_seed() + _APART * (1 + step))
        return
    if "python" in states:
        random.setstate((3, tuple(states["python"].tolist()), None))
    if "numpy" in states:
        *numbers, position = states["numpy"].tolist()
        np.random.set_state(("MT19937", np.array(numbers, dtype=np.uint32), position))
    if torch.cuda.is_available():
        if "cuda" in states:
            torch.cuda.set_rng_state(states["cuda"])
        else:
            torch.cuda.manual_seed(torch.initial_seed())
