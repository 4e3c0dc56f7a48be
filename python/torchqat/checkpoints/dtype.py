"""The dtype of a checkpoint: scales must fit into it exactly; what is not quantized is rounded to it once."""

from collections.abc import Iterable

import torch
from torch import nn

from torchqat._library import DTYPES, Format, LayerPlan
from torchqat.errors import UserError
from torchqat.layers.prepared import quant_layers
from torchqat.precision import dtype_word


def dtype_named(name: str) -> torch.dtype | None:
    """The dtype called ``name``; ``None`` for no name.

    Raises:
        UserError: There is no such dtype.
    """
    if name and name not in DTYPES:
        raise UserError(f"dtype must be {', '.join(DTYPES)}, but is {name}.")
    return DTYPES[name] if name else None


def stored_dtype(format: Format, asked: torch.dtype | None) -> torch.dtype | None:
    """What a checkpoint is in: what was asked for, or that of the format; ``None`` for the model's own.

    Raises:
        UserError: The format is defined in another than what was asked for, or that is no dtype of floating point.
    """
    check_dtype(asked)
    if asked is not None and format.dtype not in (None, asked):
        raise UserError(f"{format.name} is stored in {format.dtype}, but dtype asks for {asked}.")
    return asked or format.dtype


def check_dtype(asked: object) -> None:
    """Raises UserError if ``asked`` is neither ``None`` nor a dtype of floating point."""
    if asked is not None and not (isinstance(asked, torch.dtype) and asked.is_floating_point):
        raise UserError(f"dtype must be torch.float32, torch.bfloat16 or torch.float16, but is {asked!r}.")


def check_precision(layers: Iterable[LayerPlan], dtype: torch.dtype) -> None:
    """Whether ``dtype`` has the digits of the layers' scales; whether it has their range is seen when they are there.

    Raises:
        UserError: It has not.
    """
    for layer in layers:
        if layer.weight is not None and not _has_digits(dtype, layer.weight.scale_dtype):
            here, trained = dtype_word(dtype), layer.weight.scale_dtype
            raise UserError(
                f"The scales of {layer.name} are to be trained in {trained}, which a checkpoint in {here} cannot hold "
                f"exactly; set scale_dtype to {here} or export in {' or '.join(dict.fromkeys((trained, 'float32')))}."
            )


def has_digits(layers: Iterable[LayerPlan], dtype: torch.dtype) -> bool:
    """Whether ``check_precision`` passes."""
    return all(layer.weight is None or _has_digits(dtype, layer.weight.scale_dtype) for layer in layers)


@torch.no_grad()
def holds_scales(model: nn.Module, dtype: torch.dtype) -> bool:
    """Whether each scale of a prepared model is the same number in ``dtype``."""
    scales = (
        layer.stored_qparams()[0]
        for _, layer in quant_layers(model)
        if layer.weight_spec is not None and layer.weight_spec.scale_dtype in DTYPES
    )
    return all(torch.equal(scale.to(dtype).to(scale.dtype), scale) for scale in scales)


def _has_digits(dtype: torch.dtype, scale_dtype: str) -> bool:
    """A scale that is a code is stored as one."""
    return scale_dtype not in DTYPES or torch.finfo(dtype).eps <= torch.finfo(DTYPES[scale_dtype]).eps
