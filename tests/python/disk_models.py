"""Models whose tensors lie otherwise on disk than in memory, and recipes of them."""

import architectures
import torch
import torchqat
import transformers

EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
LATENT = {"q_lora_rank": 32, "kv_lora_rank": 32, "qk_rope_head_dim": 16, "qk_nope_head_dim": 16, "v_head_dim": 16}
ROUTED = {"n_routed_experts": 4, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "num_key_value_heads": 4}
SETTINGS = {
    "Mixtral": {"num_local_experts": 4},
    "Qwen3Moe": EXPERTS,
    "DeepseekV3": {"num_experts_per_tok": 2, "moe_intermediate_size": 32, **ROUTED, **LATENT},
    "GPTNeoX": {},
    "GraniteMoe": {"num_local_experts": 4},
    "Laguna": {**EXPERTS, "shared_expert_intermediate_size": 32},
}
ROUTERS = {
    "Mixtral": ["model.layers.0.block_sparse_moe.gate", "model.layers.0.mlp.gate"],
    "Qwen3Moe": ["model.layers.0.mlp.gate"],
    "DeepseekV3": ["model.layers.1.mlp.gate"],
    "Laguna": ["model.layers.1.mlp.gate"],
}
PACKED = ("_packed", "_scale", "_shape")
RECIPE = """version: 1
layers:
  - match: "{blocks}.*"
    weight: {{dtype: int4, group_size: 16, grid: full, scale: mse}}
initialize: {{method: {method}, objective: layer}}
"""


BLOCKS = {"GPTNeoX": "gpt_neox.layers", "Gemma3": "model.language_model.layers"}


def settings(family, format="compressed-tensors", method="gptq", more=""):
    text = RECIPE.format(blocks=BLOCKS.get(family, "model.layers"), method=method)
    if family in SETTINGS and family != "GPTNeoX":
        text = text.replace("initialize:", '  - {match: "*.experts.*", weight: float}\ninitialize:')
    found = torchqat.parse_recipe(text + more, "recipe")
    found.exports = [format]
    return found


def forward(model, batch):
    return model(input_ids=batch, use_cache=False)


def of_language(folder):
    """A Gemma 3 with eyes, which lies on disk with its prefixes in another order."""
    text = {name: value for name, value in architectures._SHAPE.items() if name != "max_position_embeddings"}
    vision = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.Gemma3Config(
        text_config=text,
        vision_config={**vision, "image_size": 28, "patch_size": 14},
        mm_tokens_per_image=4,
        image_token_index=98,
    )
    torch.manual_seed(0)
    transformers.Gemma3ForConditionalGeneration(config).eval().save_pretrained(folder)


def without_prefix(folder):
    """A base model, whose tensors lack the prefix that they have under a head."""
    architectures.build("Llama", tie_word_embeddings=True).model.save_pretrained(folder)
