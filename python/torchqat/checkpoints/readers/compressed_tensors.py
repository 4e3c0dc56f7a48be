"""compressed-tensors checkpoints, dense by that library's own decompressors."""

import json
import re

from torch import Tensor

from torchqat.checkpoints.readers.library import check_reads_dense_widths, has_dense_widths
from torchqat.checkpoints.readers.reading import LayerTensors, Reading, read_layers
from torchqat.errors import UserError
from torchqat.extras import needs

_LEAVES = ("weight", "weight_packed", "weight_scale", "weight_shape", "weight_zero_point", "weight_global_scale")
_LEAVES += ("weight_g_idx",)  # which group each column is of, where those of one are no neighbours


def decompress(tensors: dict[str, Tensor], config: dict | str) -> Reading:
    """Dense weights from checkpoint tensors and their ``quantization_config``."""
    with needs("hf", "Reading a checkpoint"):
        from compressed_tensors.compressors import BaseCompressor
        from compressed_tensors.quantization import QuantizationConfig

    settings = json.loads(config) if isinstance(config, str) else config
    if has_dense_widths(settings):
        check_reads_dense_widths()
    fields = QuantizationConfig.model_fields
    parsed = QuantizationConfig.model_validate({k: v for k, v in settings.items() if k in fields})

    def dense(layer: LayerTensors) -> Tensor:
        if "weight_g_idx" in layer:
            raise UserError(
                f"{layer.name} has columns whose groups are no neighbours (weight_g_idx), which the compressed-tensors "
                "library does not read."
            )
        scheme = next(s for s in parsed.config_groups.values() if _targets(s.targets, layer.name))
        format = scheme.format or parsed.format
        needed = ["weight_packed"] if "pack-quantized" in format else ["weight"]
        if format == "pack-quantized":
            needed.append("weight_shape")
        if format == "nvfp4-pack-quantized":
            needed.append("weight_global_scale")
        if format == "pack-quantized" and not scheme.weights.symmetric:
            needed.append("weight_zero_point")
        for leaf in ("weight_scale", *needed):
            layer[leaf]  # says which is missing
        weight = BaseCompressor.get_value_from_registry(format).decompress(layer.all(), scheme)["weight"]
        if "weight_shape" in layer:
            _check_shape(layer, weight)
        return weight

    return read_layers(tensors, _LEAVES, set(_LEAVES) - {"weight"}, dense)


def _check_shape(layer: LayerTensors, weight: Tensor) -> None:
    """The library cuts columns off by it, and takes what is there where it says more; engines make a weight of it."""
    said = layer["weight_shape"].tolist()
    if said != list(weight.shape):
        raise UserError(f"{layer.name}.weight_shape must be that of its codes, {list(weight.shape)}, but is {said}.")


def _targets(targets: list[str], name: str) -> bool:
    return any(
        re.match(target[3:], name) if target.startswith("re:") else target in ("Linear", name) for target in targets
    )
