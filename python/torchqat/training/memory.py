"""What the state of a training takes on every process, counted tensor by tensor: for models on the meta device as well."""

from collections import Counter
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from torchqat._library import TrainSection
from torchqat.errors import UserError
from torchqat.layers.experts import QuantExperts
from torchqat.layers.quant_layer import LATTICE_NAMES, OUTER_NAMES, SCALE_NAMES, QuantLayer
from torchqat.layers.stand_ins import QUANTIZABLE
from torchqat.training.optimizers import parameter_groups, split_groups
from torchqat.training.spread import gathered_together


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes of one process, without activations, which depend on the batch and are those of plain fine-tuning.

    Attributes:
        weights: Parameters other than scales, which are masters where weights are quantized.
        scales: Scales and zero points, learned or not.
        gradients: Of all that trains; those of masters are float32.
        optimizer: What the optimizer keeps of all that trains.
        gathered: What FSDP2 holds whole at a time: the two largest of blocks, embeddings and head (one is fetched while
            another computes), the gradients of the largest, and the few parameters that are in none of them.
        teacher: The float model that is distilled from, with what is gathered of it.
        rounded: The largest weight once more, rounded, in a buffer that all layers share.
        masters: Of weights that a model keeps in 16 bits.
    """

    weights: int
    scales: int
    gradients: int
    optimizer: int
    gathered: int = 0
    teacher: int = 0
    rounded: int = 0
    masters: int = 0

    @property
    def total(self) -> int:
        return sum(getattr(self, field.name) for field in fields(self))


def training_memory(
    model: nn.Module,
    processes: int = 1,
    teacher: torch.dtype | None = None,
    optimizer: str = "adamw",
    masters: str = "float32",
) -> TrainingMemory:
    """What training ``model`` takes on the first of ``processes``, over which FSDP2 spreads it; alone, nothing is spread.

    Args:
        model: Prepared, or a float model for plain fine-tuning; on any device, the meta device among them.
        processes: How many share it. With DDP each holds what one alone does.
        teacher: dtype of the float model that is distilled from; ``None`` where there is none.
        optimizer: As ``train.optimizer``: ``adamw``, ``adamw_8bit`` (as bitsandbytes has it), ``muon`` or ``sgd``.
        masters: As ``train.masters``. Models that are spread have none.

    Raises:
        UserError: It is another optimizer, of which nothing is known.
    """
    named = dict(model.named_parameters())
    trained = [parameter for parameter in named.values() if parameter.requires_grad]
    learned = [p for name, p in named.items() if _is_scale(name)]
    buffers = [buffer for name, buffer in model.named_buffers() if _is_scale(name)]  # each process has all of them
    scales = sum(_part(p, processes) for p in learned) + sum(map(_bytes, buffers))
    everything = sum(_part(p, processes) for p in named.values())
    short = [p for p in trained if p.element_size() < 4] if masters == "float32" and processes == 1 else []
    longer = sum(_bytes(p) * 4 // p.element_size() for p in short)
    return TrainingMemory(
        weights=everything - scales + sum(map(_bytes, buffers)),
        scales=scales,
        gradients=sum(_part(parameter, processes) for parameter in trained) - sum(map(_bytes, short)) + longer,
        optimizer=_kept_by(optimizer, model, processes, {id(parameter) for parameter in short}),
        gathered=_gathered(model, trains=True) if processes > 1 else 0,
        teacher=0 if teacher is None else _teacher(model, processes, teacher),
        rounded=_rounded(model),
        masters=longer,
    )


def _kept_by(optimizer: str, model: nn.Module, processes: int, with_masters: set[int]) -> int:
    """Moments, each as large as what it is of, but for those of 8 bits."""
    moments = {"adamw": 2, "adamw_8bit": 2, "muon": 1, "sgd": 1}
    if optimizer not in moments:
        raise UserError(
            f"optimizer must be adamw, adamw_8bit, muon or sgd, whose states are known, but is {optimizer}."
        )

    def part(parameter: Tensor) -> int:
        return _part(parameter, processes) * (4 // parameter.element_size() if id(parameter) in with_masters else 1)

    first, rest = split_groups(model, optimizer, parameter_groups(model, TrainSection()))
    own, others = ([p for group in groups for p in group["params"]] for groups in (first, rest))
    if optimizer == "adamw_8bit":
        return sum(map(_in_8_bits, own)) + sum(2 * part(p) for p in others)
    return sum(moments[optimizer] * part(p) for p in own) + sum(2 * part(p) for p in others)


def _in_8_bits(parameter: Tensor) -> int:
    """Two moments of a byte, and a float32 for each block of 256; small tensors have both in float32."""
    count = parameter.numel()
    return 2 * (count + 4 * -(-count // 256)) if count >= 4096 else 8 * count


def _rounded(model: nn.Module) -> int:
    """The largest weight that a forward rounds; all of a mixture's experts are there at once."""
    sizes: Counter[int] = Counter()
    for layer in model.modules():
        if isinstance(layer, QuantLayer):
            sizes[id(layer.holder if isinstance(layer, QuantExperts) else layer)] += _bytes(layer.weight)
    return max(sizes.values(), default=0)


def _teacher(model: nn.Module, processes: int, dtype: torch.dtype) -> int:
    """The float model has the parameters of the prepared one but for scales and peft's adapters."""
    weights = [p for name, p in model.named_parameters() if not _is_scale(name) and ".lora_" not in name]
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
