"""The language model inside a model that also reads images or sounds, what stands beside it, and the output head."""

from typing import Any

from torch import nn

from torchqat.model.loader import is_encoder_decoder


def language_model(model: nn.Module) -> str | None:
    """The name of the part of ``model`` that reads and writes text, where others read something else.

    Returns:
        ``None`` where the whole model is that part, as of models of text alone, or where none is, as of encoders with a
        decoder and of models that write no text.
    """
    config = getattr(model, "config", None)
    if not generates(model) or is_encoder_decoder(config):
        return None
    text = _text_config(config)
    if text is None or text is config:
        return None
    return next((name for name, module in model.named_modules() if name and _is_of(module, text)), None)


def output_head(model: nn.Module) -> nn.Module | None:
    """What gives the logits, of a model of transformers; ``None`` of others, and where there is none."""
    return model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None


def beside_language_model(model: nn.Module) -> dict[int, str]:
    """By the ``id`` of each module beside the language model of ``model`` and its head, the name of the part it is in."""
    inside = language_model(model)
    if inside is None:
        return {}
    found: dict[int, str] = {}
    head = output_head(model)
    for name, module in model.named_modules():
        if module is head:
            continue
        if name and not f"{inside}.".startswith(f"{name}.") and not name.startswith(f"{inside}."):
            found[id(module)] = found.get(id(model.get_submodule(name.rpartition(".")[0])), name)
    return found


def generates(model: nn.Module) -> bool:
    """Whether ``model`` writes text, from a text or from what an encoder of its own reads."""
    return hasattr(model, "can_generate") and hasattr(model, "config") and model.can_generate()


def _text_config(config: Any) -> Any:
    try:
        return config.get_text_config()
    except (AttributeError, ValueError):  # it has none, or several
        return None


def _is_of(module: nn.Module, text: Any) -> bool:
    own = getattr(module, "config", None)
    return hasattr(module, "base_model_prefix") and type(own) is type(text)
