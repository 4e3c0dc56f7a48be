"""One table that an embedding looks up and a head multiplies with: its scales are learned once, as the table is."""

from typing import Any

import torch
from torch import Tensor, nn

# What a layer learns of its weight, where its scales are learned.
_NAMES = ("weight_scale", "weight_zero_point")


def share_learned_scales(layer: nn.Module, first: nn.Module) -> None:
    """Let ``layer`` learn the scales of its weight together with ``first``, which has the same weight and comes before it.

    Both then round the table to the same numbers, whatever is trained, and a file needs it once.
    """
    if layer.weight_spec is None or layer.weight_spec.scale != "learned":
        return
    for name in _NAMES:
        setattr(layer, name, getattr(first, name))
    layer.learns_with = True
    # For save_pretrained, which refuses tensors that are shared unless modules say so.
    layer._tied_weights_keys = {name: name for name in _NAMES if getattr(layer, name) is not None}


def check_learned_together(layer: nn.Module, state: dict[str, Any], prefix: str, errors: list[str]) -> None:
    """Whether ``state``, of which the layer that ``layer`` learns with is loaded, has the same scales for both."""
    for name in _NAMES if getattr(layer, "learns_with", False) else ():
        own, loaded = getattr(layer, name), state.get(prefix + name)
        if own is None or own.is_meta or type(loaded) not in (Tensor, nn.Parameter) or type(own) is not nn.Parameter:
            continue
        if loaded.shape != own.shape or not torch.equal(loaded.to(own), own.detach()):
            errors.append(
                f"{prefix}{name} must be that of the embedding whose weight it shares, but differs: an earlier version "
                "learned the scales of both apart; go on with the one that trained it."
            )
