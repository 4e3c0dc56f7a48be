"""The default configuration of any type of transformers, made tiny by the keys that configurations share."""

import dataclasses
import re

from transformers import CONFIG_MAPPING, PreTrainedConfig

VOCABULARY = 256

# By what a key is called, whatever the type. A default that is smaller, or that switches something off, stays.
_SMALL = {
    VOCABULARY: "vocab_size vocab_size_per_layer_input decoder_vocab_size unpadded_vocab_size type_vocab_size",
    64: (
        "hidden_size d_model n_embd dim hidden_dim embed_dim embedding_size embedding_dim emb_dim word_embed_proj_dim "
        "position_embedding_size lru_width "
        "attention_hidden_size backbone_hidden_size out_hidden_size d_embed hidden_sizes decoder_hidden_size dim_model "
        "output_embedding_size input_embedding_size projection_dim projection_size mamba_d_ssm "
        "encoder_hidden_size codebook_dim hidden_size_global "
        "adapter_in_dim adapter_out_dim adapter_input_size vision_output_dim classifier_proj_size"
    ),
    96: (
        "intermediate_size d_ff d_inner ffn_dim dim_ff dff n_inner encoder_ffn_dim decoder_ffn_dim ffn_hidden_size mlp_dim "
        "feed_forward_size dense_intermediate_size intermediate_size_mlp block_ff_dim linear_units"
    ),
    32: (
        "moe_intermediate_size shared_expert_intermediate_size shared_intermediate_size shared_experts_intermediate_size "
        "moe_shared_expert_intermediate_size expert_ffn_hidden_size q_lora_rank o_lora_rank kv_lora_rank "
        "image_size conv_dim hidden_size_per_layer_input index_head_dim time_step_rank mamba_dt_rank adapter_rank "
        "ple_embed_dim"
    ),
    4: (
        "num_attention_heads n_head n_heads num_heads attention_heads encoder_attention_heads decoder_attention_heads "
        "num_encoder_attention_heads num_decoder_attention_heads num_experts n_routed_experts num_local_experts "
        "moe_num_experts swa_num_attention_heads num_filters linear_num_value_heads linear_num_heads n_mamba_heads "
        "index_n_heads num_conv_pos_embedding_groups window_size mm_tokens_per_image"
    ),
    2: (
        "num_key_value_heads num_kv_heads swa_num_key_value_heads num_experts_per_tok num_experts_per_token moe_k moe_topk "
        "num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers num_encoder_layers num_decoder_layers "
        "num_blocks depth linear_num_key_heads n_group num_expert_group num_global_layers"
    ),
    16: (
        "head_dim d_kv d_head dim_head attention_head_size swa_head_dim v_head_dim linear_key_head_dim linear_head_dim "
        "linear_value_head_dim state_size ssm_state_size mamba_d_state attention_head_dim kv_channels rotary_dim "
        "qk_nope_head_dim query_pre_attn_scalar chunk_size mamba_chunk_size sliding_window sliding_window_size "
        "local_attention attention_window_size global_head_dim attention_window conv_channels num_conv_pos_embeddings"
    ),
    8: "qk_rope_head_dim laurel_rank router_hidden_size patch_size",
    1: "topk_group",
    24: "qk_head_dim",
    128: (
        "max_position_embeddings n_positions n_ctx max_seq_len model_max_length context_length max_target_positions "
        "max_source_positions prompt_length original_max_position_embeddings max_encoder_position_embeddings "
        "max_decoder_position_embeddings"
    ),
}
SMALL = {key: value for value, keys in _SMALL.items() for key in keys.split()}

# Lists with an element a layer, some of which are only there once a configuration is made.
_KINDS = ("layer_types", "layers_block_type", "mlp_layer_types", "indexer_types", "block_types", "attn_layers")
_LAYER_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_blocks")
_MOST_LAYERS = 4

# What a prompt of a test does not have: tokens below this number mean something.
FIRST_ORDINARY_TOKEN = 40
_TOKENS = [
    "pad",
    "bos",
    "eos",
    "image",
    "video",
    "audio",
    "decoder_start",
    "boi",
    "eoi",
    "boa",
    "eoa",
    "mask",
    "cls",
    "sep",
]


def shrunk(kind: str, exceptions: dict | None = None) -> PreTrainedConfig:
    """The configuration of the type ``kind``; ``exceptions`` are what its keys must be, those of parts in dictionaries."""
    return _shrunk(CONFIG_MAPPING[kind], None, exceptions or {})


def _shrunk(cls: type[PreTrainedConfig], default: PreTrainedConfig | None, exceptions: dict) -> PreTrainedConfig:
    exceptions = dict(exceptions)
    default = default if default is not None else cls(**exceptions.pop("default", {}))
    values = {key: value for key in _fields(cls) if (value := _value(default, key)) is not None}
    settings = {key: small(key, value) for key, value in values.items() if not isinstance(value, PreTrainedConfig)}
    for prefix in ("", "swa_"):  # as many heads of keys as of queries stay as many
        heads, kv_heads = f"{prefix}num_attention_heads", f"{prefix}num_key_value_heads"
        if kv_heads in values and values[kv_heads] == values.get(heads):
            settings[kv_heads] = settings[heads]
    settings |= _layers(values, settings, exceptions)
    for key, value in values.items():
        if isinstance(value, PreTrainedConfig):
            settings[key] = _shrunk(type(value), value, exceptions.pop(key, {}))
    settings |= exceptions
    return cls(**{key: value for key, value in settings.items() if value is not None})


def _value(config: PreTrainedConfig, key: str):
    if key in vars(config):
        return vars(config)[key]
    return getattr(config, key, None) if key in config.attribute_map else None


def _fields(cls: type[PreTrainedConfig]) -> list[str]:
    general = {field.name for field in dataclasses.fields(PreTrainedConfig)}
    return [field.name for field in dataclasses.fields(cls) if field.init and field.name not in general]


def small(key: str, value):
    """What the key's value becomes."""
    if isinstance(value, (list, tuple)) and key in SMALL:
        return type(value)(small(key, one) for one in value)
    if isinstance(value, bool) or not isinstance(value, int):
        return value
    token = re.fullmatch(r"(\w+?)_(token_)?(id|index)", key)
    if token and value >= FIRST_ORDINARY_TOKEN:
        return _TOKENS.index(token[1]) if token[1] in _TOKENS else 15 + sum(map(ord, token[1])) % 20
    return min(value, SMALL.get(key, value))


def _layers(values: dict, settings: dict, exceptions: dict) -> dict:
    """One layer of each kind that the default has, and what lists say of them."""
    count_key = next((key for key in _LAYER_COUNTS if isinstance(settings.get(key), int)), None)
    if count_key is None:
        return {}
    count = values[count_key]
    lists = {key: v for key, v in values.items() if isinstance(v, (list, tuple)) and len(v) == count and count > 1}
    if count_key in exceptions:
        return dict.fromkeys(lists)
    kinds = [lists[key] for key in _KINDS if key in lists]
    seen: dict = {}
    for layer, kind in enumerate(zip(*kinds, strict=True)):
        seen.setdefault(kind, layer)
    chosen = sorted(seen.values())[:_MOST_LAYERS] or [0, 1]
    chosen = [chosen[0], chosen[0] + 1] if len(chosen) == 1 else chosen
    found = {key: [small(key, value[layer]) for layer in chosen] for key, value in lists.items()}
    return {**found, count_key: len(chosen)}
