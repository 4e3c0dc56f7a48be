"""What packed formats have in common: fields of a few bits, and numbers that blocks of a matrix share."""

import numpy as np
import torch
from torch import Tensor

_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)

_IQ4 = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


def bit_fields(words: Tensor, bits: int) -> Tensor:
    """The unsigned fields of int32 ``[rows, words]``, lowest bits first: int64 ``[rows, words * 32 // bits]``."""
    octets = np.ascontiguousarray(words.numpy().astype("<i4")).view(np.uint8)
    stream = np.unpackbits(octets, axis=-1, bitorder="little")
    fields = stream.reshape(stream.shape[0], -1, bits).astype(np.int64)
    return torch.from_numpy(fields @ (1 << np.arange(bits)))


def iq4_values(places: Tensor) -> Tensor:
    """The levels of llama.cpp's IQ4_NL at their places 0 to 15, float32."""
    return torch.tensor(_IQ4, dtype=torch.float32)[places.long()]


def fp4_values(fields: Tensor) -> Tensor:
    """The numbers of E2M1 that fields of 4 bits stand for, float32: three bits of magnitude and a sign."""
    magnitudes = torch.tensor(_E2M1)[fields.long() & 7]
    return torch.where(fields > 7, -magnitudes, magnitudes)


def exponents(octets: Tensor) -> Tensor:
    """Powers of two by their E8M0 bytes, float32."""
    return torch.ldexp(torch.ones(octets.shape), octets.int() - 127)


def spread(grid: Tensor, shape: torch.Size) -> Tensor:
    """Each entry of ``grid`` over its block of a matrix of ``shape``; the last blocks may be short."""
    rows, cols = shape
    height, width = -(-rows // grid.shape[0]), -(-cols // grid.shape[1])
    return grid.repeat_interleave(height, 0)[:rows].repeat_interleave(width, 1)[:, :cols]
