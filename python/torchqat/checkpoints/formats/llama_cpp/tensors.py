"""Which tensors of a file a tensor of the model becomes, and in which order its rows are there."""

from dataclasses import dataclass

import gguf
import torch
from torch import Tensor, nn

from torchqat.checkpoints.formats.llama_cpp.architecture import Architecture
from torchqat.checkpoints.formats.llama_cpp.hyperparameters import head_size_of, kv_heads_of
from torchqat.errors import UserError
from torchqat.layers.conv1d_of_transformers import QuantConv1D, conv1d_class
from torchqat.model.experts import expert_weights
from torchqat.model.towers import beside_language_model, language_model

# Parameters of transformers' experts, and what llama.cpp makes of their rows.
_PARTS = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}
# In float32, as in llama.cpp's own files: what routes tokens, and what is added to their embeddings.
_PRECISE = (
    ".mlp.gate.weight",
    ".router.weight",
    ".shared_expert_gate.weight",
    ".wpe.weight",
    ".position_embeddings.weight",
    ".token_type_embeddings.weight",
)
# Of these, llama.cpp has a weight, which transformers calls by itself.
_BARE = (".sinks",)


class NameMap:
    """Names of tensors in a GGUF file, from those in the model."""

    def __init__(self, model: nn.Module, architecture: Architecture):
        kinds = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
        layers = model.config.get_text_config().num_hidden_layers
        self._map = gguf.get_tensor_name_map(kinds[architecture.gguf], layers)
        self._inside = language_model(model)

    def __getitem__(self, name: str) -> str:
        if self._inside is not None and name.startswith(f"{self._inside}."):
            name = "model" + name.removeprefix(self._inside)
        if name.endswith(_BARE):
            name += ".weight"
        found = self._map.get_name(name, try_suffixes=(".weight", ".bias"))
        if found is None:
            raise UserError(f"gguf has no place for the tensor {name}.")
        return found


def outside(model: nn.Module, architecture: Architecture) -> tuple[str, ...]:
    """What names of tensors begin with that a file lacks: it has the language model alone, as far as llama.cpp runs it."""
    beside = beside_language_model(model)
    return (
        tuple(f"{name}." for name, module in model.named_modules() if id(module) in beside) + architecture.passes_over
    )


def is_precise(name: str) -> bool:
    return name.endswith(_PRECISE)


@dataclass(frozen=True)
class ExpertRows:
    """Rows of each matrix in a parameter of experts, which are a tensor of the file.

    Attributes:
        name: That the gguf package's map of names knows.
        rows: Which of a matrix's.
        count: How many these are.
    """

    name: str
    rows: slice
    count: int


def expert_rows(name: str, rows: int, architecture: Architecture) -> list[ExpertRows]:
    """What becomes of the parameter ``name``, whose matrices have ``rows`` rows; nothing of other tensors."""
    holder, _, leaf = name.rpartition(".")
    stem = leaf.removesuffix("_bias")
    suffix = "weight" if stem == leaf else "bias"
    if not holder.endswith(".experts") or stem not in _PARTS:
        return []
    parts = _PARTS[stem]
    size = rows // len(parts)
    cut = [
        slice(i, None, len(parts)) if architecture.interleaved_experts else slice(i * size, (i + 1) * size)
        for i in range(len(parts))
    ]
    return [ExpertRows(f"{holder}.{part}.{suffix}", cut[i], size) for i, part in enumerate(parts)]


def oriented(model: nn.Module, name: str, tensor: Tensor) -> Tensor:
    """A weight that stays in floating point, as rows of outputs."""
    parent, _, leaf = name.rpartition(".")
    holder = model.get_submodule(parent)
    found = tuple(kind for kind in (conv1d_class(), QuantConv1D) if kind is not None)
    if leaf == "weight" and isinstance(holder, found):
        return tensor.t()
    if tensor.dim() != 3 or leaf not in holder._parameters:
        return tensor
    experts = expert_weights(holder, leaf)
    transposed = experts.transposed if experts is not None else getattr(holder, "is_transposed", False)
    return tensor.transpose(1, 2) if transposed else tensor


class RowOrder:
    """The order of rows in a file, where it is not that of the model: whole rows move, so packed ones do.

    Where llama.cpp rotates neighbours, row ``2i + j`` of a head of q and k is row ``j * head_size / 2 + i`` of the model's.
    Falcon's queries, keys and values come in groups of some queries with their key and value; llama.cpp has queries first.
    """

    def __init__(self, model: nn.Module, architecture: Architecture):
        config = model.config.get_text_config()
        self._heads: dict[str, int] = {}
        self._groups: tuple[int, int, int] | None = None
        if architecture.interleaved:
            self._heads = {"q_proj": config.num_attention_heads, "k_proj": kv_heads_of(config)}
        if architecture.gguf == "falcon":
            groups = kv_heads_of(config)
            self._groups = (groups, config.num_attention_heads // groups, head_size_of(config))

    def heads_of(self, name: str) -> int | None:
        """Heads of the tensor called ``name``, if its rows are those of rotated ones."""
        return self._heads.get(name.split(".")[-2] if "." in name else "")

    def to_file(self, name: str, rows: Tensor) -> Tensor:
        if self._groups is not None and name.endswith(".query_key_value.weight"):
            return rows[self._queries_first()]
        heads = self.heads_of(name)
        if heads is None:
            return rows
        return rows.reshape(heads, 2, -1, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape).contiguous()

    def _queries_first(self) -> Tensor:
        groups, queries, size = self._groups
        rows = torch.arange(groups * (queries + 2) * size).reshape(groups, queries + 2, size)
        return torch.cat([rows[:, :queries].flatten(), rows[:, queries].flatten(), rows[:, queries + 1].flatten()])
