"""What the tensors of a model are called on disk, and how they are cut there.

transformers holds many models under other names and in other shapes than their files do: all experts of a layer as one
tensor, or with a prefix more. ``save_pretrained`` turns that back. It is tried here on tensors without memory, whose strides
then tell what became of each, so that nothing is looked up by architecture.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import combinations

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from torchqat.errors import UserError
from torchqat.layers.kv_cache import STATE_NAMES as CACHE_NAMES
from torchqat.layers.kv_cache import QuantKvCache
from torchqat.layers.quant_layer import STATE_NAMES, QuantLayer


@dataclass(frozen=True)
class Part:
    """A tensor on disk that is cut out of one of the model's.

    Attributes:
        name: On disk.
        index: Where it lies in the model's tensor, an integer or a slice per dimension.
        transposed: Whether its last two dimensions change places then.
    """

    name: str
    index: tuple[int | slice, ...]
    transposed: bool = False

    @property
    def whole(self) -> bool:
        return not self.transposed and all(entry == slice(None) for entry in self.index)

    def cut(self, tensor: Tensor) -> Tensor:
        """The part, contiguous; ``tensor`` may be anything whose indexed dimensions are those of the model's."""
        if self.whole:
            return tensor
        found = tensor[self.index]
        return (found.transpose(-1, -2) if self.transposed else found).contiguous()


@dataclass
class _Group:
    """Tensors of the model that depend on one another on disk; a part is ``None`` where it is no cut of a single one."""

    members: set[str]
    parts: dict[str, Part | None] = field(default_factory=dict)

    @property
    def is_cut(self) -> bool:
        return None not in self.parts.values()


class DiskNames:
    """Names of a model's tensors on disk, as ``save_pretrained`` would write them; of other modules, the names themselves.

    A quantized layer that is not a whole tensor on disk, such as a query that lies there in one matrix with its key, keeps
    its name of the model, and so do those that lie there with it: transformers loads packed layers by no other.
    """

    def __init__(self, model: nn.Module):
        self._model = model
        self._groups: dict[str, _Group] = {}
        self._targets: list[str] = []
        if converts(model):
            self._try(_shapes(model))
            self._targets = _targets_of_converters(model)

    def parts(self, name: str) -> list[Part]:
        """What the model's tensor ``name`` is on disk: one part, or several; none where it is not cut from it alone."""
        group = self._groups.get(name)
        if group is None:
            return [Part(name, ())]
        return list(group.parts.values()) if group.is_cut else []

    def put_together(self) -> set[str]:
        """Those of the model's tensors that a loader makes from others on disk, rather than take one as it is."""
        return {
            name for name in self._groups if [part.whole for part in self.parts(name)] != [True] or self._made(name)
        }

    def _made(self, name: str) -> bool:
        """Whether a loader makes it from all that it finds by a pattern, which is one tensor here."""
        parts = self.parts(name)
        return len(parts) == 1 and parts[0].name != name and any(target in name for target in self._targets)

    def layer(self, name: str) -> str:
        """The name on disk of the quantized layer ``name``, whose tensors beside the weight are called after it.

        Raises:
            UserError: Readers would take apart what has its name.
        """
        parts = self.parts(f"{name}.weight")
        if len(parts) == 1 and parts[0].whole and parts[0].name.endswith(".weight"):
            return parts[0].name.removesuffix(".weight")
        if f"{name}.weight" in self._groups[f"{name}.weight"].parts:
            raise UserError(
                f"{name} lies on disk in another order than in the model, so it cannot be quantized there; leave it in "
                "floating point."
            )
        return name

    def renamed(self, name: str) -> str:
        """The name on disk of a tensor that the model does not have itself, such as a scale."""
        if not self._groups:
            return name
        return next(iter(reverted(self._model, {name: torch.empty(1, device="meta")})))

    def on_disk(self, tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """Tensors of the model as they are on disk, each when all is there that it is made from."""
        waiting: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors:
            group = self._groups.get(name)
            if group is None:
                yield name, tensor
            elif group.is_cut:
                yield from ((part.name, part.cut(tensor)) for part in group.parts.values())
            else:
                held = waiting.setdefault(id(group), {})
                held[name] = tensor
                if held.keys() == group.members:
                    yield from reverted(self._model, waiting.pop(id(group))).items()
        for held in waiting.values():
            yield from held.items()

    def _try(self, state: dict[str, Tensor]) -> None:
        followed = _Followed(state)
        with followed:
            on_disk = reverted(self._model, state)
        self._groups = {name: _Group({name}) for name in state}
        for disk_name, tensor in on_disk.items():
            sources = followed.sources(tensor)
            group = self._joined(sources)
            base = state[next(iter(sources))]
            group.parts[disk_name] = _part(disk_name, base, tensor) if len(sources) == 1 else None

    def _joined(self, names: set[str]) -> _Group:
        first, *others = {id(self._groups[name]): self._groups[name] for name in sorted(names)}.values()
        for other in others:
            first.members |= other.members
            first.parts |= other.parts
            self._groups.update(dict.fromkeys(other.members, first))
        return first


def converts(model: nn.Module) -> bool:
    """Whether ``model`` is of transformers, which may hold it otherwise than its files do."""
    return hasattr(model, "base_model_prefix") and hasattr(model, "save_pretrained")


def reverted(model: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors ``state`` of ``model`` as transformers would save them: by their names and in their shapes on disk."""
    from transformers.core_model_loading import revert_weight_conversion

    return revert_weight_conversion(model, dict(state))


def _targets_of_converters(model: nn.Module) -> list[str]:
    """Parts of the names of tensors that transformers computes from others while it loads."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter

    found = get_model_conversion_mapping(model)
    targets = [target for one in found if isinstance(one, WeightConverter) for target in one.target_patterns]
    return [target.partition("\\")[0] for target in targets]  # up to what is filled in


def _shapes(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers without their memory, and without what training brought."""
    brought = set()
    for name, module in model.named_modules():
        is_cache = isinstance(module, QuantKvCache)
        leaves = STATE_NAMES if isinstance(module, QuantLayer) else CACHE_NAMES if is_cache else ()
        brought |= {f"{name}.{leaf}" for leaf in leaves}
    return {
        name: torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
        for name, tensor in model.state_dict().items()
        if name not in brought and name.rpartition(".")[2] != "qat_step"
    }


class _Followed(TorchDispatchMode):
    """Remembers from which tensors others are made, and leaves cuts as views, where their strides can be read."""

    def __init__(self, state: dict[str, Tensor]):
        super().__init__()
        self._alive = list(state.values())  # an address is of one storage as long as that lives
        self._sources = {_storage(tensor): {name} for name, tensor in state.items()}

    def sources(self, tensor: Tensor) -> set[str]:
        return self._sources[_storage(tensor)]

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.clone.default:
            return torch.ops.aten.alias.default(args[0])
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if func is torch.ops.aten._unsafe_view.default:  # what a clone is reshaped by
            args = (torch.empty(args[0].shape, dtype=args[0].dtype, device="meta"), *args[1:])
        found = func(*args, **(kwargs or {}))
        for made in tree_leaves(found):
            if isinstance(made, Tensor):
                self._alive.append(made)
                known = self._sources.setdefault(_storage(made), set())
                known |= set().union(*(self._sources.get(_storage(tensor), set()) for tensor in inputs))
        return found


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _part(name: str, base: Tensor, view: Tensor) -> Part | None:
    """Where ``view`` lies in ``base``; ``None`` if it is none, or none that indices tell."""
    if _storage(base) != _storage(view):
        return None
    starts, rest = [], view.storage_offset()
    for stride in base.stride():
        start, rest = divmod(rest, stride)
        starts.append(start)
    for kept in combinations(range(base.dim()), view.dim()):
        for transposed in (False, True) if view.dim() > 1 else (False,):
            shape = (*view.shape[:-2], view.shape[-1], view.shape[-2]) if transposed else view.shape
            sizes = dict(zip(kept, shape, strict=True))
            index = tuple(_entry(starts[d], sizes.get(d), whole) for d, whole in enumerate(base.shape))
            part = Part(name, index, transposed)
            if _lies_at(base, view, part):
                return part
    return None


def _entry(start: int, size: int | None, whole: int) -> int | slice:
    if size is None:
        return start
    return slice(None) if size == whole else slice(start, start + size)


def _lies_at(base: Tensor, view: Tensor, part: Part) -> bool:
    found = base[part.index] if part.index else base
    found = found.transpose(-1, -2) if part.transposed else found
    steps = [[stride for stride, size in zip(t.stride(), t.shape, strict=True) if size > 1] for t in (found, view)]
    return found.shape == view.shape and found.storage_offset() == view.storage_offset() and steps[0] == steps[1]
