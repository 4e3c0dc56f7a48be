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


def objective(error: Tensor, hessian: Tensor) -> float:
    """tr(ΔW H ΔWᵀ)."""
    return torch.trace(error.double() @ hessian.double() @ error.double().T).item()


def output_error(weight: Tensor, rounded: Tensor, tokens: Tensor, original: Tensor | None = None) -> float:
    """The squared error of a layer's output, token by token."""
    wanted = (tokens if original is None else original).double() @ weight.double().T
    return (tokens.double() @ rounded.double().T - wanted).square().sum().item() / len(tokens)
