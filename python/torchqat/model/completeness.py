"""Whether a model's folder has what the model needs, and nothing that is lost: what transformers found while it loaded."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from torchqat.errors import UserError, first_of
from torchqat.model.passed_over import base_of, can_be_copied, ignored_tensors, in_base, on_disk
from torchqat.model.quantized import is_of_activations


@dataclass(frozen=True)
class Wanted:
    """What a model is loaded for.

    Attributes:
        loader: Name of the class of transformers that loads it.
        what: What that loads, for messages.
        adds_head: Whether its head may begin at random, where the model that was saved had none like it.
        leaves_heads: Whether heads for other tasks may be left out.
        pools: Whether it needs the layer that some encoders pool by.
    """

    loader: str
    what: str
    adds_head: bool = False
    leaves_heads: bool = False
    pools: bool = True


CAUSAL_LM = Wanted("AutoModelForCausalLM", "causal language model")


def lacks_pooler_alone(model: nn.Module, missing: set[str]) -> bool:
    """Whether what is missing is a pooling layer that the model can be built without."""
    return bool(missing) and missing <= _of_pooler(model)


def check_complete(
    model: nn.Module,
    found: dict[str, Any],
    config: Any,
    tensors: dict[str, dict[str, Any]],
    path: str,
    wanted: Wanted,
    note: Callable[[str], None],
) -> list[str]:
    """Whether ``model`` is all that lies at ``path``, and all of it was there.

    Args:
        model: As it was loaded.
        found: What transformers says of that: names that are missing, unexpected, of another shape.
        config: That of ``path``, from before it was loaded: the whole one, where the model is of a part.
        tensors: Those at ``path``, as their headers say.
        path: For messages.
        wanted: What for.
        note: Told what begins at random or is left out, where that may be.

    Returns:
        Names on disk of what transformers passes over, for exports to copy.

    Raises:
        UserError: It is not; the first tensor is named.
    """
    if wrong := sorted(found["mismatched_keys"]):
        raise UserError(_other_shape(model, path, wrong))
    missing = [name for name in model.state_dict() if name in found["missing_keys"]]
    head = _head(model, missing, config) if wanted.adds_head else []
    if lacking := [name for name in missing if name not in head]:
        raise UserError(_lacking(model, config, path, lacking))
    if head:
        note(
            f"{path} has no {first_of(head)}: this head of a {wanted.what} begins at random, and so does what it says."
        )
    return _check_left_out(model, found, config, tensors, path, wanted, note)


def check_parts(loader: Any, config: Any, tensors: dict[str, dict[str, Any]], path: str) -> None:
    """What transformers could not put together, as experts are of their matrices: does ``path`` lack one?

    Raises:
        UserError: It does, by the names that transformers itself would save; the first is named.
    """
    try:
        with torch.device("meta"):
            model = loader.from_config(config)
    except Exception:  # then it is something else that cannot be put together
        return
    saved = on_disk(model)
    if lacking := [name for name in saved if name not in tensors]:
        raise UserError(_lacking(model, config, path, lacking))
    for name, tensor in saved.items():
        if list(tensor.shape) != tensors[name]["shape"]:
            raise UserError(_other_shape(model, path, [(name, tensors[name]["shape"], tensor.shape)]))


def _lacking(model: nn.Module, config: Any, path: str, names: list[str]) -> str:
    kind = type(model).__name__
    holds = next(
        (f", which holds a {name}," for name in getattr(config, "architectures", None) or [] if name != kind), ""
    )
    way_out = "; model.kind (--kind of evaluate and verify) says as what it is loaded" if holds else ""
    return f"model must have every tensor of a {kind}, but {path}{holds} lacks {first_of(names)}{way_out}."


def _other_shape(model: nn.Module, path: str, wrong: list[tuple[str, Any, Any]]) -> str:
    name, there, expected = wrong[0]
    others = f", and so are {len(wrong) - 1} more" if len(wrong) > 1 else ""
    return (
        f"model must fit its config.json, but in {path} {name} is {list(there)} where a {type(model).__name__} has "
        f"{list(expected)}{others}."
    )


def _check_left_out(model, found, config, tensors, path, wanted, note) -> list[str]:
    kind, unexpected = type(model).__name__, sorted(found["unexpected_keys"])
    rounding = [name for name in unexpected if is_of_activations(name)]
    unexpected = [name for name in unexpected if name not in rounding]
    ignored = ignored_tensors(model, tensors)
    if type(model.config) is not type(config) and (left := sorted({*unexpected, *ignored})):
        whole = (getattr(config, "architectures", None) or [config.model_type])[0]
        raise UserError(
            f"model must be a {wanted.what} alone, but {path} holds a {whole}, of which a {kind} leaves out "
            f"{first_of(left)}."
        )
    parts = dict(base_of(model).named_children())
    of_others = [name for name in unexpected if wanted.leaves_heads and in_base(model, name).split(".")[0] not in parts]
    if left := [name for name in unexpected if name not in of_others]:
        raise UserError(
            f"model must be a {wanted.what} and nothing else, but {path} has {first_of(left)}, which a {kind} does not take."
        )
    if wanted.leaves_heads:
        of_others, ignored = sorted({*of_others, *ignored}), []
    if of_others:
        note(
            f"{path} also has {first_of(of_others)}, of another task: a {wanted.what} leaves it out, and so do exports."
        )
    if rounding:
        note(f"{path} also has {first_of(rounding)}, for rounding what is computed: that is left to the recipe.")
    if not ignored:
        return []
    if can_be_copied([tensors[name] for name in ignored]):
        note(
            f"{path} also has {first_of(ignored)}, which transformers leaves out of a {kind}: exports copy it as it is, "
            "except to gguf and onnx, which have no place for it."
        )
        return ignored
    note(
        f"{path} also has {first_of(ignored)}, quantized, which transformers leaves out of a {kind}, and so do exports."
    )
    return []


def _head(model: nn.Module, missing: list[str], config: Any) -> list[str]:
    """Of what is missing, what the model that was saved never had: a task adds it."""
    writers = getattr(config, "architectures", None) or []
    if type(model).__name__ in writers:
        return []
    pooler = _of_pooler(model)
    theirs = _names_of(writers[0], config) if writers else None
    if theirs is None:
        parts = dict(base_of(model).named_children())
        return [name for name in missing if name in pooler or in_base(model, name).split(".")[0] not in parts]
    return [name for name in missing if name in pooler or in_base(model, name) not in theirs]


def _names_of(architecture: str, config: Any) -> set[str] | None:
    """The tensors of another model of the same configuration, as its base calls them; ``None`` where there is none."""
    import transformers

    other = getattr(transformers, architecture, None)
    if not inspect.isclass(other) or not issubclass(other, transformers.PreTrainedModel):
        return None
    try:
        with torch.device("meta"):
            built = other(config)
    except Exception:  # what it needs is its own
        return None
    return {in_base(built, name) for name in built.state_dict()}


def _of_pooler(model: nn.Module) -> set[str]:
    """The tensors of a pooling layer that the base of ``model`` can be built without."""
    base = base_of(model)
    if "add_pooling_layer" not in inspect.signature(type(base).__init__).parameters:
        return set()
    with torch.device("meta"):
        without = type(base)(base.config, add_pooling_layer=False).state_dict().keys()
    prefix = "" if base is model else f"{model.base_model_prefix}."
    return {prefix + name for name in base.state_dict().keys() - without}
