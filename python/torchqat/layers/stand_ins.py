"""Which quantized layer does what a layer of a model does: known by its forward, or tried."""

import copy

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from torchqat.layers.conv import QuantConv1d, QuantConv2d
from torchqat.layers.conv1d_of_transformers import QuantConv1D, conv1d_class
from torchqat.layers.conv_transpose import QuantConvTranspose1d, QuantConvTranspose2d
from torchqat.layers.embedding import QuantEmbedding
from torchqat.layers.linear import QuantLinear
from torchqat.layers.quant_layer import QuantLayer

# By the class whose forward they stand in for.
_QUANTIZED: dict[type[nn.Module], type[QuantLayer]] = {
    nn.Linear: QuantLinear,
    nn.Conv1d: QuantConv1d,
    nn.Conv2d: QuantConv2d,
    nn.ConvTranspose1d: QuantConvTranspose1d,
    nn.ConvTranspose2d: QuantConvTranspose2d,
    nn.Embedding: QuantEmbedding,
}
QUANTIZABLE = tuple(_QUANTIZED)


def is_layer(module: nn.Module) -> bool:
    """Whether ``module`` is of a class, or of a subclass of one, that quantized layers may stand in for."""
    return _kind_of(module) is not None


def stand_in_of(module: nn.Module) -> type[QuantLayer]:
    """The quantized layer for ``module``, which ``why_not`` has nothing against."""
    if isinstance(module, QuantLayer):
        return type(module)
    return _QUANTIZED.get(_kind_of(module), QuantConv1D)


def why_not(module: nn.Module) -> str:
    """Why a layer, of which ``is_layer`` is true, cannot be replaced by a quantized one; empty where it can."""
    if isinstance(module, QuantLayer):
        return ""
    if module._parameters.get("weight") is None:
        computed = parametrize.is_parametrized(module, "weight") or hasattr(module, "weight")
        return "its weight is computed anew in every call" if computed else "it has no weight"
    if not module.weight.is_floating_point():
        return f"its weight is {module.weight.dtype}, quantized already"
    if isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear):
        return "nn.MultiheadAttention reads its weight without calling it"
    if "forward" in vars(module):
        return "its forward has been replaced by another"
    kind = _kind_of(module)
    if _has_forward_of(module, kind) or _computes_the_same(module, kind):
        return ""
    return f"{type(module).__name__} has a forward of its own"


def _kind_of(module: nn.Module) -> type[nn.Module] | None:
    found = conv1d_class()
    kinds = QUANTIZABLE if found is None else (*QUANTIZABLE, found)
    return next((kind for kind in kinds if isinstance(module, kind)), None)


def _has_forward_of(module: nn.Module, kind: type[nn.Module]) -> bool:
    names = [name for name in ("forward", "_conv_forward", "_output_padding") if hasattr(kind, name)]
    return all(getattr(type(module), name) is getattr(kind, name) for name in names)


@torch.no_grad()
def _computes_the_same(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether the forward of a subclass gives what its parent's does: of a small twin, for a batch of any numbers."""
    if kind not in (nn.Linear, nn.Embedding) or list(module.children()) or set(module._parameters) - {"weight", "bias"}:
        return False
    twin, numbers = copy.copy(module), torch.Generator().manual_seed(0)
    twin.__dict__["_parameters"] = dict(module._parameters)
    shape, names = (6, 8), ("in_features", "out_features") if kind is nn.Linear else ("embedding_dim", "num_embeddings")
    twin._parameters["weight"] = nn.Parameter(_randn(numbers, *shape))
    if twin._parameters.get("bias") is not None:
        twin._parameters["bias"] = nn.Parameter(_randn(numbers, shape[0]))
    for name, size in zip(names, reversed(shape), strict=True):
        setattr(twin, name, size)
    given = _randn(numbers, 2, 3, 8) if kind is nn.Linear else torch.arange(6, device="cpu").view(2, 3)
    try:
        found = type(module).forward(twin, given)
        return isinstance(found, Tensor) and torch.allclose(found, kind.forward(twin, given), rtol=1e-5, atol=1e-6)
    except Exception:
        return False  # it wants other arguments, or makes of them what its parent cannot


def _randn(numbers: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=numbers, device="cpu")
