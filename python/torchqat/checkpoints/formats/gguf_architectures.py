"""Whether llama.cpp runs a model that transformers built, and with the types that its layers would have."""

from collections.abc import Iterable

from torch import nn

from torchqat._library import LayerPlan, gguf_type
from torchqat.checkpoints.formats.llama_cpp.architecture import Architecture
from torchqat.checkpoints.formats.llama_cpp.fixed import check_fixed
from torchqat.checkpoints.formats.llama_cpp.rope import check_rope
from torchqat.checkpoints.formats.llama_cpp.table import ARCHITECTURES
from torchqat.errors import UserError


def architecture_of(model: nn.Module) -> Architecture:
    """The architecture of a causal language model.

    Raises:
        UserError: It is none that a GGUF file can be written for, or llama.cpp computes one like it otherwise.
    """
    config = getattr(model, "config", None)
    kind = getattr(config, "model_type", None)
    if kind not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise UserError(
            f"gguf takes models of the architectures {known}, but this one is {kind or type(model).__name__}."
        )
    found = ARCHITECTURES[kind]
    check_fixed(config.get_text_config(), found.fixed)
    check_rope(model, found)
    return found


def check_types(model: nn.Module, layers: Iterable[LayerPlan]) -> None:
    """Whether llama.cpp computes with the types that ``layers`` would have in a file.

    Raises:
        UserError: It passes over what NVFP4 has beside its blocks, where ``model`` is of this architecture.
    """
    scaled = next((layer.name for layer in layers if gguf_type(layer.weight, layer.in_features) == "NVFP4"), None)
    if scaled is not None and not architecture_of(model).scales_products:
        known = ", ".join(name for name, one in ARCHITECTURES.items() if one.scales_products)
        raise UserError(
            f"gguf takes nvfp4 for models of the architectures {known}, of which llama.cpp multiplies products by the scale "
            f"of a whole weight, but {scaled} is of a {model.config.model_type}; mxfp4 has none."
        )
