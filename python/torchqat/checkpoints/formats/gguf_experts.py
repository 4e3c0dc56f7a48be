"""How llama.cpp has a mixture's experts: a tensor each of the gates, the ups and the downs of all experts."""

from dataclasses import dataclass

import gguf
from torch import nn

from torchqat.errors import UserError

# By the parameter of transformers, what llama.cpp makes of its rows.
_PARTS = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}


@dataclass(frozen=True)
class ExpertRows:
    """Rows of each matrix in a parameter of experts, which are a tensor of the file.

    Attributes:
        name: That the gguf package's map of names knows.
        begin: The first row of each expert's.
        end: The one after the last.
    """

    name: str
    begin: int
    end: int


def expert_rows(name: str, rows: int) -> list[ExpertRows]:
    """What becomes of the parameter ``name``, whose matrices have ``rows`` rows; nothing of other tensors."""
    holder, _, leaf = name.rpartition(".")
    if not holder.endswith(".experts") or leaf not in _PARTS:
        return []
    parts = _PARTS[leaf]
    size = rows // len(parts)
    return [ExpertRows(f"{holder}.{part}.weight", i * size, (i + 1) * size) for i, part in enumerate(parts)]


def is_router(name: str) -> bool:
    """Routers stay in float32, as llama.cpp's own converter leaves them."""
    return name.endswith(".mlp.gate.weight")


def add_expert_hyperparameters(writer: gguf.GGUFWriter, model: nn.Module) -> None:
    config = model.config
    count = _count(config)
    if not count:
        return
    writer.add_expert_count(count)
    writer.add_expert_used_count(config.num_experts_per_tok)
    if hasattr(config, "moe_intermediate_size"):
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)


def check_experts(model: nn.Module) -> None:
    """Whether llama.cpp routes tokens as the model does.

    Raises:
        UserError: It does not.
    """
    config = model.config
    if not _count(config):
        return
    if not getattr(config, "norm_topk_prob", True):
        raise UserError("gguf takes experts whose shares sum to 1, but norm_topk_prob is false.")
    if getattr(config, "mlp_only_layers", None) or getattr(config, "decoder_sparse_step", 1) != 1:
        raise UserError("gguf takes models with experts in every block, but some blocks of this one have none.")


def _count(config) -> int:
    return getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None) or 0
