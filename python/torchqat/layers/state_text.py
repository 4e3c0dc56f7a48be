"""Which levels the scales in a state are for, in words beside them: others of as many bits give them another meaning."""

from typing import Any

import torch
from torch import Tensor

from torchqat._library import KvCacheSpec, QuantSpec

# The buffer's name, and its size in bytes.
TEXT = "quantizer_text"
_SIZE = 128
_PLAIN = ("bfloat16", "float16", "float32")
_NONE = "none"


def text_of_layer(weight: QuantSpec | None, input: QuantSpec | None) -> str:
    """Such as ``int narrow 1x32, int asymmetric -1x-1``, of the weight and the input: ``none`` of what keeps no scale.

    Neither bits, where a layer may go to other ones, nor the dtype that scales are stored in is among it, since states of
    such layers may be loaded: the widths are in the state as well, and a scale that the dtype cannot hold is refused.
    """
    of_weight = _NONE if weight is None or weight.finds_scale else _text(weight)
    of_input = _NONE if input is None or input.dynamic else _text(input)
    return f"{of_weight}, {of_input}"


def text_of_cache(spec: KvCacheSpec) -> str:
    """Such as ``fp8_e4m3 tensor, fp8_e4m3 tensor``, of keys and values: ``none`` of those that keep no scale."""
    sides = (spec.key, spec.value)
    return ", ".join(_NONE if side.dynamic else f"{side.dtype} {side.grid} {side.granularity}" for side in sides)


def _text(spec: QuantSpec) -> str:
    _, levels, *rest = spec.quantizer(spec.bits, "fixed").split()
    if spec.takes_widths:
        levels = levels.rstrip("0123456789")
    return " ".join([levels, *(word for word in rest if word not in _PLAIN)])


def as_buffer(text: str, device: torch.device | None = None) -> Tensor:
    """``text`` as a buffer holds it: int8 of one size, so that states of all layers have the same form."""
    return torch.tensor(list(text.encode("ascii").ljust(_SIZE, b"\0")), dtype=torch.int8, device=device)


def other_grid(own: str, loaded: Any, where: str) -> str:
    """A sentence where the scales of a state that was ``loaded`` are for another grid than the layer's ``own``; else empty.

    Args:
        own: The layer's text.
        loaded: The state's buffer; none of a state from before there was one.
        where: The layer's name.
    """
    if type(loaded) is not Tensor or loaded.is_meta or loaded.dtype != torch.int8 or loaded.shape != (_SIZE,):
        return ""
    theirs = bytes(loaded.cpu().tolist()).rstrip(b"\0").decode("ascii", "replace")
    for mine, other in zip(own.split(", "), theirs.split(", "), strict=False):
        if _NONE not in (mine, other) and mine != other:
            return (
                f"The scales of {where} must be for the levels that the recipe asks for, {mine}, but those in the state are "
                f"for {other}: load it into a model that was prepared by the recipe that it was trained with, or load its "
                "weights alone, for which scales are then chosen."
            )
    return ""
