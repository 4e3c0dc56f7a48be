"""What llama.cpp calls the parts of a model that transformers built: architectures, hyperparameters, tensors."""

from collections.abc import Iterable
from dataclasses import dataclass

import gguf
import torch
from torch import Tensor, nn

from torchqat._library import LayerPlan, gguf_type
from torchqat.checkpoints.formats.gguf_experts import add_expert_hyperparameters, check_experts
from torchqat.errors import UserError


@dataclass(frozen=True)
class Architecture:
    """One that both sides know.

    Attributes:
        gguf: Its name in llama.cpp.
        interleaved: llama.cpp rotates neighbouring pairs of a head where transformers rotates its halves.
        norm_offset: What transformers adds to the weight of a norm when it runs, and llama.cpp expects in the file.
        scales_products: llama.cpp multiplies products by the numbers that NVFP4 has for whole weights.
    """

    gguf: str
    interleaved: bool = False
    norm_offset: float = 0.0
    scales_products: bool = False


ARCHITECTURES = {
    "llama": Architecture("llama", interleaved=True, scales_products=True),
    "mistral": Architecture("llama", interleaved=True, scales_products=True),
    "qwen2": Architecture("qwen2"),
    "qwen3": Architecture("qwen3", scales_products=True),
    "mixtral": Architecture("llama", interleaved=True, scales_products=True),
    "qwen3_moe": Architecture("qwen3moe", scales_products=True),
    "gemma": Architecture("gemma", norm_offset=1.0),
}


def architecture_of(model: nn.Module) -> Architecture:
    """The architecture of a causal language model.

    Raises:
        UserError: It is none that a GGUF file can be written for.
    """
    kind = getattr(getattr(model, "config", None), "model_type", None)
    if kind not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise UserError(
            f"gguf takes models of the architectures {known}, but this one is {kind or type(model).__name__}."
        )
    check_experts(model)
    return ARCHITECTURES[kind]


def check_types(model: nn.Module, layers: Iterable[LayerPlan]) -> None:
    """Whether llama.cpp computes with the types that ``layers`` would have in a file.

    Raises:
        UserError: It passes over what NVFP4 has beside its blocks, where ``model`` is of this architecture.
    """
    scaled = next((layer.name for layer in layers if gguf_type(layer.weight, layer.in_features) == "NVFP4"), None)
    if scaled is not None and not architecture_of(model).scales_products:
        known = ", ".join(name for name, one in ARCHITECTURES.items() if one.scales_products)
        raise UserError(
            f"gguf takes nvfp4 for models of the architectures {known}, of which llama.cpp multiplies products by the scale "
            f"of a whole weight, but {scaled} is of a {model.config.model_type}; mxfp4 has none."
        )


class NameMap:
    """Names of tensors in a GGUF file, from those in the model."""

    def __init__(self, architecture: Architecture, layers: int):
        kinds = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
        self._map = gguf.get_tensor_name_map(kinds[architecture.gguf], layers)

    def __getitem__(self, name: str) -> str:
        found = self._map.get_name(name, try_suffixes=(".weight", ".bias"))
        if found is None:
            raise UserError(f"gguf has no place for the tensor {name}.")
        return found


class RowOrder:
    """The order of the rows of q and k, in which llama.cpp rotates neighbours.

    Row ``2i + j`` of a head in the file is row ``j * head_size / 2 + i`` of the model's; whole rows move, so packed ones do.
    """

    def __init__(self, model: nn.Module, architecture: Architecture):
        config = model.config
        self._heads: dict[str, int] = {}
        if architecture.interleaved:
            kv_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
            self._heads = {"q_proj": config.num_attention_heads, "k_proj": kv_heads}

    def heads_of(self, name: str) -> int | None:
        """Heads of the tensor called ``name``, if its rows are those of rotated ones."""
        return self._heads.get(name.split(".")[-2] if "." in name else "")

    def to_file(self, name: str, rows: Tensor) -> Tensor:
        heads = self.heads_of(name)
        if heads is None:
            return rows
        return rows.reshape(heads, 2, -1, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape).contiguous()


def add_hyperparameters(writer: gguf.GGUFWriter, model: nn.Module) -> None:
    """The keys from which llama.cpp builds the graph."""
    config = model.config
    head_size = head_size_of(config)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(getattr(config, "num_key_value_heads", None) or config.num_attention_heads)
    writer.add_key_length(head_size)
    writer.add_value_length(head_size)
    writer.add_rope_dimension_count(head_size)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_rope_freq_base(rope_base(config))
    add_expert_hyperparameters(writer, model)


def head_size_of(config) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def rope_base(config) -> float:
    parameters = getattr(config, "rope_parameters", None) or {}
    return float(parameters.get("rope_theta") or getattr(config, "rope_theta", None) or 10000.0)


def rope_factors(model: nn.Module) -> Tensor | None:
    """What each frequency of the rotary embedding is divided by, float32 ``[head_size / 2]``; ``None`` when by nothing.

    Raises:
        UserError: Positions are stretched in a way that such factors do not describe.
    """
    rotary = next((m for n, m in model.named_modules() if n.endswith("rotary_emb")), None)
    if rotary is None or not hasattr(rotary, "inv_freq"):
        return None
    size = head_size_of(model.config)
    plain = 1.0 / rope_base(model.config) ** (torch.arange(0, size, 2, dtype=torch.float32) / size)
    factors = plain / rotary.inv_freq.float().cpu()
    if getattr(rotary, "attention_scaling", 1.0) != 1.0 or factors.shape != (size // 2,):
        raise UserError(
            "gguf takes rotary embeddings that are plain, linear or of llama3, but this model's is another."
        )
    if torch.allclose(factors, torch.ones_like(factors), rtol=1e-4):
        return None
    if architecture_of(model).gguf != "llama":
        raise UserError("gguf takes stretched rotary embeddings of the architecture llama alone.")
    return factors
