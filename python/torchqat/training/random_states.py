"""The generators of random numbers that models draw from in training, of each process its own."""

import random
from typing import Any

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


def named(generators: list[States]) -> dict[str, Tensor]:
    """Their states by one name each."""
    return {f"generators.{i}.{name}": state for i, states in enumerate(generators) for name, state in states.items()}


def places(facts: dict[str, Any]) -> list[States]:
    """Where the states of ``facts["generators"]`` go, the length of each by its name; without, one of the CPU."""
    if "generators" not in facts:
        return [{"cpu": torch.get_rng_state()}]
    dtypes = {"python": torch.int64, "numpy": torch.int64}
    return [
        {name: torch.empty(size, dtype=dtypes.get(name, torch.uint8)) for name, size in sizes.items()}
        for sizes in facts["generators"]
    ]


def restore_own(kept: list[States], step: int) -> None:
    """Go on from what ``generator_states`` gave after ``step`` steps; a process that was not there takes its own seed."""
    there = rank() < len(kept)
    states = kept[rank() if there else 0]
    torch.set_rng_state(states["cpu"])
    if not there:
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
