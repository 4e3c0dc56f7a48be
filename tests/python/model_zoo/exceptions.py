"""Keys of configurations that ``shrink`` cannot know: sizes that belong together, and structure that a default lacks."""

_MAMBA2 = {"mamba_n_heads": 8, "mamba_d_head": 16}
_GEMMA4 = {"global_head_dim": 32, "num_kv_shared_layers": 0}
_DOTS3 = {
    "swa_num_attention_heads": 4, "swa_num_key_value_heads": 4, "swa_q_lora_rank": 32, "swa_kv_lora_rank": 32,
    "swa_head_dim": 24, "swa_qk_nope_head_dim": 16, "swa_v_head_dim": 16,
}  # fmt: skip
_ASSISTANT = {
    "num_hidden_layers": 2, "num_kv_shared_layers": 2, "hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0,
    "global_head_dim": 32,
}  # fmt: skip
_MOE_WITHOUT_DEFAULTS = {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1}
_SLIDING_AND_FULL = {"num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"]}
_CONV_AND_FULL = {"num_hidden_layers": 3, "layer_types": ["conv", "full_attention", "conv"]}
_QWEN4 = {
    "ple_embed_dim": 32, "ple_layer_ids": [1], "eos_token_id": 2, "hc_lowrank": 16, "ngram_vocab_size_base": 64,
    "heads_per_ngram": 2, "indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 16, "indexer_budget": 16,
    "indexer_compress_ratio": 4, "make_ngram_vocab_size_divisible_by": 8, "split_ngram_parts": 1,
}  # fmt: skip

_MROPE = {
    "text_config": {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}}
}
_DEEPSTACK = {"vision_config": {"deepstack_visual_indexes": [0, 1]}}
_STAGES = {"embed_dim": 32, "depths": [1, 1], "num_heads": [2, 4]}
_GEMMA4_VISION = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 16}
_JAMBA = {"num_hidden_layers": 2, "attn_layer_period": 2, "attn_layer_offset": 1}

# By type. Keys of a part are a dictionary under the part's key; "default" is what the default itself needs.
EXCEPTIONS: dict[str, dict] = {
    "bamba": {**_MAMBA2, "num_hidden_layers": 2, "attn_layer_indices": [1]},
    "bit": {"hidden_sizes": [32, 64], "depths": [1, 1], "embedding_size": 32, "num_groups": 8},
    "blt": {"encoder_hash_byte_group_vocab": 64},
    "cohere_compass_text": {
        **_SLIDING_AND_FULL,
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            "full_attention": {"rope_type": "default", "rope_theta": 10000.0},
        },
    },
    "dbrx": {
        "attn_config": {"rope_theta": 10000.0, "kv_n_heads": 2, "clip_qkv": 8.0},
        "ffn_config": {"hidden_size": 64, "ffn_hidden_size": 96, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dory": {"num_hidden_layers": 3, "n_input_layers": 1, "n_recurrent_layers": 1, "n_output_layers": 1},
    "dots1": {**_MOE_WITHOUT_DEFAULTS, "first_k_dense_replace": 1},
    "dots3_note": {"text_config": _DOTS3},
    "dots3_note_text": _DOTS3,
    "falcon_h1": {"mamba_n_heads": 4, "mamba_d_head": 16},
    "focalnet": {
        "embed_dim": 32, "depths": [1, 1], "hidden_sizes": [32, 64], "focal_levels": [2, 2], "focal_windows": [3, 3],
    },
    "gemma3n_text": {
        "num_hidden_layers": 3, "num_kv_shared_layers": 1, "intermediate_size": [96] * 3,
        "layer_types": ["full_attention", "sliding_attention", "full_attention"],
    },
    "gemma4, image and text": {
        "default": {"vision_config": {"hidden_size": 64}}, "vision_config": _GEMMA4_VISION, "text_config": _GEMMA4,
    },
    "gemma4_text": _GEMMA4,
    "gemma4_assistant": {"default": {"text_config": _ASSISTANT}, "text_config": _ASSISTANT},
    "gemma4_unified_assistant": {"default": {"text_config": _ASSISTANT}, "text_config": _ASSISTANT},
    "glm4v": _MROPE,
    "got_ocr2": {"vision_config": {"output_channels": 16, "image_size": 64, "global_attn_indexes": [1]}},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "attention_layers": ["global", "local"]},
    "granitemoehybrid": {
        **_MAMBA2, "num_hidden_layers": 2, "layer_types": ["mamba", "attention"], "num_local_experts": 4,
    },
    "hrm_text": {"default": {"num_hidden_layers": 1}, "num_hidden_layers": 8, "num_layers_per_stack": 1},
    "hunyuan_v1_dense": {"head_dim": 16},
    "hunyuan_v1_moe": {"head_dim": 16, "num_experts": 4, "moe_topk": 2},
    "jamba": {**_JAMBA, "expert_layer_period": 2, "expert_layer_offset": 1},
    "lfm2_moe": {**_CONV_AND_FULL, "num_dense_layers": 1},
    "llava_next": {"image_grid_pinpoints": [[32, 64], [64, 32]]},
    "longcat_flash": {"zero_expert_num": 2, "head_dim": 8},
    "mamba2": {"num_heads": 8, "head_dim": 16, "n_groups": 1},
    "ministral": {"head_dim": 16},
    "mllama": {
        "vision_config": {"intermediate_layers_indices": [0, 1], "vision_output_dim": 192},
        "text_config": {"cross_attention_layers": [1]},
    },
    "mobilenet_v2": {"depth_multiplier": 0.35},
    "nemotron": {"head_dim": 16, "num_key_value_heads": 2},
    "nemotron_h": {"mamba_num_heads": 8, "mamba_head_dim": 16, "n_groups": 1},
    "phi4_multimodal": {
        "audio_config": {"nemo_conv_channels": 16, "ext_pw_out_channel": 64, "depthwise_separable_out_channel": 64},
    },
    "qwen2_5_vl": {**_MROPE, "vision_config": {"window_size": 32}},
    "qwen2_vl": _MROPE,
    "qwen3_vl": _DEEPSTACK,
    "qwen3_vl_moe": _DEEPSTACK,
    "qwen4_exp": {"text_config": _QWEN4},
    "qwen4_exp_text": _QWEN4,
    "recurrent_gemma": {"num_hidden_layers": 3, "block_types": ["recurrent", "recurrent", "attention"]},
    "reformer": {"is_decoder": True, "axial_pos_shape": [8, 16], "axial_pos_embds_dim": [16, 48]},
    "roc_bert": {
        "shape_vocab_size": 64, "pronunciation_vocab_size": 64, "shape_embed_dim": 32, "pronunciation_embed_dim": 32,
    },
    "swin": _STAGES,
    "swinv2": _STAGES,
    "wav2vec2-conformer": {"vocab_size": 64},
    "xlstm": {"qk_dim_factor": 1.0},
    "xmod": {"default_language": "en_XX"},
    "zamba": {
        "num_hidden_layers": 4, "layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"],
        "attention_hidden_size": 128, "attention_head_dim": 32,
    },
}  # fmt: skip
