"""What transformers passes over in silence in a folder: its own code, another architecture, whole numbers as weights."""

import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from torchqat.errors import UserError, first_of
from torchqat.files import SEAL
from torchqat.model.passed_over import in_base
from torchqat.model.source import folder_of

# How safetensors call types of whole numbers.
_WHOLE = ("BOOL", "I8", "U8", "I16", "U16", "I32", "U32", "I64", "U64")


def check_floating(model: nn.Module, tensors: dict[str, dict[str, Any]], path: str) -> None:
    """Whether no weight of ``model`` lies at ``path`` as whole numbers, which are cast as if their scale were 1.

    Args:
        model: As it was loaded from there, of what is not quantized by what its configuration says.
        tensors: Those at ``path``, as their headers say.
        path: For messages.

    Raises:
        UserError: One does; the first is named.
    """
    floating = {in_base(model, name) for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
    whole = [name for name, one in tensors.items() if one["dtype"] in _WHOLE and in_base(model, name) in floating]
    if whole:
        raise UserError(
            f"model must be in floating point, or say in config.json how it is quantized, but {path} has {first_of(whole)} "
            f"as {tensors[whole[0]]['dtype']}."
        )


def note_own_code(model: nn.Module, config: Any, path: str, note: Callable[[str], None]) -> None:
    """Tell where ``path`` has code of its own for its model, which is never run: transformers has a class of that name."""
    own = _own_class(config)
    if own is not None:
        note(
            f"{path} has code of its own for its model ({own}), which is not run: it is loaded as the "
            f"{type(model).__name__} of transformers."
        )


def note_other_architecture(model: nn.Module, config: Any, path: str, heads: bool, note: Callable[[str], None]) -> None:
    """Tell where the configuration of ``path`` names another class than the one that it is loaded as, by its model type.

    Args:
        model: As it was loaded.
        config: That of ``path``, from before.
        path: For messages.
        heads: Whether a class with another head is as good, since what it lacks or has more is told by the tensors.
        note: Told.
    """
    import transformers

    named = getattr(config, "architectures", None) or []
    named = [named] if isinstance(named, str) else [name for name in named if isinstance(name, str)]
    kind = type(model).__name__
    if not named or kind in named or _own_class(config) is not None:
        return
    there = getattr(transformers, named[0], None)
    if not inspect.isclass(there) or not issubclass(there, transformers.PreTrainedModel):
        note(
            f"{path} names {named[0]} as its architecture, which transformers does not have: it is loaded as the {kind} of "
            f"its model type, {config.model_type}."
        )
    elif not (heads and there.config_class is type(model).config_class):
        note(
            f"{path} names {named[0]} as its architecture, but is loaded as the {kind} of its model type, "
            f"{config.model_type}."
        )


def note_export(path: str, note: Callable[[str], None]) -> None:
    """Tell where ``path`` is an export of ours in floating point, whose configuration says nothing of it."""
    folder = folder_of(path)
    if folder is not None and (folder / SEAL).is_file():
        note(
            f"{path} is an export of torchqat: its weights are rounded already, and what is called full precision is what "
            "they then are."
        )


def _own_class(config: Any) -> str | None:
    named = (getattr(config, "auto_map", None) or {}).values()
    return next((one for one in named if isinstance(one, str) and "odeling" in one), None)
