"""What an attention layer of transformers keeps of a text, by what it is rather than by its architecture's name."""

import inspect
import sys

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


def key_heads(layer: nn.Module) -> tuple[int, int] | None:
    """Key and value heads of an attention layer and their channels, by the width of what projects keys.

    Returns:
        ``None`` where the layer does not tell, or keeps something else, such as a latent vector of keys and values.
    """
    size = next((value for name in _SIZES if isinstance(value := getattr(layer, name, None), int)), None)
    if not size or getattr(layer, "v_head_dim", size) != size:
        return None
    widths = [_width(getattr(layer, name, None)) for name in ("k_proj", "v_proj")]
    if widths[0] is not None:
        return (widths[0] // size, size) if widths[0] == widths[1] and widths[0] % size == 0 else None
    queries = layer.config.num_attention_heads
    for child in layer.children():  # one projection for queries, keys and values
        others, rest = divmod((_width(child) or 0) - queries * size, 2 * size)
        if others > 0 and rest == 0:
            return others, size
    return None


def _width(module: nn.Module | None) -> int | None:
    """The features that a linear layer gives; transformers' ``Conv1D`` has them by another name."""
    return getattr(module, "out_features", None) or getattr(module, "nf", None)
