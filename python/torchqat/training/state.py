"""The state of a training on disk: one file, or, of a model that is spread over processes, a folder with their parts.

The parts are written by PyTorch's distributed checkpointing (DCP) as safetensors, so that any number of processes can go on
from them, one among them; nothing in them is pickled.
"""

import os
import shutil
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from torchqat.errors import UserError, first_line
from torchqat.files import load_state, read_json, save_state, sync, write_json
from torchqat.layers.sharded import is_sharded
from torchqat.layers.state_text import TEXT
from torchqat.training.processes import is_first, wait
from torchqat.training.random_states import States, named, places, restore_own

# Of a file, beside facts.
_TENSORS = ("model", "optimizers", "random", "generators")
# Of what is written here. A state without it is one of version 1.
VERSION = 1


@dataclass
class SavedState:
    """A state that was kept.

    Attributes:
        path: The file or folder that holds it.
        facts: What was kept beside tensors; ``step`` and ``identity`` at least.
    """

    path: Path
    facts: dict[str, Any]
    _state: dict[str, Any] | None = field(default=None, repr=False)  # of a file

    def restore(
        self,
        model: nn.Module,
        optimizers: Iterable[Optimizer] = (),
        random: bool = False,
        keep: Iterable[str] = (),
    ) -> None:
        """Put the state into ``model`` and ``optimizers``.

        Args:
            model: As it was when the state was kept, spread over any number of processes or whole.
            optimizers: In the order in which they were kept.
            random: Also let generators of random numbers go on: of each process that was there when it was kept, its own.
            keep: Names of tensors of ``model`` that stay as they are.
        """
        optimizers = list(optimizers)
        kept = {name: tensor.clone() for name, tensor in model.state_dict().items() if name in set(keep)}
        if self._state is None:
            _read_parts(self, model, optimizers, random, kept)
            return
        model.load_state_dict({**self._state["model"], **kept})
        if optimizers:
            for optimizer, saved in zip(optimizers, self._state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
        if random:
            restore_own(self._state.get("generators") or [{"cpu": self._state["random"]}], self.facts["step"])


def save_training(
    path: Path,
    facts: dict[str, Any],
    model: nn.Module,
    optimizers: Iterable[Optimizer] = (),
    generators: list[States] | None = None,
) -> None:
    """Keep ``facts``, ``model`` and ``optimizers``, whole or not at all; all processes call it if the model is spread.

    Args:
        path: A file; of a model that is spread, what is written is the folder of its name without the suffix.
        facts: ``step``, ``identity`` and more, of what JSON and ``torch.load(weights_only=True)`` can read.
        generators: Those of random numbers, by ``generator_states``.

    Raises:
        UserError: It could not be written.
    """
    facts = {"version": VERSION, **facts}
    if is_sharded(model):
        facts["generators"] = [{name: len(state) for name, state in states.items()} for states in generators or []]
        tensors = {**_tensors(model, list(optimizers)), **named(generators or [])}
        _save_parts(_folder_of(path), facts, tensors)
    elif is_first():
        states = [optimizer.state_dict() for optimizer in optimizers]
        random = {"random": torch.get_rng_state(), "generators": generators}
        save_state(path, {**facts, "model": model.state_dict(), "optimizers": states, **random})


def load_training(path: Path) -> SavedState | None:
    """What ``save_training`` has kept at ``path``; the later of the two where a file and a folder are there.

    Raises:
        UserError: It does not load, or was written by a later version.
    """
    found = [_of_file(path)] if path.is_file() else []
    found += [_of_folder(part) for part in _complete(_folder_of(path))[-1:]]
    for state in found:
        if state.facts.get("version", VERSION) != VERSION:
            raise UserError(
                f"{state.path} must be a state of version {VERSION}, but has version {state.facts['version']}; it needs "
                "the torchqat that wrote it."
            )
    return max(found, key=lambda state: state.facts["step"], default=None)


def step_of(path: Path) -> int | None:
    """The step of what is kept at ``path``, of which no tensor is read; ``None`` where nothing is.

    Raises:
        UserError: It does not load.
    """
    kept = [load_state(path, mmap=True)] if path.is_file() else []
    kept += [
        read_json(part / "facts.json", "What is known of a checkpoint") for part in _complete(_folder_of(path))[-1:]
    ]
    return max((int(facts["step"]) for facts in kept), default=None)


def _of_file(path: Path) -> SavedState:
    state = load_state(path)
    if not isinstance(state, dict) or not {"step", "identity", "model"} <= state.keys():
        raise UserError(f"{path} must be a checkpoint of torchqat, but has no step, identity and model.")
    return SavedState(path, {k: v for k, v in state.items() if k not in _TENSORS}, state)


def _of_folder(path: Path) -> SavedState:
    facts = read_json(path / "facts.json", "What is known of a checkpoint")
    if not isinstance(facts, dict) or not {"step", "identity"} <= facts.keys():
        raise UserError(f"{path} must be a checkpoint of torchqat, but has no step and identity.")
    return SavedState(path, facts)


def _folder_of(path: Path) -> Path:
    return path.with_suffix("")


def _complete(folder: Path) -> list[Path]:
    """The states in ``folder``, the earliest first: one, but for a process killed before it could remove another."""
    return sorted(path for path in folder.iterdir() if path.name.isdigit()) if folder.is_dir() else []


def _tensors(model: nn.Module, optimizers: list[Optimizer]) -> dict[str, Tensor]:
    """All that is to be kept, by name. Those of ``model`` and ``optimizers`` share their memory."""
    again = _aliases(model)
    found = {f"model.{name}": tensor for name, tensor in model.state_dict().items() if name not in again}
    for index, optimizer in enumerate(optimizers):
        state = _optimizer_state(model, optimizer)
        found.update({f"optimizers.{index}.{name}": value for name, value in state.items() if torch.is_tensor(value)})
    return found


def _aliases(model: nn.Module) -> dict[str, str]:
    """Further names of tensors that ``model`` has in several places, and the first."""
    first: dict[int, str] = {}
    named = [
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ]
    found = {name: first.setdefault(id(tensor), name) for name, tensor in named}
    return {name: original for name, original in found.items() if name != original}


def _optimizer_state(model: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict

    return get_optimizer_state_dict(model, optimizer, options=StateDictOptions(flatten_optimizer_state_dict=True))


def _save_parts(folder: Path, facts: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint import HuggingFaceStorageWriter

    pending, target = folder / ".parts.pending-0", folder / f"{facts['step']:010d}"
    if is_first():
        shutil.rmtree(pending, ignore_errors=True)
    wait()
    try:
        dcp.save(tensors, storage_writer=HuggingFaceStorageWriter(str(pending), save_distributed=True))
        if is_first():
            write_json(pending / "facts.json", facts)
            for file in pending.iterdir():
                sync(file)
            shutil.rmtree(target, ignore_errors=True)
            os.replace(pending, target)
            for path in _complete(folder):
                if path != target:
                    shutil.rmtree(path, ignore_errors=True)
    except (OSError, dcp.api.CheckpointException) as error:
        raise UserError(f"{target} could not be written: {_why(error)}.") from error
    wait()


def _read_parts(
    state: SavedState, model: nn.Module, optimizers: list[Optimizer], random: bool, kept: dict[str, Tensor]
) -> None:
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_optimizer_state_dict

    tensors = _tensors(model, optimizers)
    tensors = {name: tensor for name, tensor in tensors.items() if name.removeprefix("model.") not in kept}
    generators = places(state.facts) if random else []
    # Of earlier ones, the generator of the first process alone was kept.
    earlier = random and "generators" not in state.facts
    tensors.update({"random": generators[0]["cpu"]} if earlier else named(generators))
    reader = HuggingFaceStorageReader(str(state.path))
    alone = not dist.is_initialized()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        try:
            there = reader.read_metadata().state_dict_metadata
            # States from before these were in them: the widths of the step are in force then.
            since = ("widths", "witness", TEXT)
            tensors = {n: t for n, t in tensors.items() if n in there or n.rpartition(".")[2] not in since}
            dcp.load(tensors, storage_reader=reader, no_dist=alone)
        except (Exception, dcp.api.CheckpointException) as error:
            raise UserError(
                f"{state.path} must be a checkpoint of torchqat, but does not load: {_why(error)}."
            ) from error
    found = {name[6:]: tensor for name, tensor in tensors.items() if name.startswith("model.")}
    tied = {name: found[original] for name, original in _aliases(model).items() if original in found}
    model.load_state_dict({**found, **tied, **kept})
    for index, optimizer in enumerate(optimizers):
        prefix = f"optimizers.{index}."
        found = {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        options = StateDictOptions(flatten_optimizer_state_dict=True)
        set_optimizer_state_dict(model, optimizer, {**_optimizer_state(model, optimizer), **found}, options=options)
    if generators:
        restore_own(generators, state.facts["step"])


def _why(error: BaseException) -> str:
    failures = getattr(error, "failures", {})  # of DCP: by process, with a stack
    return first_line(next((failed[0] for failed in failures.values()), error))
