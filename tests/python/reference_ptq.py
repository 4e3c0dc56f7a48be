"""The slow twins of the solvers, in float64 and in the shape that the papers give them, not the one that qat/ computes."""

import reference
import torch
from torch import Tensor
from torchqat import ops


def gptq(weight: Tensor, hessian: Tensor, bits: int, group: int, grid: str, damping: float, search: str):
    """GPTQ as its authors write it: the Cholesky factor of the inverse Hessian, and updates of all that is left.

    Returns codes, scales and zero points. Scales of a group come from the weight as it stands at its first column.
    """
    current, cols = weight.double().clone(), weight.shape[1]
    damped = hessian.double() + damping * hessian.double().diagonal().mean() * torch.eye(cols, dtype=torch.float64)
    inverse = torch.linalg.cholesky(torch.linalg.inv(damped), upper=True)
    codes = torch.zeros_like(weight, dtype=torch.int8)
    low, high = reference.quant_range(bits, grid)
    scales, zeros = [], []
    for col in range(cols):
        if col % group == 0:
            end = min(col + group, cols)
            importance = (1.0 / inverse.diagonal()[col:end]).square().float()
            scale, zero = ops.choose_qparams(
                current[:, col:end].float().contiguous(), (1, -1), bits, grid, search, torch.bfloat16, importance
            )
            scales.append(scale)
            zeros.append(zero)
        s, z = scales[-1].double().flatten(), zeros[-1].double().flatten()
        level = ((current[:, col] * (1.0 / s)).round() + z).clamp(low, high)
        codes[:, col] = level.to(torch.int8)
        error = (current[:, col] - (level - z) * s) / inverse[col, col]
        current[:, col:] -= error[:, None] * inverse[col, col:][None]
    return codes, torch.cat(scales, 1), torch.cat(zeros, 1)


def sweep(weight: Tensor, rounded, damped: Tensor, group: int, levels: tuple[int, int]) -> Tensor:
    """The codes of ``rounded`` (a ``RoundedWeight``), each put where the error is least while all others of its row stay."""
    codes, own = rounded.codes.double(), weight.double()
    scale, zero = (p.double().repeat_interleave(group, 1) for p in (rounded.scale, rounded.zero_point))
    for col in range(weight.shape[1]):
        error = own - (codes - zero) * scale
        error[:, col] = 0.0
        best = own[:, col] + error @ damped[:, col] / damped[col, col]
        codes[:, col] = ((best / scale[:, col]).round() + zero[:, col]).clamp(*levels)
    return codes.to(torch.int8)


def gptq_by_rows(weight: Tensor, hessian: Tensor, outputs: Tensor, bits: int, group: int, grid: str):
    """The same where rows answer for each other, eight at a time, the largest of ``outputs``' diagonal first.

    What is left of the rows is where ``tr(G E H Eᵀ)`` is least over real ones, as the normal equations say; ``H`` drops out.
    """
    damped = outputs.double() + 0.1 * outputs.double().diagonal().mean() * torch.eye(len(outputs), dtype=torch.float64)
    order = outputs.diagonal().argsort(descending=True, stable=True)
    damped, own = damped[order][:, order], weight[order].double()
    missed, parts = torch.zeros_like(own), []
    for row in range(0, len(own), 8):
        left = own[row:].clone()
        if row:
            left += torch.linalg.solve(damped[row:, row:], damped[row:, :row] @ missed[:row])
        parts.append(gptq(left[:8].float(), hessian, bits, group, grid, 0.01, "mse"))
        missed[row : row + 8] = own[row : row + 8] - dequantized(*parts[-1], group).double()
    back = order.argsort()
    return tuple(torch.cat(part)[back] for part in zip(*parts, strict=True))


def dequantized(codes: Tensor, scale: Tensor, zero: Tensor, group: int) -> Tensor:
    """(codes - zero) · scale."""
    return (codes.float() - zero.float().repeat_interleave(group, 1)) * scale.repeat_interleave(group, 1)


def objective(error: Tensor, hessian: Tensor) -> float:
    """tr(ΔW H ΔWᵀ)."""
    return torch.trace(error.double() @ hessian.double() @ error.double().T).item()


def output_error(weight: Tensor, rounded: Tensor, tokens: Tensor, original: Tensor | None = None) -> float:
    """The squared error of a layer's output, token by token."""
    wanted = (tokens if original is None else original).double() @ weight.double().T
    return (tokens.double() @ rounded.double().T - wanted).square().sum().item() / len(tokens)


def gptq_under_outer(weight: Tensor, hessian: Tensor, text: str, search: str, damping: float = 0.01):
    """The same with scales on two levels, whose outer ones are those of the whole weight; and with E8M0 ones.

    Returns codes (levels, float64), scales and offsets.
    """
    _, *levels, block, scale_text = text.split(" ")
    grid, bits = levels[-1], int(levels[0].removeprefix("int")) if len(levels) > 1 else 4
    group, (rows, cols) = int(block.split("x")[1]), weight.shape
    code, _, outer_text = scale_text.partition("*")
    outer = offsets = None
    if outer_text:
        outer, offsets = ops.choose_outer_scales(weight, text)
    per_outer = int(outer_text.rsplit("x", 1)[1]) if outer_text and outer.shape[0] > 1 else 0
    one = f"minmax {' '.join(levels)} 1x-1 {code}"
    if outer_text:
        one += f"*{outer_text.split('@')[0]}@{'1' if per_outer else '-1'}x-1"
    current = weight.double().clone()
    damped = hessian.double() + damping * hessian.double().diagonal().mean() * torch.eye(cols, dtype=torch.float64)
    inverse = torch.linalg.cholesky(torch.linalg.inv(damped), upper=True)
    codes, scales, zeros = torch.zeros(rows, cols, dtype=torch.float64), [], []
    for col in range(cols):
        if col % group == 0:
            importance = (1.0 / inverse.diagonal()[col : col + group]).square().float()
            part = slice(col // per_outer, col // per_outer + 1) if per_outer else slice(None)
            under = [None if of is None else of[:, part] for of in (outer, offsets)]
            scale, zero = ops.choose_qparams(
                current[:, col : col + group].float().contiguous(), one, search, importance, *under
            )
            scales.append(scale)
            zeros.append(zero.float() if grid == "offset" else torch.zeros_like(scale))
        s, o = scales[-1], zeros[-1].double()
        value = reference.rounded(current[:, col : col + 1], s, grid, bits, o)
        codes[:, col : col + 1] = (value - o) / s.double()
        error = (current[:, col] - value[:, 0]) / inverse[col, col]
        current[:, col:] -= error[:, None] * inverse[col, col:][None]
    return codes.round(decimals=1), torch.cat(scales, 1), torch.cat(zeros, 1)
