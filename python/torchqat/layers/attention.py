"""What an attention layer of transformers keeps of a text, by what it is rather than by its architecture's name."""

import inspect
import sys
from dataclasses import dataclass

from torch import nn

# As architectures call the channels of one head.
_SIZES = ("head_dim", "head_size")


def causal_attention(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The causal attention layers of ``model`` that call their function by transformers' interface, those of text alone."""
    found = [(name, module) for name, module in model.named_modules() if _is_causal_attention(module)]
    if not hasattr(model, "config"):
        return found
    text = type(model.config.get_text_config(decoder=True))
    return [(name, module) for name, module in found if type(module.config) is text]


def _is_causal_attention(module: nn.Module) -> bool:
    known = hasattr(sys.modules.get(type(module).__module__), "ALL_ATTENTION_FUNCTIONS")
    if not known or getattr(module, "is_causal", False) is not True or not hasattr(module, "config"):
        return False
    forward = inspect.unwrap(type(module).forward)
    return "ALL_ATTENTION_FUNCTIONS" in forward.__code__.co_names


@dataclass(frozen=True)
class CacheShape:
    """What an attention layer keeps of a token: key and value heads, and the channels of a key and of a value."""

    heads: int
    key_size: int
    value_size: int


def cache_shape(layer: nn.Module) -> CacheShape | None:
    """The keys and values of an attention layer, by the width of what projects them.

    Returns:
        ``None`` where the layer does not tell, or keeps something else, such as a latent vector of both.
    """
    size = next((value for name in _SIZES if isinstance(value := getattr(layer, name, None), int)), None)
    if not size:
        return None
    keys, values = (_width(getattr(layer, name, None)) for name in ("k_proj", "v_proj"))
    if keys is not None and values is not None:
        heads, rest = divmod(keys, size)
        return CacheShape(heads, size, values // heads) if heads and not rest and values % heads == 0 else None
    if getattr(layer, "v_head_dim", size) != size:
        return None
    for child in layer.children():  # one projection for queries, keys and values
        heads, rest = divmod((_width(child) or 0) - layer.config.num_attention_heads * size, 2 * size)
        if heads > 0 and rest == 0:
            return CacheShape(heads, size, size)
    return None


def _width(module: nn.Module | None) -> int | None:
    """The features that a linear layer gives; transformers' ``Conv1D`` has them by another name."""
    return getattr(module, "out_features", None) or getattr(module, "nf", None)
