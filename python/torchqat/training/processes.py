"""Training on several processes, by PyTorch's own engine: what ``torchrun`` starts takes its share of every batch.

A recipe means the same whatever the number of processes: a step's batch has ``batch_size * gradient_accumulation`` rows, of
which each process takes an equal part, and gradients are averaged.
"""

import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist

from torchqat.data.batch import Batch, rows_of, size_of
from torchqat.errors import UserError

Value = TypeVar("Value")

_TIMEOUT = timedelta(minutes=30)
_PATIENCE = timedelta(days=7)
# Threads of gloo hold what a collective was given for some instructions after it has returned, and PyTorch keeps them alive,
# whatever becomes of their group, once there have been DTensors. Python before 3.14 that ends in that moment aborts.
_LETTING_GO = timedelta(seconds=0.2)
_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # of a container, as it is seen inside


@contextmanager
def processes() -> Iterator[None]:
    """The group of processes that ``torchrun`` started; alone, nothing.

    A process that dies ends the others as well: torchrun stops them, and the checkpoint of the last step stands.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    if torch.cuda.is_available() and _place_here() < torch.cuda.device_count():
        torch.cuda.set_device(_place_here())
    # gloo beside nccl: parts of a model that are offloaded are gathered on the host.
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=_TIMEOUT)
    try:
        yield
    finally:
        dist.destroy_process_group()
        time.sleep(_LETTING_GO.total_seconds())


def _place_here() -> int:
    """This process' number among those of its machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def check_gpu_each() -> None:
    """Raises UserError where this machine has fewer GPUs than processes that train together."""
    here = int(os.environ.get("LOCAL_WORLD_SIZE", str(count())))
    if count() > 1 and here > torch.cuda.device_count():
        raise UserError(
            f"{here} processes on a machine need as many GPUs, but torch sees {torch.cuda.device_count()}; start fewer, or "
            "set device: cpu."
        )


def check_together() -> None:
    """Raises UserError where torchrun started several processes that form no group: each would do all of the work."""
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started > 1 and not dist.is_initialized():
        raise UserError(
            f"A run must be one process, but torchrun started {started}; torchqat train is what shares its work among them, "
            "and torchqat export writes the checkpoint."
        )


def count() -> int:
    """Processes that train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def is_first() -> bool:
    """Whether this process is the one that writes and speaks."""
    return rank() == 0


def wait() -> None:
    """Until every process has come here."""
    if dist.is_initialized():
        dist.barrier()


def wait_for_first() -> None:
    """Until the first process has come here, which may have worked alone for long: calibrated a model, say."""
    if dist.is_initialized():
        group = dist.new_group(backend="gloo", timeout=_PATIENCE)
        dist.barrier(group)
        dist.destroy_process_group(group)


def share(batch: Batch) -> Batch:
    """This process' rows of a step's batch.

    Raises:
        UserError: The rows cannot be shared equally.
    """
    rows, parts = size_of(batch), count()
    if rows % parts:
        raise UserError(
            f"train.batch_size times gradient_accumulation must be a multiple of the {parts} processes, but is {rows}."
        )
    part = rows // parts
    return rows_of(batch, rank() * part, (rank() + 1) * part) if parts > 1 else batch


def mean(value: torch.Tensor) -> torch.Tensor:
    """Of the processes' values."""
    return value if count() == 1 else total(value) / count()


def total(values: torch.Tensor) -> torch.Tensor:
    """Sum over the processes, in place."""
    dist.all_reduce(values)
    return values


def gathered(value: Value) -> list[Value]:
    """That of each process, in their order. All have to call it."""
    if count() == 1:
        return [value]
    values = [value] * count()
    dist.all_gather_object(values, value)
    return values


def first_said(words: list[str]) -> str:
    """The first word that any process has, of the first process that has one; empty if none has. All have to call it."""
    return next((word for each in gathered(words[:1]) for word in each), "")


def _cores() -> int:
    """Those that this process is bound to, but no more than its container has time for: more threads stall each other."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = _QUOTA.read_text().split()
    except (OSError, ValueError):
        return bound
    return bound if quota == "max" else max(1, min(bound, math.ceil(int(quota) / int(period))))


@contextmanager
def all_cores() -> Iterator[None]:
    """For what one process does while the others wait: all cores, where torchrun has left each process one thread."""
    before = torch.get_num_threads()
    if count() > 1 and before == 1:
        torch.set_num_threads(_cores())
    try:
        yield
    finally:
        torch.set_num_threads(before)
