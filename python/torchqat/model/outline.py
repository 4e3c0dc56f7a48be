"""A model's folder read tensor by tensor, and a model without weights to put them into."""

import copy
import re
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from torchqat._library import DTYPES, FileError, SafetensorsReader
from torchqat.errors import UserError, first_line
from torchqat.extras import needs
from torchqat.model.disk_names import DiskNames
from torchqat.model.disk_sources import DiskSources, Source
from torchqat.model.finite import check_numbers
from torchqat.model.loader import language_model_loader


class CheckpointReader:
    """The tensors of a Hugging Face folder, in one safetensors file or several, by their names in a model.

    Args:
        folder: Where the files are.
        model: Of transformers, with or without weights: its tensors are read as ``from_pretrained`` reads them, whatever
            they are called and however they are cut on disk. It learns which conversions that takes, and is written by the
            same. When ``None``, tensors go by their names on disk.

    Raises:
        UserError: There is no safetensors file, or one is damaged.
    """

    def __init__(self, folder: str | Path, model: nn.Module | None = None):
        self.folder = Path(folder)
        self._files: dict[str, SafetensorsReader] = {}
        try:
            for path in sorted(self.folder.glob("*.safetensors")):
                reader = SafetensorsReader(str(path))
                self._files.update(dict.fromkeys(reader.names(), reader))
        except FileError as error:
            raise UserError(str(error)) from error
        if not self._files:
            raise UserError(f"To be read tensor by tensor, {folder} must have safetensors files, but has none.")
        self._model = model
        self._buffers = {name for name, _ in model.named_buffers()} if model is not None else set()
        self._sources = {name: Source(name, [name]) for name in self._files}
        self._rest: DiskSources | None = None
        if model is not None:
            self._follow(model)

    def __contains__(self, name: str) -> bool:
        return name in self._sources

    def __getitem__(self, name: str) -> Tensor:
        return self.read([name])[name]

    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        """The tensors ``names`` of the model; what is made together on the way is made once.

        Raises:
            UserError: The folder lacks one, or a part of one, or it has elements that are NaN or infinite.
        """
        found: dict[str, Tensor] = {}
        for name in names:
            if name not in found:
                found.update(self._load(name))
        return found

    def on_disk(self, name: str) -> Tensor:
        """The tensor that is called ``name`` on disk."""
        return self._files[name].read(name)

    def shape_of(self, name: str) -> tuple[int, ...]:
        """The shape of the tensor that is called ``name`` on disk."""
        return tuple(self._files[name].shape_of(name))

    def passed_over(self) -> list[str]:
        """Names on disk of what belongs to no tensor of the model, as transformers knows and passes over.

        Raises:
            UserError: Others have no place in the model either.
        """
        rest = self._rest.unexpected if self._rest is not None else []
        lost = [name for name in rest if not self._rest.ignored(name)]
        if lost:
            more = f", and {len(lost) - 1} more are not" if len(lost) > 1 else ""
            raise UserError(
                f"{self.folder} must hold nothing but tensors of its {type(self._model).__name__}, since others would be "
                f"lost, but {lost[0]} is none{more}."
            )
        return rest

    def check_complete(self, model: nn.Module) -> None:
        """Raises UserError, naming the first, if the folder lacks a parameter of ``model`` that is not tied to another."""
        tied = getattr(model, "all_tied_weights_keys", None) or {}
        missing = [name for name, _ in model.named_parameters() if name not in self and name not in tied]
        ignored = getattr(model, "_keys_to_ignore_on_load_missing", None) or ()
        for name in missing:
            if not any(re.search(pattern, name) for pattern in ignored):
                raise self._lacks(name)

    @torch.no_grad()
    def fill(self, module: nn.Module, prefix: str, recurse: bool = True) -> None:
        """Give ``module`` the parameters and persistent buffers that the checkpoint has for it, in the module's dtypes."""
        places = {
            f"{holder_name}.{leaf}" if holder_name else leaf: (kind, leaf, kind is holder._parameters)
            for holder_name, holder in (module.named_modules(prefix=prefix) if recurse else [(prefix, module)])
            for kind in (holder._parameters, holder._buffers)
            for leaf, empty in kind.items()
            if empty is not None
        }
        found: dict[str, Tensor] = {}
        for name, (kind, leaf, is_parameter) in places.items():
            if not is_parameter and name not in self:
                continue
            if name not in found:
                found.update(self._load(name))
            empty, tensor = kind[leaf], found.pop(name).to(kind[leaf].dtype)
            if tensor.shape != empty.shape:
                self._check_parts(name)
                raise UserError(
                    f"{name} must be {tuple(empty.shape)} for this model, but {self.folder} has {tuple(tensor.shape)}."
                )
            kind[leaf] = nn.Parameter(tensor, empty.requires_grad) if is_parameter else tensor

    def _follow(self, model: nn.Module) -> None:
        self._rest = DiskSources(model, self._files)
        if self._rest.used is not None:
            model._weight_conversions = self._rest.used
        self._sources = {}
        for source in self._rest.sources.values():
            try:
                made = [source.target] if source.plain else source.load(model, self._outline_of)
            except Exception:  # what lacks a part is named when it is read
                made = [source.target]
            self._sources.update(dict.fromkeys(made, source))

    def _outline_of(self, name: str) -> Tensor:
        return torch.empty(self.shape_of(name), device="meta")

    def _load(self, name: str) -> dict[str, Tensor]:
        if name not in self._sources:
            raise self._lacks(name)
        try:
            found = self._sources[name].load(self._model, self.on_disk)
        except FileError as error:
            raise UserError(str(error)) from error
        except Exception as error:
            self._check_parts(name)
            raise UserError(f"{name} could not be put together from {self.folder}: {first_line(error)}") from error
        for own, tensor in found.items():
            check_numbers(own, tensor, str(self.folder), is_buffer=own in self._buffers)
        return found

    def _check_parts(self, name: str) -> None:
        """Raises UserError if a tensor is not there that ``name`` is made from, as far as transformers tells."""
        if self._missing_parts(name):
            raise self._lacks(name)

    def _lacks(self, name: str) -> UserError:
        missing = [*self._missing_parts(name), name][0]
        return UserError(f"{self.folder} must hold the tensor {missing}, but does not.")

    def _missing_parts(self, name: str) -> list[str]:
        parts = DiskNames(self._model).parts(name) if self._model is not None else []
        return [part.name for part in parts if part.name not in self._files]


def skeleton(folder: str | Path, dtype: str = "float32") -> nn.Module:
    """The model of a folder, its parameters on the meta device, where they take no memory.

    A language model that also reads images or sounds is whole.

    Raises:
        UserError: The folder does not hold a causal language model.
    """
    with needs("hf", "A model's outline"):
        from accelerate import init_empty_weights
        from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        loader = language_model_loader(config, str(folder))
        with init_empty_weights(include_buffers=False):
            model = loader.from_config(config, dtype=DTYPES[dtype], trust_remote_code=False)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"model must be a folder with a causal language model that transformers can load, but {folder} is not: "
            f"{first_line(error)}"
        ) from error
    return model.eval()


def without_numbers(model: nn.Module) -> nn.Module:
    """A copy on the meta device, where its tensors, shared as they are, take no memory; all of it trains."""
    found = {id(p): nn.Parameter(torch.empty_like(p, device="meta"), p.is_floating_point()) for p in model.parameters()}
    return copy.deepcopy(model, found | {id(b): torch.empty_like(b, device="meta") for b in model.buffers()})


def empty(module: nn.Module, buffers: bool = False) -> nn.Module:
    """Give the memory of the parameters back, and that of the buffers where asked, in place; what is shared stays so."""
    moved: dict[int, nn.Parameter] = {}
    for holder in module.modules():
        if buffers:
            holder._buffers.update({n: b.to("meta") for n, b in holder._buffers.items() if b is not None})
        for leaf, parameter in holder._parameters.items():
            if parameter is None:
                continue
            if id(parameter) not in moved:
                moved[id(parameter)] = nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)
            holder._parameters[leaf] = moved[id(parameter)]
    return module
