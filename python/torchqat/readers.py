"""Other people's readers of our checkpoints: what we are checked against."""

import json
import re
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from torchqat.errors import UserError
from torchqat.files import read_json


def read_compressed_tensors(folder: Path) -> dict[str, Tensor]:
    """The dense weight ``[out, in]`` of every quantized layer, as the compressed-tensors library decompresses it.

    Raises:
        UserError: The folder is no compressed-tensors checkpoint, or a file of it is damaged.
    """
    config = read_json(folder / "config.json", "The configuration of a checkpoint").get("quantization_config") or {}
    if config.get("quant_method") != "compressed-tensors":
        raise UserError(f"{folder} must be a compressed-tensors checkpoint, but its config.json names no such method.")
    return decompress(read_tensors(folder), config)


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a checkpoint, of one file or of several.

    Raises:
        UserError: There is no safetensors file, or one is damaged.
    """
    tensors: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")) or [folder / "model.safetensors"]:
        tensors.update(read_file(file))
    return tensors


def read_file(file: Path) -> dict[str, Tensor]:
    """The tensors of one file, as the safetensors library reads them.

    Raises:
        UserError: The file is missing or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file} must be a safetensors file, but does not load: {error}.") from error


def decompress(tensors: dict[str, Tensor], config: dict | str) -> dict[str, Tensor]:
    """Dense weights from checkpoint tensors and their ``quantization_config``, by the library's own decompressors."""
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationConfig

    settings = json.loads(config) if isinstance(config, str) else config
    fields = QuantizationConfig.model_fields
    parsed = QuantizationConfig.model_validate({k: v for k, v in settings.items() if k in fields})
    weights = {}
    for name in sorted({key.rpartition(".")[0] for key in tensors if key.endswith(".weight_scale")}):
        scheme = next(s for s in parsed.config_groups.values() if _targets(s.targets, name))
        layer = {k.rpartition(".")[2]: v for k, v in tensors.items() if k.rpartition(".")[0] == name}
        compressor = BaseCompressor.get_value_from_registry(scheme.format or parsed.format)
        weights[name] = compressor.decompress(layer, scheme)["weight"]
    return weights


def _targets(targets: list[str], name: str) -> bool:
    return any(
        re.match(target[3:], name) if target.startswith("re:") else target in ("Linear", name) for target in targets
    )


def load_in_transformers(folder: Path) -> nn.Module:
    """The checkpoint as transformers loads it, its weights dense and its inputs unquantized.

    transformers can make weights dense while it loads them, but then takes one config group for all layers. Checkpoints of
    mixed precision are loaded packed instead and become dense in their first forward, which happens here.

    Raises:
        UserError: transformers cannot load the folder.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils.quantization_config import CompressedTensorsConfig

    config = read_json(folder / "config.json", "The configuration of a checkpoint").get("quantization_config") or {}
    mixed = len(config.get("config_groups", {})) > 1
    options = {} if mixed else {"quantization_config": CompressedTensorsConfig(dequantize=True)}
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="You passed `quantization_config`")  # it is what we mean to do
            model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", **options).eval()
        if mixed:
            model(input_ids=torch.zeros(1, 2, dtype=torch.int64))
        return model
    except Exception as error:
        raise UserError(f"transformers could not load {folder}: {str(error).splitlines()[0]}") from error
