"""Which parameters a forward multiplies with, and whether as they are or rounded: seen at the operators, not at modules."""

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_MULTIPLY = {
    "mm", "addmm", "bmm", "baddbmm", "mv", "addmv", "linear", "matmul", "convolution", "_convolution", "_grouped_mm",
    "quant_linear", "mkldnn_convolution", "mkldnn_linear", "convolution_overrideable", "_conv_depthwise2d",
    "dot", "_addmm_activation",
}  # fmt: skip
_ADD = {"addmm", "baddbmm", "addmv", "_addmm_activation"}  # to their first argument


class Watch(TorchDispatchMode):
    """While it is on: what is computed from a parameter alone counts as that parameter. Those of one row are not looked at.

    Attributes:
        multiplied: Names of parameters that enter a product as they are.
        rounded: Names of those that enter one as torchqat's operators rounded them.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self._sources: dict[int, frozenset[str]] = {}
        self._rounded: set[int] = set()
        self._alive: list[Tensor] = []  # a place in memory that is free again would be taken for what was there
        for name, parameter in model.named_parameters(remove_duplicate=False):
            if sum(size > 1 for size in parameter.shape) > 1 and _key(parameter) not in self._sources:
                self._sources[_key(parameter)] = frozenset([name])
        self.multiplied: set[str] = set()
        self.rounded: set[str] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        found = function(*args, **kwargs)
        space, _, operator = function._schema.name.partition("::")
        factors = args[1:] if operator in _ADD else args
        given = [
            leaf for leaf in tree_leaves((factors, kwargs)) if isinstance(leaf, Tensor) and leaf.is_floating_point()
        ]
        sources = [self._sources.get(_key(leaf), frozenset()) for leaf in given]
        names = frozenset().union(*sources)
        if not names or operator == "embedding":  # what is looked up is no weight any more
            return found
        ours = space == "qat" and any(isinstance(leaf, str) and leaf for leaf in tree_leaves((args, kwargs)))
        if operator in _MULTIPLY:
            for leaf, source in zip(given, sources, strict=True):
                (self.rounded if ours or _key(leaf) in self._rounded else self.multiplied).update(source)
        elif ours or all(sources):  # beside a weight that is rounded stand its scales
            self._follow(found, names, ours or any(_key(one) in self._rounded for one in given))
        return found

    def _follow(self, found, names: frozenset[str], rounded: bool) -> None:
        for leaf in tree_leaves(found):
            if isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.dim() >= 2:
                self._sources[_key(leaf)] = names
                self._alive.append(leaf)
                if rounded:
                    self._rounded.add(_key(leaf))


def _key(tensor: Tensor) -> int:
    try:
        return tensor.untyped_storage()._cdata
    except (RuntimeError, NotImplementedError):
        return id(tensor)
