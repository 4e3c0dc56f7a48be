"""Tiny models of the architectures that foldings must know, with weights that show a wrong fold."""

import torch
import transformers

_SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 100,
    "max_position_embeddings": 64,
}
NAMES = ("Llama", "Mistral", "Qwen2", "Qwen3", "Gemma", "Gemma2", "Gemma3Text")


def build(name: str, seed: int = 0, **settings):
    """A causal language model; norms and biases are not what they start as, and one channel of each norm is large."""
    torch.manual_seed(seed)
    config = getattr(transformers, f"{name}Config")(**{**_SHAPE, **settings})
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
            if "layernorm" in parameter_name:
                parameter[3] = 12.0
    return model


RECIPE = """version: 1
layers:
  - match: "model.layers.*"
    weight: {weight}
    {input}
initialize: {initialize}
"""


def recipe(initialize: str, weight: str = "{dtype: int4, group_size: 16, grid: full, scale: mse}", input: str = ""):
    import torchqat

    return torchqat.parse_recipe(
        RECIPE.format(weight=weight, input=f"input: {input}" if input else "", initialize=initialize), "recipe"
    )


def tokens(count: int = 4, length: int = 32, seed: int = 1):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 100, (2, length), generator=generator) for _ in range(count)]
