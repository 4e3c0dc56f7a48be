"""Which tensors on disk those of a model are made from, as transformers' loader finds it out.

The way back from ``disk_names``, by the other half of transformers' code: names are followed as ``from_pretrained`` does,
and its own operations put experts together.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from torchqat.model.disk_names import converts


@dataclass
class Source:
    """Tensors on disk that are loaded together.

    Attributes:
        target: The first tensor of the model that is made from them.
        names: On disk, in the order in which they are put together.
    """

    target: str
    names: list[str] = field(default_factory=list)
    _patterns: list[str] = field(default_factory=list)
    _converter: Any = None

    @property
    def plain(self) -> bool:
        """Whether a tensor of the model is one on disk, under whatever name."""
        return self._converter is None

    def load(self, model: nn.Module, read: Callable[[str], Tensor]) -> dict[str, Tensor]:
        """The tensors of the model, from those that ``read`` gives."""
        if self.plain:
            return {self.target: read(self.names[0])}
        converter = deepcopy(self._converter)
        for pattern, name in zip(self._patterns, self.names, strict=True):
            converter.add_tensor(self.target, name, pattern, read(name))
        found = converter.convert(self.target, model=model, config=model.config)
        return {name: value[0] if isinstance(value, list) else value for name, value in found.items()}


class DiskSources:
    """What a checkpoint with the tensors ``names`` holds for ``model``.

    Attributes:
        found: By each of ``names`` what it is called in the model, or would be.
        sources: What the model's tensors are made from, by the first of those that are made together.
        unexpected: Those of ``names`` that the model has no place for.
        used: transformers' conversions that took part; a model with these as ``_weight_conversions`` is saved as it was.
    """

    def __init__(self, model: nn.Module, names: Iterable[str]):
        self._model = model
        self.found: dict[str, str] = {}
        self.sources: dict[str, Source] = {}
        self.unexpected: list[str] = []
        self.used: list | None = None
        state = model.state_dict()
        if converts(model):
            self._follow(names, state)
            return
        for name in names:
            self._add(name, name, state)

    def ignored(self, name: str) -> bool:
        """Whether transformers passes over ``name``, for which the model has no place, without a word."""
        patterns = set(getattr(self._model, "_keys_to_ignore_on_load_unexpected", None) or ())
        leaves = {buffer.rpartition(".")[2] for buffer, _ in self._model.named_buffers()}
        patterns |= {
            rf"(^|\.){leaf}$" for leaf in ("inv_freq", "position_ids") if leaf in leaves
        }  # old checkpoints have them
        return any(re.search(pattern, self.found[name]) for pattern in patterns)

    def _follow(self, names: Iterable[str], state: Mapping[str, Tensor]) -> None:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, dot_natural_key, rename_source_key

        conversions = get_model_conversion_mapping(self._model)
        converters = [entry for entry in conversions if isinstance(entry, WeightConverter)]
        renamings = [entry for entry in conversions if not isinstance(entry, WeightConverter)]
        by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
        prefix = self._model.base_model_prefix
        for name in sorted(names, key=dot_natural_key):
            target, pattern = rename_source_key(name, renamings, converters, prefix, state)
            if target not in state and name in state:
                target, pattern = rename_source_key(name, [], [], prefix, state)
            self._add(name, target, state, pattern, by_pattern.get(pattern))
        self.used = [entry for entry in conversions if entry.was_used()]

    def _add(self, name: str, target: str, state: Mapping, pattern: str | None = None, converter: Any = None) -> None:
        self.found[name] = target
        if target not in state:
            self.unexpected.append(name)
            return
        if target in self.sources and (converter is None or self.sources[target].plain):
            self.unexpected.append(name)  # there twice
            return
        source = self.sources.setdefault(target, Source(target, _converter=converter))
        source.names.append(name)
        source._patterns.append(pattern or name)
