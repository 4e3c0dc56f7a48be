"""The slow twin: docs/numerics.md in float64 PyTorch, written from the equations and never from the kernels.

The level of an element is found in float32, as equation (1) says; everything after it is float64.
"""

import ml_dtypes
import torch
from torch import Tensor


def expand(parameters: Tensor, shape: torch.Size, block: tuple[int, int]) -> Tensor:
    """One value per element of ``[rows, cols]`` from one per block."""
    rows, cols = shape
    height, width = (rows if block[0] == -1 else block[0]), (cols if block[1] == -1 else block[1])
    row = torch.arange(rows) // height
    col = torch.arange(cols) // width
    return parameters[row[:, None], col[None, :]]


def stored(scale: Tensor, dtype: torch.dtype, exact_offsets: bool = False) -> Tensor:
    """(7), and (7b) where ``exact_offsets``."""
    least = 2.0**-14 if dtype == torch.float16 else 2.0**-116
    greatest = torch.finfo(dtype).max
    magnitude = scale.abs()
    rounded = magnitude.clamp(least, greatest).to(dtype).float()
    if exact_offsets:
        significand, exponent = torch.frexp(magnitude.clamp(least, 65024.0).double())
        rounded = torch.ldexp((significand * 2**7).round() / 2**7, exponent).float()
    return torch.where(magnitude > 0, torch.where(scale < 0, -rounded, rounded), torch.ones_like(scale))


def quant_range(bits: int, grid: str) -> tuple[int, int]:
    half = 1 << (bits - 1)
    return (1 - half if grid == "narrow" else -half), half - 1


def qparams(x: Tensor, block: tuple[int, int], bits: int, grid: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(9) for every block of a matrix, one block at a time."""
    rows, cols = x.shape
    height, width = (rows if block[0] == -1 else block[0]), (cols if block[1] == -1 else block[1])
    low_level, high_level = quant_range(bits, grid)
    scales, zeros = [], []
    for top in range(0, rows, height):
        for left in range(0, cols, width):
            part = x[top : top + height, left : left + width].float()
            part = part[part.isfinite()]
            low = min(0.0, part.min().item()) if part.numel() else 0.0
            high = max(0.0, part.max().item()) if part.numel() else 0.0
            scale, zero = _block_qparams(
                torch.tensor(low), torch.tensor(high), bits, grid, dtype, low_level, high_level
            )
            scales.append(scale)
            zeros.append(zero)
    shape = (-(-rows // height), -(-cols // width))
    return torch.stack(scales).reshape(shape), torch.stack(zeros).reshape(shape).to(torch.int8)


def _block_qparams(low, high, bits, grid, dtype, low_level, high_level):
    absmax = torch.maximum(-low, high)
    if grid == "asymmetric":
        scale = stored((high / 2 - low / 2) / ((2**bits - 1) / 2), dtype, dtype == torch.float16 and bits <= 4)
        return scale, (low_level - low * (1.0 / scale)).round().clamp(low_level, high_level)
    divisor = {"narrow": high_level, "full": high_level + 0.5, "signed": -low_level}[grid]
    sign = -1.0 if grid == "signed" and high > -low else 1.0
    return stored(sign * absmax / divisor, dtype), torch.zeros(())


def levels(x: Tensor, scale: Tensor, zero_point: Tensor, block) -> Tensor:
    """(1), in float32 as defined, returned in float64."""
    inverse = expand(1.0 / scale.float(), x.shape, block)
    return (x.float() * inverse).round().double() + expand(zero_point.float(), x.shape, block).double()


def fake_quantize(x: Tensor, scale: Tensor, zero_point: Tensor, block, quant_min: int, quant_max: int) -> Tensor:
    """(1) to (3), in float64 before the one rounding to the dtype of ``x``."""
    q = levels(x, scale, zero_point, block).clamp(quant_min, quant_max)
    y = (q - expand(zero_point, x.shape, block).double()) * expand(scale, x.shape, block).double()
    return torch.where(x.isfinite(), y, torch.nan).float().to(x.dtype)


def gradients(grad, x, scale, zero_point, block, quant_min, quant_max) -> tuple[Tensor, Tensor, Tensor]:
    """(4) to (6): of x per element, of scale and zero point summed per block, in float64."""
    level = levels(x, scale, zero_point, block)
    inside = (level >= quant_min) & (level <= quant_max)
    finite = x.isfinite()
    z = expand(zero_point, x.shape, block).double()
    s = expand(scale, x.shape, block).double()
    u = (x.float() * expand(1.0 / scale.float(), x.shape, block)).double()
    slope = torch.where(inside, (level - z) - u, level.clamp(quant_min, quant_max) - z)
    g = grad.double()
    of_scale = torch.where(finite, g * slope, 0.0)
    of_zero = torch.where(finite & ~inside, -g * s, 0.0)
    of_x = torch.where(inside & finite, g, 0.0)
    return of_x, sum_blocks(of_scale, block, scale.shape), sum_blocks(of_zero, block, scale.shape)


def sum_blocks(values: Tensor, block, grid: torch.Size) -> Tensor:
    rows, cols = values.shape
    height, width = (rows if block[0] == -1 else block[0]), (cols if block[1] == -1 else block[1])
    sums = torch.zeros(grid, dtype=torch.float64)
    for r in range(grid[0]):
        for c in range(grid[1]):
            sums[r, c] = values[r * height : (r + 1) * height, c * width : (c + 1) * width].sum()
    return sums


# -- scales that are codes, and floats of few bits ---------------------------------------------------------------------


def codes_of(code: str) -> Tensor:
    """The positive numbers that a scale of ``code`` may have under an outer scale of 1, float32, smallest first."""
    if code.startswith("e4m3"):
        return torch.arange(1, 127, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    if code.startswith("e8m0"):
        return 2.0 ** torch.arange(-116, 128).float()
    return torch.arange(1, {"int6": 64, "int8": 128}[code]).float()


def rounded(x: Tensor, scale: Tensor, grid: str, bits: int, offset: Tensor | float = 0.0) -> Tensor:
    """(1) to (3a) of E2M1 or integers for one scale and offset per row, the level found in float32, then float64."""
    u = (x.float() - offset) * (1.0 / scale.float())
    if grid == "fp4_e2m1":
        q = torch.from_numpy(u.numpy().astype(ml_dtypes.float4_e2m1fn).astype("float64"))
    else:
        low, high = (0, 2**bits - 1) if grid == "offset" else quant_range(bits, grid)
        q = u.round().clamp(low, high).double()
    return q * scale.double() + offset


def search(x: Tensor, outer: Tensor, code: str, grid: str, bits: int, importance: Tensor | float = 1.0) -> Tensor:
    """(10) for blocks ``x [blocks, n]`` without offsets: the least weighted squared error of all codes, float64.

    Of integers those up to an eighth of the greatest above that of the range, whose end is at 2^(bits - 1).
    """
    numbers = codes_of(code)
    most = torch.full((len(x),), torch.inf)
    if code.startswith("int"):
        most = (x.abs().amax(1) / 2 ** (bits - 1) / outer).round() + int(numbers[-1]) // 8
    sign = torch.where((-x.amin(1) >= x.amax(1)) | (grid != "signed"), 1.0, -1.0)[:, None]
    errors = [
        ((rounded(x, sign * (number * outer)[:, None], grid, bits) - x.double()).square() * importance).sum(1)
        for number in numbers
    ]
    return torch.where(numbers[:, None] <= most, torch.stack(errors), torch.inf).amin(0)


def four_over_six(x: Tensor, outer: float) -> tuple[Tensor, Tensor]:
    """(9a) for blocks ``x [blocks, n]``: scales float32, and by how much the other choice is worse, relative."""
    largest, candidates, errors = x.abs().amax(1), [], []
    for by in (6.0, 4.0):
        inner = (largest / by / outer).clamp_min(2.0**-9).to(torch.float8_e4m3fn).float()
        candidates.append(torch.where(largest > 0, inner, 1.0) * outer)
        errors.append((rounded(x, candidates[-1][:, None], "fp4_e2m1", 4) - x.double()).square().sum(1))
    six, four = errors
    return torch.where(four < six, candidates[1], candidates[0]), (four - six).abs() / six.clamp_min(1e-30)
