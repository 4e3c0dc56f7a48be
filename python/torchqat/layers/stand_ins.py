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
from torchqat.layers.quant_layer import STATE_NAMES, QuantLayer
from torchqat.layers.taken import more_attributes

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
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)  # that the operators take
_OWN_NAMES = frozenset(vars(QuantLinear(nn.Linear(1, 1, device="cpu"), None, None)))  # of any quantized layer


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
    if why := why_not_of(module.weight):
        return why
    if isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear):
        return "nn.MultiheadAttention reads its weight without calling it"
    if "forward" in vars(module):
        return "its forward has been replaced by another"
    if type(module).__call__ is not nn.Module.__call__ or type(module)._call_impl is not nn.Module._call_impl:
        return f"{type(module).__name__} has a __call__ of its own"
    if type(module).get_extra_state is not nn.Module.get_extra_state:
        return f"{type(module).__name__} keeps state of its own (get_extra_state)"
    if taken := _names_taken(module):
        return f"its attribute {taken} has the name of one that a quantized layer has of its own"
    kind = _kind_of(module)
    if _has_forward_of(module, kind) or _computes_the_same(module, kind):
        return ""
    return f"{type(module).__name__} has a forward of its own"


def why_not_of(weight: Tensor) -> str:
    """The same for a weight, whatever multiplies with it."""
    if weight.dtype in _DTYPES:
        return "" if weight.numel() else "its weight has no elements"
    integers = "" if weight.is_floating_point() or weight.is_complex() else ", quantized already"
    return f"its weight is {weight.dtype}{integers or ', not float32, float16 or bfloat16'}"


def _names_taken(module: nn.Module) -> str:
    """Of what a model has put beside a layer's own, a name that the quantized layer needs; empty where there is none."""
    stand_in = stand_in_of(module)
    more = [*more_attributes(module, stand_in._settings), *module._parameters, *module._buffers, *module._modules]
    own = {*dir(stand_in), *STATE_NAMES, *_OWN_NAMES} - {*dir(type(module)), *stand_in._settings, "weight", "bias"}
    return next((name for name in more if name in own), "")


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
    with torch.random.fork_rng(devices=[]):
        return all(_gives_the_same(twin, kind, given, training) for training in (False, True))


def _gives_the_same(twin: nn.Module, kind: type[nn.Module], given: Tensor, training: bool) -> bool:
    """In training a layer may drop weights, or add noise to them."""
    twin.training = training
    try:
        found = type(twin).forward(twin, given)
        return isinstance(found, Tensor) and torch.allclose(found, kind.forward(twin, given), rtol=1e-5, atol=1e-6)
    except Exception:
        return False  # it wants other arguments, or makes of them what its parent cannot


def _randn(numbers: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=numbers, device="cpu")
