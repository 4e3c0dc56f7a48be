"""Whether llama.cpp runs a model that transformers built, and with the types that its layers would have."""

from collections.abc import Iterable

from torch import nn

from torchqat._library import LayerPlan, gguf_type
from torchqat.checkpoints.formats.llama_cpp.architecture import Architecture
from torchqat.checkpoints.formats.llama_cpp.fixed import check_fixed
from torchqat.checkpoints.formats.llama_cpp.hyperparameters import context_of
from torchqat.checkpoints.formats.llama_cpp.rope import check_rope, rounds_yarn
from torchqat.checkpoints.formats.llama_cpp.table import ARCHITECTURES
from torchqat.errors import UserError
from torchqat.model.towers import language_model


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


def gguf_notes(model: nn.Module) -> list[str]:
    """What a GGUF file of ``model``, which ``architecture_of`` knows, does not have of it, a sentence each."""
    config, found = model.config.get_text_config(), architecture_of(model)
    notes = []
    if inside := language_model(model):
        notes.append(f"The GGUF file has the language model alone, {inside}: what reads images or sounds is not in it.")
    context = context_of(config, found)
    if context < config.max_position_embeddings:
        notes.append(
            f"llama.cpp attends to all tokens, where blocks of a {config.model_type} have a window: the GGUF file says that "
            f"it takes {context} tokens, up to which both compute the same."
        )
    if rounds_yarn(config):
        notes.append(
            "llama.cpp rounds the ends of yarn's ranges to whole channels, which this model does not (truncate: false): the "
            "channels between turn otherwise there, as in every GGUF file of gpt-oss."
        )
    return notes


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
