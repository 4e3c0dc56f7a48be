"""How a sentence-transformers folder says that hidden states become one vector: pooled, through dense layers, normalized."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchqat.errors import UserError
from torchqat.files import read_json
from torchqat.model.source import file_of

MODULES = "modules.json"
_POOLING = Path("1_Pooling") / "config.json"


def _mean(hidden: Tensor, mask: Tensor) -> Tensor:
    return (hidden * mask).sum(1) / mask.sum(1).clamp(min=1e-9)


def _mean_by_root(hidden: Tensor, mask: Tensor) -> Tensor:
    return (hidden * mask).sum(1) / mask.sum(1).clamp(min=1e-9).sqrt()


def _weighted_mean(hidden: Tensor, mask: Tensor) -> Tensor:
    weights = mask * torch.arange(1, hidden.shape[1] + 1, device=hidden.device)[None, :, None]
    return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1e-9)


def _first(hidden: Tensor, mask: Tensor) -> Tensor:
    return hidden[:, 0]


def _last(hidden: Tensor, mask: Tensor) -> Tensor:
    places = torch.arange(1, hidden.shape[1] + 1, device=hidden.device)[None, :, None]
    last = (mask * places).argmax(1, keepdim=True).expand(-1, -1, hidden.shape[-1])
    return hidden.gather(1, last).squeeze(1)


def _largest(hidden: Tensor, mask: Tensor) -> Tensor:
    return hidden.masked_fill(mask == 0, -1e9).amax(1)


# By sentence-transformers' names, in the order in which it puts the results side by side where a folder asks for several.
_WAYS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cls_token": _first,
    "max_tokens": _largest,
    "mean_tokens": _mean,
    "mean_sqrt_len_tokens": _mean_by_root,
    "weightedmean_tokens": _weighted_mean,
    "lasttoken": _last,
}
# As later versions call them.
_SHORT = {"cls": "cls_token", "max": "max_tokens", "mean": "mean_tokens", "mean_sqrt_len": "mean_sqrt_len_tokens"}
_SHORT |= {"weightedmean": "weightedmean_tokens"}
_WORDS = {"mean_tokens": "mean", "cls_token": "cls", "lasttoken": "last"}


@dataclass(frozen=True)
class Vectors:
    """What becomes of the last hidden states of texts.

    Attributes:
        pooling: Names of the ways in which they are pooled; the results are put side by side.
        rest: What is done to the vectors then, in this order.
    """

    pooling: tuple[str, ...] = ("mean_tokens",)
    rest: tuple[nn.Module, ...] = ()

    def __call__(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Vectors ``[texts, dim]`` of unit length, float32, of ``hidden`` ``[texts, tokens, width]`` under ``mask``."""
        hidden, mask = hidden.float(), mask.unsqueeze(-1).float()
        found = torch.cat([_WAYS[name](hidden, mask) for name in self.pooling], -1)
        for module in self.rest:
            found = module.to(found.device)(found)
        return F.normalize(found, dim=-1)

    def in_words(self) -> str:
        """``mean``, ``cls`` or ``last`` where that is all, up to normalization; else what is done."""
        after = [type(module).__name__ for module in self.rest if not isinstance(module, _Normalize)]
        return " and ".join([_WORDS.get(name, name) for name in self.pooling] + [f"then {name}" for name in after])


class _Normalize(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=-1)


def vectors_of(path: str) -> Vectors | None:
    """What the folder or hub id ``path`` says; ``None`` where it says nothing.

    Raises:
        UserError: It says something that torchqat does not know, or a file is not there.
    """
    modules = modules_of(path)
    if not modules:
        file = file_of(path, str(_POOLING))
        return Vectors(_pooling(file)) if file is not None else None
    kinds = [module["type"].rpartition(".")[2] for module in modules]
    if kinds[:2] != ["Transformer", "Pooling"]:
        raise UserError(f"{path} must begin with the modules Transformer and Pooling, but its {MODULES} has {kinds}.")
    pooling = _pooling(_needed(path, f"{modules[1]['path']}/config.json"))
    return Vectors(
        pooling, tuple(_module(path, kind, one["path"]) for kind, one in list(zip(kinds, modules, strict=True))[2:])
    )


def modules_of(path: str) -> list[dict[str, Any]]:
    """The modules that ``path`` names, in their order, each with a ``type`` and a ``path`` in the folder.

    Raises:
        UserError: A path leads out of the folder, or the file is of another form.
    """
    file = file_of(path, MODULES)
    found = read_json(file, "The modules of an encoder") if file is not None else []
    good = isinstance(found, list) and all(isinstance(one, dict) for one in found)
    if not good or not all(isinstance(one.get(key), str) for one in found for key in ("type", "path")):
        raise UserError(f"{file} must be a list of modules with a type and a path each, but is not.")
    for one in found:
        if Path(one["path"]).is_absolute() or ".." in Path(one["path"]).parts:
            raise UserError(f"{file} must name folders beside it, but has {one['path']!r}.")
    return found


def _needed(path: str, name: str) -> Path:
    file = file_of(path, name)
    if file is None:
        raise UserError(f"{path} must hold {name}, which its {MODULES} asks for, but does not.")
    return file


def _pooling(file: Path) -> tuple[str, ...]:
    settings = read_json(file, "How an encoder pools")
    asked = settings.get("pooling_mode")
    asked = [asked] if isinstance(asked, str) else asked
    if asked is None:
        asked = [
            key.removeprefix("pooling_mode_") for key in settings if key.startswith("pooling_mode_") and settings[key]
        ]
    names = [_SHORT.get(name, name) for name in asked]
    if not names or any(name not in _WAYS for name in names):
        raise UserError(
            f"{file} must ask for {', '.join(_WAYS)}, or several of these, but asks for {json.dumps(names)}."
        )
    return tuple(name for name in _WAYS if name in names)


def _module(path: str, kind: str, place: str) -> nn.Module:
    if kind == "Normalize":
        return _Normalize()
    if kind == "Dense":
        return _dense(path, place)
    raise UserError(
        f"The modules of a sentence encoder must be Transformer, Pooling, Dense and Normalize, but {path} also has {kind}."
    )


def _dense(path: str, place: str) -> nn.Module:
    from safetensors.torch import load_file

    file = _needed(path, f"{place}/config.json")
    settings = read_json(file, "A dense layer of an encoder")
    weights = file_of(path, f"{place}/model.safetensors")
    if weights is None:
        raise UserError(f"{path} must hold {place} in safetensors, but has no {place}/model.safetensors.")
    state = {name.removeprefix("linear."): tensor.float() for name, tensor in load_file(weights).items()}
    linear = nn.Linear(state["weight"].shape[1], len(state["weight"]), bias="bias" in state)
    linear.load_state_dict(state)
    return nn.Sequential(linear, _activation(file, settings.get("activation_function"))).requires_grad_(False)


def _activation(file: Path, name: Any) -> nn.Module:
    found = getattr(nn, str(name).rpartition(".")[2], None) if str(name).startswith("torch.nn.") else None
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise UserError(f"{file} must have an activation_function of torch.nn, but has {name}.")
    return found()
