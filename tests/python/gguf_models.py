"""Tiny models of each architecture that GGUF files are written for, with weights whose predictions differ."""

import torch
import transformers

_SHAPE = {
    "vocab_size": 320,
    "hidden_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
}
_USUAL = {"intermediate_size": 192, "num_key_value_heads": 2}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 96}
_WINDOWS = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
_TWO_BASES = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}
_YARN = {
    "rope_type": "yarn", "factor": 8.0, "rope_theta": 150000.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": True,
    "original_max_position_embeddings": 128,
}  # fmt: skip
_LONG = {
    "rope_type": "longrope", "rope_theta": 1e4, "partial_rotary_factor": 0.75, "original_max_position_embeddings": 256,
    "short_factor": [1.0 + 0.1 * i for i in range(12)], "long_factor": [1.5 + 0.3 * i for i in range(12)], "factor": 4.0,
}  # fmt: skip
_HALF = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
_GRANITE = {
    "embedding_multiplier": 6.0, "logits_scaling": 2.0, "residual_multiplier": 0.4, "attention_multiplier": 0.1,
}  # fmt: skip
_LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip

# By a name, whose first word is the type of transformers: what its configuration has beside the sizes.
MODELS = {
    "llama": {**_USUAL},
    "llama linear": {**_USUAL, "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}},
    "llama yarn": {**_USUAL, "rope_parameters": _YARN},
    "qwen2": {**_USUAL},
    "qwen3": {**_USUAL, "head_dim": 32},
    "qwen3_moe": {**_USUAL, **_EXPERTS, "head_dim": 32, "norm_topk_prob": True},
    "mixtral": {**_USUAL, "num_local_experts": 4, "num_experts_per_tok": 2},
    "gemma": {**_USUAL, "head_dim": 48},
    "gemma2": {**_USUAL, "head_dim": 48, "query_pre_attn_scalar": 48, "sliding_window": 8},
    "gemma3_text": {
        **_USUAL, **_WINDOWS, "head_dim": 32, "query_pre_attn_scalar": 32, "rope_parameters": _TWO_BASES,
    },
    "phi3": {**_USUAL, "sliding_window": None},
    "phi3 longrope": {
        **_USUAL, "sliding_window": None, "max_position_embeddings": 1024, "original_max_position_embeddings": 256,
        "rope_parameters": _LONG,
    },
    "smollm3": {**_USUAL, "num_hidden_layers": 5},
    "qwen2_moe": {**_USUAL, **_EXPERTS, "shared_expert_intermediate_size": 160, "norm_topk_prob": False},
    "olmoe": {**_USUAL, "num_experts": 4, "num_experts_per_tok": 2, "num_key_value_heads": 4},
    "gpt_oss": {
        **_USUAL, **_WINDOWS, "num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 32, "rope_parameters": _YARN,
    },
    "granite": {**_USUAL, **_GRANITE},
    "granite llama3": {**_USUAL, **_GRANITE, "rope_parameters": _LLAMA3},
    "glm4": {**_USUAL, "head_dim": 32, "rope_parameters": _HALF, "attention_bias": True},
    "olmo2": {**_USUAL},
    "starcoder2": {**_USUAL, "sliding_window": None},
    "gpt2": {},
    "falcon 7b": {"multi_query": True},
    "falcon 40b": {"new_decoder_architecture": True, "num_kv_heads": 2},
    "falcon rw": {"multi_query": False, "num_kv_heads": 4},
    "gemma3 with images": {},
}  # fmt: skip


# Routers prefer experts clearly, as trained ones do: of others, inputs that are rounded to 8 bits reach other experts.
_ROUTERS, _ROUTED = ("mlp.gate.weight", "router.weight"), 5.0
_HEAD = 0.7
# What rules match their blocks by, where it is not model.layers.*
BLOCKS = {
    "gpt2": "transformer.h.*",
    "falcon": "transformer.h.*",
    "gemma3": "model.language_model.layers.*",
}


def build(name: str, gain: float = 1.3, **settings):
    """The model called ``name`` in ``MODELS``; each weight is one of float16, none of them zero or one.

    Matrices multiply the size of what they are given by about ``gain``.
    """
    torch.manual_seed(0)
    model = _with_images(settings) if name == "gemma3 with images" else _of_text(name, settings)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() == 1:
                value = parameter + 0.2 * noise
            else:
                is_embedding = any(word in parameter_name for word in ("embed", "wte", "wpe"))
                size = _ROUTED if parameter_name.endswith(_ROUTERS) else _HEAD if "lm_head" in parameter_name else gain
                value = noise * (0.2 if is_embedding else size / parameter.shape[-1] ** 0.5)
            parameter.copy_(value.half().float())
    return model.eval()


def _of_text(name: str, settings: dict):
    kind = name.split()[0]
    config = transformers.CONFIG_MAPPING[kind](**{**_SHAPE, **MODELS[name], **settings})
    return transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")


def _with_images(settings: dict):
    text = {**_SHAPE, **MODELS["gemma3_text"], **settings}
    vision = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32,
        "patch_size": 8,
    }  # fmt: skip
    config = transformers.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    for key, token in (("image_token_index", 2), ("boi_token_index", 3), ("eoi_token_index", 4)):
        setattr(config, key, token)
    return transformers.AutoModelForImageTextToText.from_config(config, attn_implementation="eager")
