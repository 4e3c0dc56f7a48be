"""What a checkpoint says of its architecture beside what the model is: a key that it lost, readers fill with a default."""

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from torchqat._library import DTYPES
from torchqat.errors import UserError, first_line
from torchqat.extras import needs
from torchqat.files import read_json

# Of a config.json: how the checkpoint is stored and loaded, not what it computes; and what an exported head makes other.
_OF_STORAGE = {"quantization_config", "dtype", "torch_dtype", "transformers_version", "architectures"}
_OF_STORAGE |= {"tie_word_embeddings", "use_cache", "_name_or_path"}
# What engines choose their own model by, before they read the rest.
_KIND = "model_type"
# Of the top of one, what mlx-lm reads beside it: rope_parameters in older words; and the storage again.
_ROPE = ("partial_rotary_factor", "rope_scaling", "rope_theta")
_OF_MLX = {"quantization", *_ROPE}


def differing_settings(folder: Path, format: str, model: nn.Module) -> list[str]:
    """The keys of the configuration in ``folder`` that readers take otherwise than ``model`` has them; nested ones by dots.

    Models without a configuration of transformers have none, and neither have graphs.

    Raises:
        UserError: It cannot be read.
    """
    config = getattr(model, "config", None)
    if not hasattr(config, "to_diff_dict") or format == "onnx":
        return []
    if format == "gguf":
        with needs("hf", "A GGUF file"):
            from torchqat.verification.settings_gguf import differing_in_gguf

        return differing_in_gguf(folder, model)
    written = read_json(folder / "config.json", "The configuration of a checkpoint")
    names = [*_of_class(written, model), *_rope(written, config, format == "mlx"), *_in_folder(folder, config)]
    return sorted({*names, *_of_generation(folder, model)})


def narrowing_dtype(folder: Path, format: str, tensors: Iterable[Tensor]) -> list[str]:
    """``dtype`` where the configuration in ``folder`` has engines round the tensors there: one that none of them has."""
    if format in ("gguf", "onnx") or not (folder / "config.json").is_file():
        return []
    written = read_json(folder / "config.json", "The configuration of a checkpoint")
    word = written.get("dtype", written.get("torch_dtype"))
    stored = {tensor.dtype for tensor in tensors if tensor.dtype in DTYPES.values()}
    rounds = word not in (None, "auto", "float32", "float64") and stored and DTYPES.get(word) not in stored
    return ["dtype"] if rounds else []


def _of_class(written: dict[str, Any], model: nn.Module) -> list[str]:
    """The keys by which engines find the class that computes the checkpoint, where they say another; one may lack."""
    import transformers

    name, given = type(model).__name__, written.get("architectures")
    wanted = [name] if hasattr(transformers, name) else [*(model.config.architectures or []), name]
    names = [_KIND] if written.get(_KIND, "") != type(model.config).model_type else []
    return names + (["architectures"] if given and not set(given) <= set(wanted) else [])


def _rope(written: dict[str, Any], config: Any, of_mlx: bool) -> list[str]:
    """Older words for ``rope_parameters`` that say something else: mlx-lm, and engines of those days, read them first."""
    own, rope = config.to_dict(), getattr(config, "rope_parameters", None) or {}
    wanted = {key: own.get(key) for key in _ROPE}
    if of_mlx:  # which has defaults of its own for what is not there
        wanted.update({key: rope[key] for key in _ROPE if key in rope})
        if rope.get("rope_type", "default") != "default":
            wanted["rope_scaling"] = {key: value for key, value in rope.items() if key != "rope_theta"}
    return [key for key, value in wanted.items() if written.get(key) != value]


def _of_generation(folder: Path, model: nn.Module) -> list[str]:
    """The tokens that texts begin and end with, where the folder says others; how to sample is up to who serves."""
    config = getattr(model, "generation_config", None)
    wanted = config.to_dict() if config is not None else {}
    found, file = {}, folder / "generation_config.json"
    if file.is_file():
        found = read_json(file, "The generation configuration of a checkpoint")
    keys = {key for key in wanted.keys() | found.keys() if key.endswith("_token_id")}
    return [f"generation_config.{key}" for key in keys if wanted.get(key) != found.get(key)]


def _in_folder(folder: Path, config: Any) -> list[str]:
    """Both as transformers reads them, with its defaults for what is not there."""
    with tempfile.TemporaryDirectory() as scratch:
        config.to_json_file(Path(scratch) / "config.json")
        wanted = type(config).from_json_file(Path(scratch) / "config.json").to_dict()
    try:
        found = type(config).from_json_file(folder / "config.json").to_dict()
    except Exception as error:
        raise UserError(
            f"{folder / 'config.json'} must be a configuration that transformers can read, but {first_line(error)}"
        ) from error
    return _differing(found, wanted, "")


def _differing(found: dict[str, Any], wanted: dict[str, Any], place: str) -> list[str]:
    names, added = [], set() if place else _OF_MLX - wanted.keys()
    for key in sorted((found.keys() | wanted.keys()) - _OF_STORAGE - added):
        ours, theirs = wanted.get(key), found.get(key)
        if isinstance(ours, dict) and isinstance(theirs, dict):
            names += _differing(theirs, ours, f"{place}{key}.")
        elif ours != theirs:
            names.append(f"{place}{key}")
    return names
