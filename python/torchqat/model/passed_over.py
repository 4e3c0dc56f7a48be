"""Tensors that transformers leaves out of a model on purpose, such as heads that predict further tokens."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from torchqat.errors import UserError
from torchqat.model.source import FLOATS, files_of, folder_of, read_header


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
        folder, found = folder_of(self.path), {}
        for file in files_of(folder) if folder is not None else []:
            found.update(read_header(file))
        matrices = [name for name in self.names if len(found.get(name, {}).get("shape", [])) == 2]
        return [name.removesuffix(".weight") for name in matrices if name.endswith(".weight")]


def remember_passed_over(model: nn.Module, path: str, names: list[str]) -> None:
    """Note beside ``model`` that ``path`` also holds tensors called ``names``."""
    if names:
        model.qat_passed_over = PassedOver(path, tuple(names))


def passed_over(model: nn.Module) -> PassedOver:
    """What lies beside ``model`` where it came from, as far as it was loaded by torchqat."""
    return getattr(model, "qat_passed_over", None) or PassedOver("", ())


def can_be_copied(entries: list[dict]) -> bool:
    """Whether tensors with these entries in a header mean by themselves what they are."""
    return all(entry["dtype"] in FLOATS for entry in entries)
