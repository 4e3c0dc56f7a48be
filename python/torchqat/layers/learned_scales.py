"""What training has made of the learned scales of a layer."""

import torch
from torch import nn

from torchqat.layers.layer_state import SCALE_NAMES
from torchqat.layers.sharded import whole

# Grids whose scales have the sign of the largest element under them.
_SIGNED = ("signed", "iq4_nl")


class LearnedScales:
    """The part of a layer that looks at them before they are exported."""

    def check_learned(self, name: str) -> None:
        """A learned scale that is no number would be read as 1."""
        for leaf in SCALE_NAMES:
            learned = getattr(self, leaf, None)
            bad = int((~whole(learned.detach()).isfinite()).sum()) if isinstance(learned, nn.Parameter) else 0
            if bad:
                raise ValueError(
                    f"The {leaf} of {name} must be finite, but has {bad} elements that are NaN or infinite."
                )

    @torch.no_grad()
    def lost_scales(self) -> int:
        """How many learned scales lie at zero or below, where they are those of magnitudes: each began above."""
        count = 0
        for name, spec in (("weight_scale", self.weight_spec), ("input_scale", self.input_spec)):
            scale = getattr(self, name, None)
            if isinstance(scale, nn.Parameter) and not scale.is_meta and spec.grid not in _SIGNED:
                count += int((whole(scale.detach()) <= 0).sum())
        return count
