"""What a reader found in a checkpoint."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from torchqat.errors import UserError, first_line
from torchqat.extras import needs


class MissingTensor(KeyError):
    """A tensor that a layer cannot be read without; its name is the argument."""


@dataclass
class Reading:
    """A checkpoint as a stranger sees it.

    Attributes:
        weights: Dense weight ``[out, in]`` of each quantized layer, in the dtype in which the reader computes it.
        others: Every other tensor, by its name on disk, or in the model where one is given.
        missing: Tensors that a quantized layer needs and the checkpoint lacks.
    """

    weights: dict[str, Tensor] = field(default_factory=dict)
    others: dict[str, Tensor] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)


class LayerTensors:
    """The tensors of one layer, by the last part of their name."""

    def __init__(self, name: str, tensors: dict[str, Tensor]):
        self.name, self._tensors = name, tensors

    def __getitem__(self, leaf: str) -> Tensor:
        if leaf not in self._tensors:
            raise MissingTensor(f"{self.name}.{leaf}")
        return self._tensors[leaf]

    def __contains__(self, leaf: str) -> bool:
        return leaf in self._tensors

    def get(self, leaf: str) -> Tensor | None:
        return self._tensors.get(leaf)

    def all(self) -> dict[str, Tensor]:
        return dict(self._tensors)


def read_layers(
    tensors: dict[str, Tensor],
    leaves: Iterable[str],
    marks: Iterable[str],
    dense: Callable[[LayerTensors], Tensor],
) -> Reading:
    """Sorts ``tensors`` into layers, which have a tensor called as one of ``marks``, and the rest.

    Args:
        tensors: Of a checkpoint, by their full names.
        leaves: What the tensors of a quantized layer may be called.
        marks: What only tensors of quantized layers are called.
        dense: Gives the weight of a layer.
    """
    leaves, marks = set(leaves), set(marks)
    split = {name: name.rpartition(".")[::2] for name in tensors}
    names = {parent for parent, leaf in split.values() if leaf in marks}
    reading = Reading()
    layers: dict[str, dict[str, Tensor]] = {name: {} for name in sorted(names)}
    for name, tensor in tensors.items():
        parent, leaf = split[name]
        if parent in layers and leaf in leaves:
            layers[parent][leaf] = tensor
        else:
            reading.others[name] = tensor
    for name, found in layers.items():
        try:
            reading.weights[name] = dense(LayerTensors(name, found))
        except MissingTensor as error:
            reading.missing.append(error.args[0])
        except UserError:
            raise
        except Exception as error:  # whatever a stranger's shapes, dtypes and numbers lead to
            raise UserError(f"{name} must be a quantized layer that can be read, but {first_line(error)}.") from error
    return reading


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a checkpoint, of one file or of several.

    Raises:
        UserError: There is no safetensors file, or one is damaged.
    """
    tensors: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")) or [folder / "model.safetensors"]:
        tensors.update(read_file(file))
    return tensors


def read_file(file: Path) -> dict[str, Tensor]:
    """The tensors of one file, as the safetensors library reads them.

    Raises:
        UserError: The file is missing or damaged.
    """
    with needs("hf", "Reading a checkpoint"):
        from safetensors import SafetensorError
        from safetensors.torch import load_file

    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file} must be a safetensors file, but does not load: {error}.") from error
