"""Which class of transformers loads a language model whole: its text alone, or with what reads images and sounds."""

from collections.abc import Iterable
from typing import Any

from torchqat.errors import UserError

# Classes of transformers that load models with a head of classes, and what they are of.
CLASSIFIERS = {
    "AutoModelForSequenceClassification": "text",
    "AutoModelForTokenClassification": "words",
    "AutoModelForImageClassification": "image",
    "AutoModelForAudioClassification": "sound",
}

# Classes of transformers that load encoders with a decoder which writes text, and what the encoder reads.
SEQ2SEQ = {"AutoModelForSeq2SeqLM": "text", "AutoModelForSpeechSeq2Seq": "speech"}
# Classes of transformers that load models which write text, and what they read, most of all first.
_WITH_MORE = ("AutoModelForImageTextToText", "AutoModelForMultimodalLM")
_TEXT_ALONE = "AutoModelForCausalLM"
# Those that load what gives hidden states: a whole model, and the part of it that reads text.
_ENCODERS = ("AutoModel", "AutoModelForTextEncoding")


def language_model_loader(config: Any, path: str) -> Any:
    """The class of transformers that loads the model of ``config`` with all of its parts.

    What the folder names as its architecture is loaded, not the text model that transformers would cut out of it.

    Raises:
        UserError: It is of an encoder with a decoder.
    """
    import transformers

    named = _architecture(config)
    if named is not None and named == _class_of(_TEXT_ALONE, config):
        return getattr(transformers, _TEXT_ALONE)
    if is_encoder_decoder(config):
        raise UserError(
            f"model must be a causal language model, but {path} holds a {named or config.model_type}, an encoder with a "
            "decoder: "
            + (
                "set model.kind: seq2seq."
                if _able(SEQ2SEQ, config)
                else "model.kind: seq2seq takes those of text and speech, and Python others (docs/how-to/other-models.md)."
            )
        )
    able = [name for name in _WITH_MORE if _class_of(name, config) is not None]
    return getattr(transformers, [*able, _TEXT_ALONE][0])


def seq2seq_loader(config: Any, path: str) -> str:
    """Which of ``SEQ2SEQ`` loads the model of ``config``: what it names as its architecture, else the first that can.

    Raises:
        UserError: None does, or it has no encoder and decoder.
    """
    able = _able(SEQ2SEQ, config) if is_encoder_decoder(config) else []
    if not able:
        raise UserError(
            f"model must be an encoder of text or speech with a decoder to be of kind seq2seq, but {path} holds a "
            f"{_architecture(config) or config.model_type}."
        )
    return able[0]


def classifier_loader(config: Any) -> str:
    """Which of ``CLASSIFIERS`` loads the model of ``config``: what it names as its architecture, else the first that can."""
    return next(iter(_able(CLASSIFIERS, config)), next(iter(CLASSIFIERS)))


def encoder_loader(config: Any) -> str:
    """The class of transformers that loads an encoder of texts: where it has a decoder, the encoder alone."""
    alone = _class_of(_ENCODERS[1], config)
    is_apart = alone is not None and (is_encoder_decoder(config) or _architecture(config) == alone)
    return _ENCODERS[1] if is_apart else _ENCODERS[0]


def is_encoder_decoder(config: Any) -> bool:
    """Whether the model of ``config`` needs what its encoder reads beside the tokens that it goes on from."""
    return bool(getattr(config, "is_encoder_decoder", False))


def _architecture(config: Any) -> str | None:
    """The class that ``config`` says its model is of, the first where there are several."""
    return (getattr(config, "architectures", None) or [None])[0]


def _able(loaders: Iterable[str], config: Any) -> list[str]:
    """Those of ``loaders`` that load the model of ``config``, first the one that builds what it names."""
    named, built = _architecture(config), {name: _class_of(name, config) for name in loaders}
    return sorted((name for name in loaders if built[name] is not None), key=lambda name: built[name] != named)


def _class_of(loader: str, config: Any) -> str | None:
    """The name of what a class of transformers would build, where it is there and can."""
    import transformers

    loader = getattr(transformers, loader, None)
    if loader is None:
        return None
    found = loader._model_mapping.get(type(config), None)
    found = found[0] if isinstance(found, (list, tuple)) else found
    return getattr(found, "__name__", None)
