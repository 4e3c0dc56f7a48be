"""The operators, documented and typed. Each is one call to ``torch.ops.qat``; the arithmetic is in C++.

A tensor is seen as a matrix ``[rows, cols]`` whose columns are its last dimension, and ``block = (rows, cols)`` cuts it
into blocks that share a scale; -1 takes a whole axis: per tensor ``(-1, -1)``, per channel or token ``(1, -1)``, per
group ``(1, g)``, 2-D ``(128, 128)``. Scales are float32 ``[grid_rows, grid_cols]``. Equations: ``docs/numerics.md``.

Shared errors: ``TypeError`` for a dtype that is not float32, float16 or bfloat16, ``ValueError`` for a scale or zero
point that does not have one entry per block and for a range outside [-128, 127].
"""

from torchqat import _library  # noqa: F401  registers torch.ops.qat
from torchqat.ops.block import Block
from torchqat.ops.codes import (
    choose_qparams,
    decode,
    dequantize,
    encode,
    pack,
    quantize,
    quantize_with_feedback,
    round_qparams,
    unpack,
)
from torchqat.ops.kv_cache import fake_quantize_cache, quantized_pairs
from torchqat.ops.linear import pack_panels, packed_linear, quant_linear, unpack_panels
from torchqat.ops.rounding import fake_quantize, fake_quantize_dynamic, fake_quantize_learned
from torchqat.ops.runtime import cpu_capability, kept_bytes, most_kept_bytes, release_kept_memory

__all__ = [
    "Block",
    "fake_quantize",
    "fake_quantize_dynamic",
    "fake_quantize_learned",
    "quant_linear",
    "packed_linear",
    "pack_panels",
    "unpack_panels",
    "choose_qparams",
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
