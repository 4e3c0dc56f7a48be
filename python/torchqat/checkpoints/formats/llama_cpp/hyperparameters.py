"""The keys from which llama.cpp builds the graph of a model."""

from typing import Any

import gguf
from torch import nn

from torchqat.checkpoints.formats.llama_cpp.architecture import Architecture
from torchqat.checkpoints.formats.llama_cpp.rope import add_rope, rotated_size, rotates


def add_hyperparameters(writer: gguf.GGUFWriter, model: nn.Module, architecture: Architecture) -> None:
    """Sizes, epsilons, experts, windows and the rotary embedding; and what the architecture alone has."""
    config = model.config.get_text_config()
    size = head_size_of(config)
    writer.add_context_length(context_of(config, architecture))
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(feed_forward_of(config))
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(kv_heads_of(config))
    writer.add_key_length(size)
    writer.add_value_length(size)
    if rotates(config):
        writer.add_rope_dimension_count(rotated_size(config))
    _add_epsilons(writer, config)
    writer.add_vocab_size(config.vocab_size)
    _add_windows(writer, config, architecture)
    add_rope(writer, model, architecture)
    _add_experts(writer, config)
    for add in architecture.keys:
        add(writer, config)


def head_size_of(config: Any) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def kv_heads_of(config: Any) -> int:
    """Heads of keys and values; those of Falcon are one where all queries share it."""
    if getattr(config, "multi_query", False) and not config.new_decoder_architecture:
        return 1
    found = getattr(config, "num_key_value_heads", None) or getattr(config, "num_kv_heads", None)
    return found or config.num_attention_heads


def feed_forward_of(config: Any) -> int:
    for name in ("intermediate_size", "ffn_hidden_size", "n_inner"):
        if getattr(config, name, None):
            return getattr(config, name)
    return 4 * config.hidden_size


def sliding_layers(config: Any) -> list[bool]:
    """Which blocks attend to a window alone."""
    if not getattr(config, "sliding_window", None):
        return [False] * config.num_hidden_layers
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        return [True] * config.num_hidden_layers
    return [kind == "sliding_attention" for kind in kinds]


def context_of(config: Any, architecture: Architecture) -> int:
    """Tokens that the file is good for: where llama.cpp attends to all that came before, those of the window."""
    longest = config.max_position_embeddings
    return longest if architecture.slides or not any(sliding_layers(config)) else min(longest, config.sliding_window)


def _add_windows(writer: gguf.GGUFWriter, config: Any, architecture: Architecture) -> None:
    sliding = sliding_layers(config)
    if architecture.slides and any(sliding):
        writer.add_sliding_window(config.sliding_window)
        writer.add_sliding_window_pattern(sliding)


def _add_epsilons(writer: gguf.GGUFWriter, config: Any) -> None:
    if getattr(config, "rms_norm_eps", None) is not None:
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        return
    names = ("layer_norm_epsilon", "layer_norm_eps", "norm_epsilon")
    writer.add_layer_norm_eps(next(getattr(config, name) for name in names if hasattr(config, name)))


def _add_experts(writer: gguf.GGUFWriter, config: Any) -> None:
    count = getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None)
    if not count:
        return
    writer.add_expert_count(count)
    writer.add_expert_used_count(config.num_experts_per_tok)
    if hasattr(config, "moe_intermediate_size"):
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)
