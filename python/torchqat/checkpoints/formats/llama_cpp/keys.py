"""Keys that single architectures have beside those of all."""

from typing import Any

import gguf


def soft_caps(writer: gguf.GGUFWriter, config: Any) -> None:
    """What scores of attention and logits are bent below by a tanh."""
    if getattr(config, "attn_logit_softcapping", None):
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
    if getattr(config, "final_logit_softcapping", None):
        writer.add_final_logit_softcapping(config.final_logit_softcapping)


def granite_scales(writer: gguf.GGUFWriter, config: Any) -> None:
    """What Granite multiplies the embedding, each block's addition and scores by, and divides logits by."""
    writer.add_attention_scale(config.attention_multiplier)
    writer.add_embedding_scale(config.embedding_multiplier)
    writer.add_residual_scale(config.residual_multiplier)
    writer.add_logit_scale(config.logits_scaling)


def shared_expert(writer: gguf.GGUFWriter, config: Any) -> None:
    """The width of the expert that every token passes through."""
    writer.add_expert_shared_feed_forward_length(config.shared_expert_intermediate_size)


def width_of_experts(writer: gguf.GGUFWriter, config: Any) -> None:
    """That of gpt-oss, which has no other width."""
    writer.add_expert_feed_forward_length(config.intermediate_size)


def falcon_layout(writer: gguf.GGUFWriter, config: Any) -> None:
    """That rows of queries, keys and values lie one kind after the other."""
    writer.add_tensor_data_layout("jploski")


def reads_both_ways(writer: gguf.GGUFWriter, config: Any) -> None:
    """That of an encoder: each token attends to all; and how many kinds of tokens there are."""
    writer.add_causal_attention(False)
    writer.add_token_type_count(config.type_vocab_size)
