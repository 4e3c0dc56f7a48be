"""What other libraries put around a model, under whose names layers are called otherwise."""

from torch import nn
from torch.optim.swa_utils import AveragedModel

from torchqat.errors import UserError
from torchqat.layers.adapters import check_adapters
from torchqat.layers.prepared import require_module

# What a wrapper inside of a model calls what it wraps: torch.compile's, FSDP1's, that of recomputed activations.
_INSIDE = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
_IN_PARALLEL = (nn.parallel.DistributedDataParallel, nn.DataParallel)


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside of what ``torch.compile``, DDP and ``AveragedModel`` return; it is the same model.

    Raises:
        UserError: An average has averaged buffers as well, whole numbers among them; or it is no module.
    """
    require_module(model)
    while True:
        if "_orig_mod" in model._modules:  # of torch.compile, whose class takes long to import
            model = model._orig_mod
        elif isinstance(model, AveragedModel):
            if model.use_buffers:
                raise UserError(
                    "AveragedModel must leave buffers as they are, with use_buffers=False: zero points are whole numbers, "
                    "which have no mean."
                )
            model = model.module
        elif isinstance(model, _IN_PARALLEL):
            model = model.module
        else:
            return model


def before_parallel(model: nn.Module) -> nn.Module:
    """``unwrapped``, for what changes parameters.

    Raises:
        UserError: DDP has taken note of the parameters already.
    """
    if isinstance(model, _IN_PARALLEL):
        raise UserError(
            f"The model must be prepared before it is given to {type(model).__name__}, which would not know of the scales "
            "that are learned."
        )
    return unwrapped(model)


def named_as_on_disk(model: nn.Module) -> nn.Module:
    """``unwrapped``, for what writes its names where others look for them.

    Raises:
        UserError: peft has put adapters into it that act beside rounded weights, or are not merged, or a layer of it is
            wrapped, and would be written under another name.
    """
    model = unwrapped(model)
    check_adapters(model)
    for name, module in model.named_modules():
        if hasattr(module, "base_layer") and _is_of(module, "peft.tuners."):
            raise UserError(f"The adapter of {name} must be merged first, with merge_and_unload(), but is not.")
        if inside := [leaf for leaf in _INSIDE if leaf in module._modules]:
            raise UserError(
                f"{name} must be the layer itself to be written under its name, but is {type(module).__name__} around it: "
                f"put its {inside[0]} back in its place."
            )
    if _is_of(model, "peft."):
        raise UserError(
            f"The model must be the one that peft was given, but is {type(model).__name__} around it, under whose names no "
            "loader looks for tensors: give what merge_and_unload() or get_base_model() returns."
        )
    return model


def _is_of(module: nn.Module, package: str) -> bool:
    return any(kind.__module__.startswith(package) for kind in type(module).__mro__)
