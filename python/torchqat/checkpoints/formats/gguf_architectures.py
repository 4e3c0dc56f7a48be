"""Whether llama.cpp runs a model that transformers built, and with the types that its layers would have."""

from collections.abc import Iterable

import gguf
from torch import nn

from torchqat._library import LayerPlan, gguf_type
from torchqat.checkpoints.formats.llama_cpp.architecture import Architecture
from torchqat.checkpoints.formats.llama_cpp.fixed import check_fixed
from torchqat.checkpoints.formats.llama_cpp.hyperparameters import context_of
from torchqat.checkpoints.formats.llama_cpp.rope import check_rope, rounds_yarn
from torchqat.checkpoints.formats.llama_cpp.table import ARCHITECTURES
from torchqat.errors import UserError
from torchqat.model.towers import language_model

# By the names of recipes and models.
POOLING = {"mean": gguf.PoolingType.MEAN, "cls": gguf.PoolingType.CLS, "last": gguf.PoolingType.LAST}


def architecture_of(model: nn.Module) -> Architecture:
    """The architecture of a causal language model, or of an encoder of texts.

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
    if found.encoder and type(model).__name__ != found.encoder:
        raise UserError(
            f"gguf takes a {kind} that is a {found.encoder}, an encoder whose hidden states become vectors, but this one is "
            f"a {type(model).__name__}."
        )
    check_fixed(config.get_text_config(), found.fixed)
    check_rope(model, found)
    return found


def gguf_notes(model: nn.Module) -> list[str]:
    """What a GGUF file of ``model``, which ``architecture_of`` knows, does not have of it, a sentence each."""
    config, found = model.config.get_text_config(), architecture_of(model)
    notes = []
    if inside := language_model(model):
        notes.append(f"The GGUF file has the language model alone, {inside}: what reads images or sounds is not in it.")
    if any(name.startswith(found.passes_over) for name, _ in model.named_parameters()):
        notes.append("The GGUF file has no pooler: llama.cpp makes vectors of the last hidden states.")
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


def check_pooling(model: nn.Module, pooling: str) -> None:
    """Whether llama.cpp makes vectors as ``pooling`` says, which encoders alone need.

    Raises:
        UserError: It does not, or an encoder is not said to be pooled in any way.
    """
    if pooling not in POOLING and (pooling or architecture_of(model).encoder):
        raise UserError(
            f"gguf takes encoders whose hidden states become vectors by {', '.join(POOLING)}, and nothing but normalization "
            f"after it, but this one's by {pooling or 'nothing that was said: give pooling'}."
        )


def check_types(model: nn.Module, layers: Iterable[LayerPlan]) -> None:
    """Whether llama.cpp computes with the types that ``layers`` would have in a file.

    Raises:
        UserError: It passes over a layer, or over what NVFP4 has beside its blocks, where ``model`` is of this architecture.
    """
    layers, passed_over = list(layers), architecture_of(model).passes_over
    unread = next((layer.name for layer in layers if layer.name.startswith(passed_over)), None) if passed_over else None
    if unread is not None:
        raise UserError(f"gguf has no place for {unread}: leave it by a rule with weight: float.")
    scaled = next((layer.name for layer in layers if gguf_type(layer.weight, layer.in_features) == "NVFP4"), None)
    if scaled is not None and not architecture_of(model).scales_products:
        known = ", ".join(name for name, one in ARCHITECTURES.items() if one.scales_products)
        raise UserError(
            f"gguf takes nvfp4 for models of the architectures {known}, of which llama.cpp multiplies products by the scale "
            f"of a whole weight, but {scaled} is of a {model.config.model_type}; mxfp4 has none."
        )
