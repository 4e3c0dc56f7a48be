"""The operators, documented and typed. Each is one call to ``torch.ops.qat``; the arithmetic is in C++.

A tensor is seen as a matrix ``[rows, cols]`` whose columns are its last dimension, and ``block = (rows, cols)`` cuts it
into blocks that share a scale; -1 takes a whole axis: per tensor ``(-1, -1)``, per channel or token ``(1, -1)``, per
group ``(1, g)``, 2-D ``(128, 128)``. Scales are float32 ``[grid_rows, grid_cols]``. Equations: ``docs/numerics.md``.

How a tensor is quantized is one line of text, ``quantizer_text``, such as ``minmax int4 narrow 1x32 bfloat16``.

Shared errors: ``TypeError`` for a dtype that is not float32, float16 or bfloat16, ``ValueError`` for a text of another
form and for a scale or zero point that does not have one entry per block.
"""

from torchqat import _library  # noqa: F401  registers torch.ops.qat
from torchqat.ops.block import Block
from torchqat.ops.codes import (
    choose_outer_scales,
    choose_qparams,
    decode,
    dequantize,
    encode,
    outer_scales,
    pack,
    quantize,
    quantize_with_feedback,
    round_qparams,
    unpack,
)
from torchqat.ops.deprecated import fake_quantize_dynamic, fake_quantize_learned
from torchqat.ops.kv_cache import fake_quantize_cache, quantized_pairs
from torchqat.ops.linear import pack_panels, packed_linear, quant_linear, unpack_panels
from torchqat.ops.quantizer import quantizer_text
from torchqat.ops.rounding import fake_quantize
from torchqat.ops.runtime import cpu_capability, kept_bytes, most_kept_bytes, release_kept_memory

__all__ = [
    "Block",
    "quantizer_text",
    "fake_quantize",
    "fake_quantize_dynamic",
    "fake_quantize_learned",
    "quant_linear",
    "packed_linear",
    "pack_panels",
    "unpack_panels",
    "choose_qparams",
    "choose_outer_scales",
    "outer_scales",
    "round_qparams",
    "quantize",
    "dequantize",
    "quantize_with_feedback",
    "encode",
    "decode",
    "pack",
    "unpack",
    "fake_quantize_cache",
    "quantized_pairs",
    "cpu_capability",
    "kept_bytes",
    "most_kept_bytes",
    "release_kept_memory",
]
