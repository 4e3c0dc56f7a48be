"""Which class of transformers loads a language model whole: its text alone, or with what reads images and sounds."""

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
    """The class that loads the model of ``config`` with all of its parts.

    What the folder names as its architecture is loaded, not the text model that transformers would cut out of it.

    Raises:
        UserError: It is of an encoder with a decoder.
    """
    import transformers

    text_alone = getattr(transformers, _TEXT_ALONE)
    named = (getattr(config, "architectures", None) or [None])[0]
    if named is not None and named == _class_of(text_alone, config):
        return text_alone
    if is_encoder_decoder(config):
        reads = any(_class_of(getattr(transformers, name), config) for name in SEQ2SEQ)
        raise UserError(
            f"model must be a causal language model, but {path} holds a {named or config.model_type}, an encoder with a "
            "decoder: "
            + (
                "set model.kind: seq2seq."
                if reads
                else "model.kind: seq2seq takes those of text and speech, and Python others (docs/how-to/other-models.md)."
            )
        )
    for name in _WITH_MORE:
        loader = getattr(transformers, name, None)
        if loader is not None and _class_of(loader, config) is not None:
            return loader
    return text_alone


def seq2seq_loader(config: Any, path: str) -> str:
    """Which of ``SEQ2SEQ`` loads the model of ``config``: what it names as its architecture, else the first that can.

    Raises:
        UserError: None does, or it has no encoder and decoder.
    """
    import transformers

    named = (getattr(config, "architectures", None) or [None])[0]
    built = {name: _class_of(getattr(transformers, name), config) for name in SEQ2SEQ}
    able = [name for name, found in built.items() if found is not None] if is_encoder_decoder(config) else []
    if not able:
        raise UserError(
            f"model must be an encoder of text or speech with a decoder to be of kind seq2seq, but {path} holds a "
            f"{named or config.model_type}."
        )
    return next((name for name in able if built[name] == named), able[0])


def classifier_loader(config: Any) -> str:
    """Which of ``CLASSIFIERS`` loads the model of ``config``: what it names as its architecture, else the first that can."""
    import transformers

    named = (getattr(config, "architectures", None) or [None])[0]
    built = {name: _class_of(getattr(transformers, name), config) for name in CLASSIFIERS}
    by_name = [name for name, found in built.items() if found is not None and found == named]
    return next(
        iter([*by_name, *(name for name, found in built.items() if found is not None)]), next(iter(CLASSIFIERS))
    )


def encoder_loader(config: Any) -> str:
    """The class of transformers that loads an encoder of texts: where it has a decoder, the encoder alone."""
    import transformers

    alone = _class_of(getattr(transformers, _ENCODERS[1]), config)
    named = (getattr(config, "architectures", None) or [None])[0]
    is_apart = alone is not None and (is_encoder_decoder(config) or named == alone)
    return _ENCODERS[1] if is_apart else _ENCODERS[0]


def is_encoder_decoder(config: Any) -> bool:
    """Whether the model of ``config`` needs what its encoder reads beside the tokens that it goes on from."""
    return bool(getattr(config, "is_encoder_decoder", False))


def _class_of(loader: Any, config: Any) -> str | None:
    """The name of what ``loader`` would build."""
    found = loader._model_mapping.get(type(config), None)
    found = found[0] if isinstance(found, (list, tuple)) else found
    return getattr(found, "__name__", None)
