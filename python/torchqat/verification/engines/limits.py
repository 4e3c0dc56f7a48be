"""What engines would compute otherwise than training did, though a format that they load holds it."""

from collections.abc import Iterable

from torch import nn

from torchqat._library import LayerPlan, gguf_type
from torchqat.checkpoints.formats.tensors import floating_layers

# Of OpenVINO GenAI 2026.4, whose graphs tests/engines/test_openvino.py reads; of Q4_K it rounds zero points to integers.
_OPENVINO_TYPES = ("Q4_0", "Q4_1", "Q6_K", "Q8_0")
_OPENVINO_ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3")
_NBITS_WIDTHS = (4, 8)
_NBITS_GROUPS = (16, 32, 64, 128, 256)


def openvino_refusal(model: nn.Module, layers: Iterable[LayerPlan]) -> str:
    """Of GGUF files in OpenVINO GenAI."""
    config = getattr(model, "config", None)
    kind = getattr(config, "model_type", type(model).__name__)
    if kind not in _OPENVINO_ARCHITECTURES:
        return f"of GGUF files it reads those of {', '.join(_OPENVINO_ARCHITECTURES)}, but this one is {kind}"
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if rope != "default":
        return f"of GGUF files it reads those with plain rotary positions, but this one has {rope}"
    for layer in layers:
        found = gguf_type(layer.weight, layer.in_features)
        if found not in _OPENVINO_TYPES:
            return f"of GGUF files it takes the types {', '.join(_OPENVINO_TYPES)} as they are, but {layer.name} is {found}"
    return ""


def onnxruntime_genai_refusal(model: nn.Module, layers: Iterable[LayerPlan]) -> str:
    """Of GPTQ and AWQ folders in ONNX Runtime GenAI, whose builder makes MatMulNBits of them."""
    planned = list(layers)
    floating = [name for name in floating_layers(model, planned) if name.rpartition(".")[2] != "lm_head"]
    if floating:
        return f"its builder takes blocks whose linear layers are all quantized, but {floating[0]} is in floating point"
    for layer in planned:
        spec = layer.weight
        if spec.bits not in _NBITS_WIDTHS:
            return f"its builder takes codes of 4 and 8 bits, but {layer.name} has {spec.bits}"
        if spec.granularity != "group" or spec.group_size not in _NBITS_GROUPS:
            found = f"groups of {spec.group_size}" if spec.granularity == "group" else f"a scale per {spec.granularity}"
            return f"onnxruntime multiplies by groups of 16, 32, 64, 128 or 256 columns, but {layer.name} has {found}"
    return ""


def executorch_refusal(model: nn.Module, layers: Iterable[LayerPlan]) -> str:
    """Of our own folders in ExecuTorch, as XNNPACK multiplies what torchao calls 8da4w."""
    for layer in layers:
        weight, input = layer.weight, layer.input
        if weight is None:
            return f"its kernel takes int4 weights, but those of {layer.name} are in floating point"
        in_groups = weight.granularity == "group" and weight.group_size % 32 == 0
        if weight.dtype != "int4" or not weight.symmetric or not in_groups or weight.scale_dtype != "bfloat16":
            return (
                "its kernel takes symmetric int4 weights in groups of a multiple of 32 columns, of scales in bfloat16, but "
                f"{layer.name} has {weight}"
            )
        per_token = input is not None and input.dtype == "int8" and input.granularity == "token"
        if not per_token or input.symmetric:
            found = "in floating point" if input is None else input
            return f"its kernel takes asymmetric int8 inputs, a scale per token, but those of {layer.name} are {found}"
    return ""
