"""Tensors that transformers leaves out of a model on purpose, such as heads that predict further tokens."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from torchqat.errors import UserError
from torchqat.files import read_json
from torchqat.model.disk_names import converts, reverted
from torchqat.model.source import FLOATS, files_of, folder_of, tensors_of


@dataclass(frozen=True)
class PassedOver:
    """What a folder holds that the model loaded from it has no place for.

    Attributes:
        path: Of the model.
        names: On disk.
    """

    path: str
    names: tuple[str, ...]

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Each by its name on disk, as it is there.

        Raises:
            UserError: One is not there any more.
        """
        if not self.names:
            return
        from safetensors import safe_open

        folder, left = folder_of(self.path), set(self.names)
        for file in files_of(folder) if folder is not None else []:
            with safe_open(file, framework="pt") as tensors:
                for name in sorted(left & set(tensors.keys())):
                    left.remove(name)
                    yield name, tensors.get_tensor(name)
        if left:
            raise UserError(f"{self.path} must still hold the tensor {min(left)}, but does not.")

    def linear_layers(self) -> list[str]:
        """Names on disk of those that are matrices of layers."""
        found = tensors_of(self.path)
        matrices = [name for name in self.names if len(found.get(name, {}).get("shape", [])) == 2]
        return [name.removesuffix(".weight") for name in matrices if name.endswith(".weight")]


def remember_passed_over(model: nn.Module, path: str, names: list[str]) -> None:
    """Note beside ``model`` that ``path`` also holds tensors called ``names``, and no others that exports should copy."""
    model.qat_passed_over = PassedOver(path, tuple(names))


def passed_over(model: nn.Module) -> PassedOver:
    """What lies beside ``model`` where it came from: as was noted or, where transformers loaded it, as is found there."""
    if not hasattr(model, "qat_passed_over"):
        model.qat_passed_over = _beside(model)
    return model.qat_passed_over


def _beside(model: nn.Module) -> PassedOver:
    config = getattr(model, "config", None)
    path = getattr(config, "_name_or_path", None)
    folder = folder_of(path) if path and converts(model) else None
    if folder is None or not (folder / "config.json").is_file():
        return PassedOver("", ())
    there = read_json(folder / "config.json", "A model's configuration")
    if type(model).__name__ not in (there.get("architectures") or []):  # it is a part of what lies there
        return PassedOver("", ())
    tensors = tensors_of(path)
    names = ignored_tensors(model, tensors)
    return PassedOver(path, tuple(names) if can_be_copied([tensors[name] for name in names]) else ())


def can_be_copied(entries: list[dict]) -> bool:
    """Whether tensors with these entries in a header mean by themselves what they are."""
    return all(entry["dtype"] in FLOATS for entry in entries)


def base_of(model: nn.Module) -> nn.Module:
    """The base model of a model for a task; itself where it is one."""
    return getattr(model, model.base_model_prefix, model)


def in_base(model: nn.Module, name: str) -> str:
    """The name of a tensor in the base model."""
    return name.removeprefix(f"{model.base_model_prefix}.")


def ignored_tensors(model: nn.Module, tensors: dict[str, dict[str, Any]]) -> list[str]:
    """What transformers passes over on purpose; not what models make anew, such as masks and frequencies."""
    patterns = getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()
    matching = [name for name in tensors if any(re.search(pattern, name) for pattern in patterns)]
    if not matching:
        return []
    taken = {in_base(model, name) for name in (*model.state_dict(), *on_disk(model))}
    made_anew = {name.rpartition(".")[2] for name, _ in model.named_buffers()}
    return sorted(
        name
        for name in matching
        if in_base(model, name) not in taken
        and name.rpartition(".")[2] not in made_anew
        and tensors[name]["shape"][:2] != [1, 1]  # of a mask
        and tensors[name]["shape"] != []
    )


def on_disk(model: nn.Module) -> dict[str, Tensor]:
    """Names and shapes that transformers itself would save ``model`` under; none where it cannot say."""
    try:
        return reverted(model, {n: t.to("meta") for n, t in model.state_dict().items()})
    except Exception:  # an older transformers, or it wants numbers
        return {}
