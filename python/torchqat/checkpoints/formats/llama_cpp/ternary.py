"""TQ1_0: -1, 0 and 1 in 1.69 bits, five of them to a byte; the codes and scales of TQ2_0, which has four."""

import torch
from torch import Tensor

from torchqat._library import QuantizedWeights

COLUMNS = 256  # of a block: 32 bytes of 5, 16 bytes of 5, 4 bytes of 4, and a float16 scale
_POWERS = (81, 27, 9, 3, 1)


def tq1_0_blocks(layer: QuantizedWeights) -> Tensor:
    """Codes -1, 0 and 1, in groups of a multiple of 256 columns, as bytes uint8 ``[rows, columns / 256 * 54]``."""
    rows, columns = layer.codes.shape
    digits = (layer.codes.int() + 1).reshape(rows, -1, COLUMNS)
    parts = [
        _numbers(digits[..., :160], 5, 32),
        _numbers(digits[..., 160:240], 5, 16),
        _numbers(digits[..., 240:], 4, 4),
    ]
    # As a fraction of 243, rounded up: a reader gets a digit by a product with 3 and the carry, again and again.
    fractions = (torch.cat(parts, -1) * 256 + 242) // 243
    blocks = digits.shape[1]
    scales = layer.scale.repeat_interleave(blocks // layer.scale.shape[1], 1).half()
    return torch.cat([fractions.to(torch.uint8), scales.unsqueeze(-1).view(torch.uint8)], -1).reshape(rows, -1)


def _numbers(digits: Tensor, of_each: int, count: int) -> Tensor:
    """``count`` numbers of so many digits, whose first digits come one after the other, then their second ones."""
    powers = torch.tensor(_POWERS[:of_each], dtype=torch.int32).unsqueeze(-1)
    return (digits.unflatten(-1, (of_each, count)) * powers).sum(-2)
