"""What a run is made of: what its recipe means, what its model and its data hold. Names, comments and order do not count."""

import json
from collections.abc import Iterable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from torchqat._library import Bound, Initialize, KvCacheSpec, Plan, QuantSpec, Recipe
from torchqat._version import NUMERICS
from torchqat.data.batch import bytes_of
from torchqat.data.batch import digest as digest_of
from torchqat.data.batches import Data
from torchqat.data.tasks import Task
from torchqat.extras import needs
from torchqat.model.source import folder_of, is_gguf, read_header

# Limits, which decide over results that are there already, and names of what is compared by what it holds.
_LEFT_OUT = ("file", "text", "device", "engine", "size_bits_per_weight", "model.path", "model.scratch", "data.train")
_LEFT_OUT += ("data.sources", "data.evaluation_path", "evaluate.accept_", "evaluate.task", "kv_cache")
# The one setting that is made as a whole: what has no setter follows from others.
_METHOD = "initialize.method"
# Bytes, and elements, of each tensor that are looked at.
_SAMPLE = 256


def meaning(recipe: Recipe) -> dict[str, Any]:
    """Every setting of ``recipe`` but rules and schedule, which are the plan's, by its key, defaults among them.

    Numbers, words, lists and ``None``; a point of the run is ``"80%"`` or ``"300"``.
    """
    return {key: value for key, value in _leaves(recipe, "") if not key.startswith(_LEFT_OUT)}


def _leaves(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Bound):
        yield key, f"{value.value:g}%" if value.is_percent else f"{value.value:g}"
    elif type(value).__module__ == Recipe.__module__:
        for name in dir(value):
            part, inner = getattr(value, name), f"{key}.{name}" if key else name
            is_section = type(part).__module__ == Recipe.__module__ and not isinstance(part, Bound)
            if name[0] != "_" and not callable(part) and (is_section or inner == _METHOD or _can_be_set(value, name)):
                yield from _leaves(part, inner)
    else:
        yield key, value if isinstance(value, bool | int | float | str | list | None) else str(value)


def _can_be_set(holder: Any, name: str) -> bool:
    """Else it follows from other settings, or is of the file."""
    return getattr(type(holder), name).fset is not None


def with_method(settings: Initialize, method: str) -> Initialize:
    """``settings`` for another method."""
    found = Initialize(method)
    for name, part in vars(Initialize).items():
        if getattr(part, "fset", None) is not None:
            setattr(found, name, getattr(settings, name))
    return found


def apply(recipe: Recipe, settings: dict[str, Any]) -> None:
    """Put ``settings``, as ``meaning`` gives them, into ``recipe``, where they are not there already."""
    if recipe.initialize.method != settings[_METHOD]:
        recipe.initialize = Initialize(settings[_METHOD])
    there = meaning(recipe)
    for key, value in settings.items():
        if there.get(key) == value or key == _METHOD:
            continue
        *sections, name = key.split(".")
        holder = recipe
        for section in sections:
            holder = getattr(holder, section)
        if isinstance(getattr(holder, name), Bound):
            value = Bound(float(value.removesuffix("%")), value.endswith("%"))
        setattr(holder, name, value)


def made_of(
    recipe: Recipe, plan: Plan, model: str, data: Data, task: Task | None, streamed: bool = False
) -> dict[str, Any]:
    """What a run's results depend on, to be kept as JSON; ``model`` is what ``FloatModel.content`` gives."""
    return {
        "recipe": meaning(recipe),
        "plan": plan_content(plan),
        "model": model,
        "data": data_content(data),
        "task": task_content(task),
        "streamed": streamed,
        "numerics": NUMERICS,
    }


def key_of(parts: dict[str, Any]) -> str:
    """A short word for what ``made_of`` gives."""
    return sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def differences(there: dict[str, Any], here: dict[str, Any]) -> list[str]:
    """What a run is made of otherwise, in words: ``there`` in its folder, ``here`` in what was asked for."""
    old, new = there.get("recipe", {}), here["recipe"]
    found = [
        f"{key} is {old.get(key)} there and {new.get(key)} here"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]
    words = {
        "plan": "layers or schedule mean something else",
        "model": "the model has other weights",
        "data": "the data are others",
        "task": "the task is another",
        "streamed": "one of them is streamed",
        "numerics": "it was begun by a torchqat whose arithmetic gives other bits",
    }
    return found + [word for part, word in words.items() if there.get(part) != here[part]]


def plan_content(plan: Plan) -> str:
    """Changes with what becomes of any layer, and when."""
    digest = sha256()
    for layer in plan.layers:
        specs = [_state_of(layer.weight), _state_of(layer.input)]
        digest.update(repr((layer.name, layer.out_features, layer.in_features, layer.shares, specs)).encode())
    stages = [(stage.until.value, stage.until.is_percent, stage.weight_bits, stage.input_bits) for stage in plan.stages]
    digest.update(repr((stages, _state_of(plan.kv_cache))).encode())
    return digest.hexdigest()[:16]


def settings_content(settings: Initialize) -> str:
    """Changes with how weights are rounded before training."""
    return key_of(dict(_leaves(settings, "initialize")))


def _state_of(spec: Any) -> Any:
    """All that a spec says, those in it too."""
    if isinstance(spec, QuantSpec | KvCacheSpec):
        return [_state_of(part) for part in spec.__getstate__()]
    return spec


def data_content(data: Data) -> str:
    """Changes with any element that is trained, calibrated or measured on."""
    digest = sha256(data.train.content.encode())
    for batch in [*data.calibration, *data.evaluation, *data.validation]:
        digest.update(digest_of(batch))
    return digest.hexdigest()[:16]


def task_content(task: Task | None) -> str:
    """Changes with the examples of a task; one that is a function is known by its name."""
    if task is None:
        return ""
    examples = json.dumps(list(task.examples), sort_keys=True, default=str)
    return sha256((examples if task.examples else task.name).encode()).hexdigest()[:16]


def files_content(path: str, companions: Iterable[Path]) -> str:
    """Changes with a model's configuration, with the name, shape or dtype of a tensor, and with most changes of weights.

    Args:
        path: A folder of safetensors or a GGUF file, of which headers and a few bytes a tensor are read; or a hub id that
            was fetched. The result is empty where there are no such files, as for a function of the user's.
        companions: Files beside it that say how it is used.
    """
    if is_gguf(path):
        return sha256(b"".join(_samples_of_gguf(Path(path)))).hexdigest()[:16]
    folder = folder_of(path)
    files = sorted(folder.glob("*.safetensors")) if folder is not None else []
    if not files:
        return ""
    digest = _digest_of_files(companions)
    digest.update((folder / "config.json").read_bytes() if (folder / "config.json").is_file() else b"")
    for file in files:
        for part in _samples_of_file(file):
            digest.update(part)
    return digest.hexdigest()[:16]


def state_content(model: nn.Module, companions: Iterable[Path]) -> str:
    """The same for a model that was not read from such files."""
    digest = _digest_of_files(companions)
    for name, tensor in model.state_dict().items():
        if not isinstance(tensor, Tensor):  # what a module keeps by get_extra_state
            continue
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(bytes_of(_sampled(tensor)))
    return digest.hexdigest()[:16]


def _digest_of_files(files: Iterable[Path]):
    digest = sha256()
    for file in sorted(files):
        digest.update(file.read_bytes())
    return digest


def _samples_of_file(path: Path) -> Iterator[bytes]:
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = file.read(size)
        yield header
        for _, entry in sorted(read_header(path).items()):
            begin, end = (8 + size + place for place in entry["data_offsets"])
            yield from _samples(file, begin, end)


def _samples_of_gguf(path: Path) -> Iterator[bytes]:
    with needs("hf", "A GGUF file"):
        from gguf import GGUFReader

    tensors = GGUFReader(path).tensors
    with open(path, "rb") as file:
        yield file.read(min(tensor.data_offset for tensor in tensors))
        for tensor in tensors:
            yield from _samples(file, tensor.data_offset, tensor.data_offset + tensor.n_bytes)


def _samples(file: BinaryIO, begin: int, end: int) -> Iterator[bytes]:
    """Where a tensor begins, its middle and its end."""
    for place in sorted({begin, (begin + end) // 2, max(begin, end - _SAMPLE)}):
        file.seek(place)
        yield file.read(min(_SAMPLE, end - place))


def _sampled(tensor: Tensor) -> Tensor:
    """Elements of ``tensor`` evenly spread over it, its first and last among them."""
    flat = tensor.flatten()
    count = min(_SAMPLE, len(flat))
    places = torch.arange(count) * (len(flat) - 1) // max(count - 1, 1)
    return flat[places.to(flat.device)]
