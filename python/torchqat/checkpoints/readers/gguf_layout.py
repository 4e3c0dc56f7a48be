"""How tensors of a model lie in a GGUF file: which of them are one in the model, and the order of their rows."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from torchqat.errors import UserError

# llama.cpp rotates neighbours in models of these architectures, transformers the halves of a head.
INTERLEAVED = ("llama", "smollm3", "granite")
# Parameters of transformers' experts, and the tensors of a file that lie in them.
_OF_EXPERTS = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}
# What files of models that also read images call the language model's part.
_INSIDE = "model.language_model."


def text_name(name: str) -> str:
    """What the tensor would be called in a model of text alone."""
    return f"model.{name.removeprefix(_INSIDE)}" if name.startswith(_INSIDE) else name


def parts_of(name: str) -> list[str]:
    """Names that the gguf package knows of what the tensor ``name`` of the model is in a file."""
    holder, _, leaf = name.rpartition(".")
    stem = leaf.removesuffix("_bias")
    if holder.endswith(".experts") and stem in _OF_EXPERTS:
        return [f"{holder}.{part}.{'weight' if stem == leaf else 'bias'}" for part in _OF_EXPERTS[stem]]
    return [f"{name}.weight"] if leaf == "sinks" else [name]


@dataclass(frozen=True)
class Layout:
    """What the architecture of a file says of its tensors, in models whose heads are so many."""

    architecture: str
    heads: int = 0
    kv_heads: int = 0

    def in_model_order(self, name: str, rows: Tensor) -> Tensor:
        """The rows of the tensor that the file calls ``name`` as they are in the model.

        Raises:
            UserError: There are not as many as that takes.
        """
        part = name.split(".")[-2] if "." in name else ""
        if self.architecture == "falcon" and part == "attn_qkv":
            return by_groups(rows, self.heads, self.kv_heads)
        if self.architecture in INTERLEAVED and part in ("attn_q", "attn_k"):
            return in_halves(rows, self.heads if part == "attn_q" else self.kv_heads)
        return rows

    def as_parameter(self, name: str, values: Tensor) -> Tensor:
        """A tensor in floating point as the model keeps it: some of its matrices are ``[in, out]``."""
        conv1d = self.architecture == "gpt2" and values.dim() == 2 and ".c_" in name
        experts = self.architecture == "gpt-oss" and values.dim() == 3
        return values.transpose(-2, -1) if conv1d or experts else values

    def joined(self, parts: list[Tensor]) -> Tensor:
        """Gates and ups of experts, ``[experts, rows, ...]``, as rows of one parameter: one after the other or by turns."""
        if self.architecture == "gpt-oss":
            return torch.stack(parts, dim=2).flatten(1, 2)
        return torch.cat(parts, dim=1)


@dataclass
class Pieces:
    """Tensors of a file that are one in the model, until all of them are there."""

    layout: Layout
    _waiting: dict[str, dict[int, Tensor]] = field(default_factory=dict)

    def add(self, name: str, in_file: str, values: Tensor) -> Tensor | None:
        """What the model calls ``name``, once its last part is here."""
        if len(parts_of(name)) == 1:
            return values
        parts = self._waiting.setdefault(name, {})
        parts[int("up_exps" in in_file)] = values
        return self.layout.joined([parts[0], parts[1]]) if len(parts) == 2 else None


def in_halves(rows: Tensor, heads: int) -> Tensor:
    """Row by row, what llama.cpp rotates as neighbours back to the halves of a head.

    Raises:
        UserError: There are not as many rows as that takes.
    """
    if heads < 1 or len(rows) % (2 * heads):
        raise UserError(f"Rows of {heads} rotated heads must be pairs, the same number a head, but are {len(rows)}.")
    size = len(rows) // heads
    origin = [h * size + 2 * (i % (size // 2)) + i // (size // 2) for h in range(heads) for i in range(size)]
    return rows[origin]


def by_groups(rows: Tensor, heads: int, kv_heads: int) -> Tensor:
    """Queries, keys and values, one kind after the other, back to groups of some queries with their key and value.

    Raises:
        UserError: There are not as many rows as that takes.
    """
    if kv_heads < 1 or heads % kv_heads or len(rows) % (heads + 2 * kv_heads):
        raise UserError(
            f"Rows of {heads} queries and {kv_heads} keys and values must be the same number each, but are {len(rows)}."
        )
    of_head = rows.unflatten(0, (heads + 2 * kv_heads, -1))
    order = []
    for group in range(kv_heads):
        order += range(group * (heads // kv_heads), (group + 1) * (heads // kv_heads))
        order += [heads + group, heads + kv_heads + group]
    return of_head[order].flatten(0, 1)
