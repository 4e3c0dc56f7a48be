"""What the state of a training takes on every process, counted tensor by tensor: for models on the meta device as well."""

from collections import Counter
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from torchqat.layers.experts import QuantExperts
from torchqat.layers.quant_layer import LATTICE_NAMES, OUTER_NAMES, SCALE_NAMES, QuantLayer
from torchqat.layers.stand_ins import QUANTIZABLE
from torchqat.training.spread import gathered_together


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes of one process, without activations, which depend on the batch and are those of plain fine-tuning.

    Attributes:
        weights: Parameters other than scales, which are masters where weights are quantized.
        scales: Scales and zero points, learned or not.
        gradients: Of all that trains.
        optimizer: AdamW's two moments of all that trains.
        gathered: What FSDP2 holds whole at a time: the two largest of blocks, embeddings and head (one is fetched while
            another computes), the gradients of the largest, and the few parameters that are in none of them.
        teacher: The float model that is distilled from, with what is gathered of it.
        rounded: The largest weight once more, rounded, in a buffer that all layers share.
    """

    weights: int
    scales: int
    gradients: int
    optimizer: int
    gathered: int = 0
    teacher: int = 0
    rounded: int = 0

    @property
    def total(self) -> int:
        return sum(getattr(self, field.name) for field in fields(self))


def training_memory(model: nn.Module, processes: int = 1, teacher: torch.dtype | None = None) -> TrainingMemory:
    """What AdamW on ``model`` takes on the first of ``processes``, over which FSDP2 spreads it; alone, nothing is spread.

    Args:
        model: Prepared, or a float model for plain fine-tuning; on any device, the meta device among them.
        processes: How many share it. With DDP each holds what one alone does.
        teacher: dtype of the float model that is distilled from; ``None`` where there is none.
    """
    named = dict(model.named_parameters())
    trained = [parameter for parameter in named.values() if parameter.requires_grad]
    learned = [p for name, p in named.items() if _is_scale(name)]
    buffers = [buffer for name, buffer in model.named_buffers() if _is_scale(name)]  # each process has all of them
    scales = sum(_part(p, processes) for p in learned) + sum(map(_bytes, buffers))
    everything = sum(_part(p, processes) for p in named.values())
    gradients = sum(_part(parameter, processes) for parameter in trained)
    return TrainingMemory(
        weights=everything - scales + sum(map(_bytes, buffers)),
        scales=scales,
        gradients=gradients,
        optimizer=2 * gradients,
        gathered=_gathered(model, trains=True) if processes > 1 else 0,
        teacher=0 if teacher is None else _teacher(model, processes, teacher),
        rounded=_rounded(model),
    )


def _rounded(model: nn.Module) -> int:
    """The largest weight that a forward rounds; all of a mixture's experts are there at once."""
    sizes: Counter[int] = Counter()
    for layer in model.modules():
        if isinstance(layer, QuantLayer):
            sizes[id(layer.holder if isinstance(layer, QuantExperts) else layer)] += _bytes(layer.weight)
    return max(sizes.values(), default=0)


def _teacher(model: nn.Module, processes: int, dtype: torch.dtype) -> int:
    """The float model has the parameters of the prepared one but for scales."""
    weights = [p for name, p in model.named_parameters() if not _is_scale(name)]
    parts = sum(_part(weight, processes) // weight.element_size() for weight in weights) * dtype.itemsize
    size = next(iter(weights)).element_size()
    return parts + (_gathered(model, trains=False) * dtype.itemsize // size if processes > 1 else 0)


def _gathered(model: nn.Module, trains: bool) -> int:
    parts = [list(module.parameters()) for module in gathered_together(model, QUANTIZABLE)]
    inside = {id(parameter) for part in parts for parameter in part}
    rest = [parameter for parameter in model.parameters() if id(parameter) not in inside]  # gathered all the time
    sizes = sorted((sum(map(_bytes, part)) for part in parts), reverse=True)
    return sum(sizes[:2]) + sum(map(_bytes, rest)) + (max([*sizes, sum(map(_bytes, rest))]) if trains else 0)


def _is_scale(name: str) -> bool:
    leaf = name.rpartition(".")[2]
    return leaf in (*SCALE_NAMES, *OUTER_NAMES, *LATTICE_NAMES)


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _part(tensor: Tensor, processes: int) -> int:
    """Bytes of the first process' part: rows are dealt out, the first processes having what cannot be shared equally."""
    rows = tensor.shape[0] if tensor.dim() else 1
    return -(-rows // processes) * (_bytes(tensor) // rows)
