"""Readers of our checkpoints that share nothing with what wrote them: other people's libraries, or arithmetic bit by bit.

What is exported is checked against them, so nothing here may call our packing or our operators.
"""

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from torchqat.checkpoints.readers.in_model import in_model
from torchqat.checkpoints.readers.library import has_dense_widths
from torchqat.checkpoints.readers.reading import Reading, read_tensors
from torchqat.errors import UserError, first_line
from torchqat.extras import needs
from torchqat.files import read_json

_METHODS = {"compressed-tensors": "compressed-tensors", "awq": "awq", "modelopt": "modelopt", "torchqat": "safetensors"}
_METHODS |= {"mxfp4": "mxfp4"}
# Where older writers put what is in config.json now, and what quantizes as it says.
_BESIDE = {"hf_quant_config.json": "modelopt", "quantize_config.json": "gptq", "quant_config.json": "awq"}


def quantization_config_of(folder: Path) -> dict | str | None:
    """What the checkpoint in ``folder`` says of how it is quantized, in ``config.json`` or beside it; ``None`` if nothing.

    Raises:
        UserError: A file of these is no JSON.
    """
    return _quantization_in(_settings_of(folder), folder)


def _settings_of(folder: Path) -> Any:
    return read_json(folder / "config.json", "The configuration of a checkpoint")


def _quantization_in(settings: Any, folder: Path) -> dict | str | None:
    if not isinstance(settings, dict):
        return None
    config = settings.get("quantization_config")
    for file, method in _BESIDE.items() if config is None else ():
        if (folder / file).is_file():
            found = read_json(folder / file, "The configuration of a checkpoint")
            return {"quant_method": method, **(found if isinstance(found, dict) else {})}
    return config


def format_of(folder: Path) -> str:
    """The format of the checkpoint in ``folder``, as ``export`` calls it.

    Raises:
        UserError: It holds none that torchqat knows.
    """
    if folder.suffix == ".gguf" or any(folder.glob("*.gguf")):
        return "gguf"
    if any(folder.glob("*.onnx")):
        return "onnx"
    settings = _settings_of(folder)
    config = _quantization_in(settings, folder)
    if isinstance(config, dict) and "quant_method" not in config and {"group_size", "bits"} <= config.keys():
        return "mlx"
    if config is None and isinstance(settings, dict):
        return "dense"
    method = config.get("quant_method") if isinstance(config, dict) else None
    if method == "compressed-tensors" and has_dense_widths(config):
        return "compressed-tensors-0.18"
    if method == "gptq":
        return "gptq_v2" if config.get("checkpoint_format") == "gptq_v2" else "gptq"
    if not isinstance(method, str) or method not in _METHODS:
        raise UserError(
            f"{folder} must be a checkpoint of a format that torchqat writes, but its config.json names "
            f"{'no quantization method' if method is None else method}."
        )
    return _METHODS[method]


def read_layers_of(format: str, tensors: dict[str, Tensor], config: dict) -> Reading:
    """Dense weights from some of the tensors of a checkpoint that is a folder, and its ``quantization_config``."""
    if format == "dense":
        return Reading(others=dict(tensors))
    if format.startswith("compressed-tensors"):
        from torchqat.checkpoints.readers.compressed_tensors import decompress

        return decompress(tensors, config)
    if format == "mlx":
        from torchqat.checkpoints.readers.mlx import quantized

        return quantized(tensors, config)
    if format == "mxfp4":
        from torchqat.checkpoints.readers.mxfp4 import experts

        return experts(tensors)
    from torchqat.checkpoints.readers.packed import unpack

    return unpack(tensors, format, config)


def read_checkpoint(folder: Path, model: nn.Module | None = None) -> Reading:
    """Dense weights of the quantized layers, and everything else, of a checkpoint of any format.

    Args:
        folder: What ``export`` wrote.
        model: The model that it was exported from, whose names the tensors get; GGUF files are read by its architecture.
            Of one that is not prepared, the files alone say what is quantized. When ``None``, tensors of a folder have
            their names on disk.

    Raises:
        UserError: The folder holds no checkpoint, or a file of it is damaged.
    """
    format = format_of(folder)
    if format == "gguf":
        with needs("hf", "A GGUF file"):
            from torchqat.checkpoints.readers.gguf import read_gguf

        return read_gguf(folder, model)
    if format == "onnx":
        from torchqat.checkpoints.readers.onnx import read_onnx

        return read_onnx(folder)
    config = quantization_config_of(folder)
    tensors = read_tensors(folder)
    try:
        reading = read_layers_of(format, tensors, config)
    except UserError:
        raise
    except Exception as error:  # of a configuration that is none
        raise UserError(f"{folder} must be a {format} checkpoint that can be read, but {first_line(error)}.") from error
    return reading if model is None else in_model(reading, model, is_dense=format == "dense")
