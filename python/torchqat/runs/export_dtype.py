"""What a run's checkpoints are in: what was asked for or, of what was trained in float32, what the model came in."""

import torch
from torch import nn

from torchqat._library import DTYPES, LayerPlan
from torchqat.checkpoints.dtype import dtype_named, has_digits, holds_scales
from torchqat.checkpoints.formats.known import find_format
from torchqat.checkpoints.formats.mlx import has_exact_products
from torchqat.checkpoints.formats.tensors import checkpoint_plan, float_tensors
from torchqat.errors import first_of
from torchqat.precision import dtype_word
from torchqat.runs.run import Run


def planned_dtype(run: Run, format: str, layers: list[LayerPlan]) -> torch.dtype | None:
    """What a checkpoint of ``layers`` is to be in; ``None`` for the model's own dtype."""
    defined, source = find_format(format).dtype, run.float_model.dtype
    if defined is not None or run.dtype:
        return defined or dtype_named(run.dtype)
    if format == "onnx" or source is None:  # a graph computes in the dtype of the module
        return None
    narrower = source.itemsize < DTYPES[run.recipe.model.dtype].itemsize
    holds = has_digits(layers, source) and (format != "mlx" or has_exact_products(layers, source))
    return source if narrower and holds else None


def export_dtype(run: Run, model: nn.Module, format: str) -> torch.dtype | None:
    """The same of a model whose scales are known: not what it came in where that cannot hold them."""
    dtype = planned_dtype(run, format, checkpoint_plan(model).layers)
    fixed = run.dtype or dtype is None or find_format(format).dtype is not None
    return dtype if fixed or holds_scales(model, dtype) else None


def stored_bits(run: Run) -> int:
    """Of an element that stays in floating point, and of a scale, in the recipe's first format."""
    dtype = planned_dtype(run, run.recipe.exports[0], run.plan.layers)
    return 8 * (dtype or next(run.float_model.outline.parameters()).dtype).itemsize


def scales_of_integers(exports: list[str]) -> str:
    """The dtype of scales that every format of ``exports`` holds, where integers take the place of another type."""
    halves = any(find_format(name).dtype == torch.float16 for name in exports)
    return "float16" if halves else "bfloat16"


def dtype_note(run: Run, model: nn.Module, format: str, dtype: torch.dtype | None) -> str:
    """What a user should know of a checkpoint in ``dtype``, where the model came in another or is rounded; else empty."""
    source, own = run.float_model.dtype, next(model.parameters()).dtype
    if source is None or run.dtype or format == "onnx" or find_format(format).dtype is not None:
        return ""
    if dtype is None and source.itemsize < own.itemsize and format == "mlx":
        return (
            f"The mlx checkpoint is in {dtype_word(own)}, not in {dtype_word(source)}, which the model came in and in which "
            "MLX would round the weights; scale_dtype: e8m0_even makes them exact in bfloat16."
        )
    if dtype is None and source.itemsize < own.itemsize:
        return (
            f"Checkpoints are in {dtype_word(own)}, not in {dtype_word(source)}, which the model came in and which cannot "
            f"hold the scales; scale_dtype: {dtype_word(source)} makes it so."
        )
    if dtype is not None and (rounded := _rounded(model, dtype)):
        return (
            f"Checkpoints are in {dtype_word(dtype)}, which the model came in, so that {first_of(rounded)} of what is not "
            f"quantized is rounded to it; --dtype {dtype_word(own)} keeps what training had."
        )
    return ""


@torch.no_grad()
def _rounded(model: nn.Module, dtype: torch.dtype) -> list[str]:
    """What is not quantized and not the same number in ``dtype``."""
    floats = float_tensors(model, checkpoint_plan(model))
    return [name for name, t in floats if t.is_floating_point() and not torch.equal(t.to(dtype).to(t.dtype), t)]
