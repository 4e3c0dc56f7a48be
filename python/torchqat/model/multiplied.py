"""Which parameters a model multiplies: tried in one forward on the meta device, where nothing is computed."""

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from torchqat.model.outline import without_numbers

# Names of the operators that multiply matrices, whatever library they come from.
_PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "matmul", "linear", "mv", "addmv", "dot", "convolution", "einsum")


@torch.no_grad()
def multiplied_parameters(model: nn.Module) -> set[int] | None:
    """The ``id`` of each parameter that enters a product of matrices, itself or what was made of it alone.

    Returns:
        ``None`` where no forward could be tried: no inputs are known for the model, or it asks for their values.
    """
    inputs = _inputs(model)
    if inputs is None:
        return None
    parameters = dict(model.named_parameters())
    try:
        twin = without_numbers(model).eval()
        watch = _Products(dict(twin.named_parameters()))
        with watch:
            twin(**inputs)
    except Exception:  # whatever a model's own code raises without values
        return None
    return {id(parameters[name]) for name in watch.multiplied}


def _inputs(model: nn.Module) -> dict[str, Tensor] | None:
    """Inputs that transformers gives with its models, or pictures of the size that the configuration names."""
    config = getattr(model, "config", None)
    if getattr(model, "main_input_name", None) == "pixel_values":
        size = getattr(config, "image_size", None)
        height, width = size if isinstance(size, (list, tuple)) else (size, size)
        if not isinstance(height, int):
            return None
        return {"pixel_values": torch.empty(2, getattr(config, "num_channels", 3), height, width, device="meta")}
    inputs = getattr(model, "dummy_inputs", None)
    if not isinstance(inputs, dict):
        return None
    return tree_map_only(Tensor, lambda tensor: tensor.to("meta"), inputs)


class _Products(TorchDispatchMode):
    """Follows tensors that were made of parameters alone, by their storage, into products with others."""

    def __init__(self, parameters: dict[str, Tensor]):
        super().__init__()
        self.multiplied: set[str] = set()
        self._kept = list(parameters.values())  # a storage's address is its own only while it lives
        self._made_of: dict[int, set[str]] = {}
        for name, tensor in parameters.items():
            self._made_of.setdefault(_place(tensor), set()).add(name)

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        given = [leaf for leaf in tree_leaves((args, kwargs or {})) if isinstance(leaf, Tensor)]
        made_of = [self._made_of.get(_place(tensor)) for tensor in given]
        result = operator(*args, **(kwargs or {}))
        own = [names for names in made_of if names is not None]
        if own and len(own) == len(given):
            for tensor in tree_leaves(result):
                if isinstance(tensor, Tensor):
                    self._kept.append(tensor)
                    self._made_of[_place(tensor)] = set().union(*own)
        elif own and _multiplies(operator):
            self.multiplied.update(*own)
        return result


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _multiplies(operator) -> bool:
    name = operator._schema.name.rpartition("::")[2]
    return name.lstrip("_") in _PRODUCTS or "grouped_mm" in name or "scaled_mm" in name
