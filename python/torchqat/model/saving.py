"""A word where ``save_pretrained`` of transformers writes a prepared model, which it writes as it is before rounding."""

import sys
import warnings

from torch import nn

# Between a hook and save_pretrained: the state dict, and decorators.
_FRAMES = 6


def tell_of_saving(model: nn.Module) -> None:
    """Say so wherever ``model.save_pretrained`` asks for the state of the model, or of a copy of it.

    A method of its own in the model's place would be a cycle, and keep the memory of a model that nobody has any more.
    """
    if hasattr(model, "save_pretrained"):
        model.register_state_dict_pre_hook(_tell)


def _tell(model: nn.Module, prefix: str, keep_vars: bool) -> None:
    frame = sys._getframe(1)
    for level in range(2, 2 + _FRAMES):
        if frame is None:
            return
        if frame.f_code.co_name == "save_pretrained" and frame.f_locals.get("self") is model:
            warnings.warn(
                "save_pretrained writes the weights before they are rounded, to go on training from: torchqat.export writes "
                "the quantized checkpoint.",
                stacklevel=level + 1,
            )
            return
        frame = frame.f_back
