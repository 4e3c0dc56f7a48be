"""What encoders with a decoder learn from: lines of jsonl with a text or a sound, and the text that is to be written."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from torchqat.data.batch import Batch
from torchqat.data.examples import NO_LABEL, Examples, identities_of, padded, tokenized
from torchqat.data.jsonl import read_objects
from torchqat.data.sound import check_sound, read_sound
from torchqat.errors import UserError, first_line

# Names of what is read and of what is written, of which a line has one pair.
_PAIRS = (("source", "target"), ("prompt", "completion"))
_TEXTS = 'a line must be {"source": ..., "target": ...} or {"prompt": ..., "completion": ...}, none of them empty'
_SOUNDS = 'a line must be {"audio": the path of a WAV file, "text": ...}, none of them empty'

Shift = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Written(Examples):
    """Token ids that an encoder reads, and as labels those that its decoder writes.

    Attributes:
        shift: Gives the decoder's inputs for padded labels.
    """

    shift: Shift | None = None

    def batch(self, places: Tensor) -> Batch:
        """Inputs of encoder and decoder, and labels, by the names that transformers gives them."""
        found = self._read(places)
        labels = padded([self.labels[place] for place in places.tolist()], NO_LABEL)
        return {**found, "decoder_input_ids": self.shift(labels), "labels": labels}

    def identities(self, cut: int = 0) -> list[bytes]:
        """By what is read and what is written of it, beside which others may be right as well."""
        return _together(super().identities(cut), identities_of(self.labels, cut))

    @property
    def largest_token(self) -> int:
        """Of what is read and of what is written, which have one vocabulary."""
        return max(super().largest_token, _largest(self.labels))

    def _read(self, places: Tensor) -> dict[str, Tensor]:
        found = super().batch(places)
        return {name: found[name] for name in ("input_ids", "attention_mask")}

    def _lengths(self, place: int) -> tuple[int, ...]:
        return (*self._lengths_read(place), len(self.labels[place]))

    def _lengths_read(self, place: int) -> tuple[int, ...]:
        return super()._lengths(place)


@dataclass(frozen=True)
class Spoken(Written):
    """The same where sounds are read: ``inputs`` are files, of which features are made when a batch is.

    Attributes:
        extractor: The model's, of transformers.
    """

    extractor: Any = None

    @property
    def largest_token(self) -> int:
        """Of what is written."""
        return _largest(self.labels)

    def _read(self, places: Tensor) -> dict[str, Tensor]:
        features = [self._features(place) for place in places.tolist()]
        return dict(self.extractor.pad(features, return_tensors="pt"))

    def identities(self, cut: int = 0) -> list[bytes]:
        return _together(self._digests, identities_of(self.labels, cut))

    @cached_property
    def _digests(self) -> list[bytes]:
        """Of each file, which is read once for it."""
        return [sha256(path.read_bytes()).digest() for path in self.inputs]

    def _features(self, place: int) -> dict[str, Any]:
        sound = read_sound(self.inputs[place])
        found = self.extractor(sound, sampling_rate=self.extractor.sampling_rate, return_tensors="np")
        return {name: found[name][0] for name in self.extractor.model_input_names if name in found}

    def _lengths_read(self, place: int) -> tuple[int, ...]:
        return self._features(place)[self.extractor.model_input_names[0]].shape

    def everything(self) -> Batch:
        """The labels, and a digest of each file, whose features are not all held at once."""
        digests = torch.tensor([list(digest) for digest in self._digests])
        return {"audio": digests, "labels": padded(list(self.labels), NO_LABEL)}


def texts_with_targets(path: Path, tokenizer: Any, length: int, start: int | None, shift: Shift) -> Examples:
    """Lines with a ``source`` and a ``target``, or a ``prompt`` and a ``completion``.

    Args:
        path: Of the file.
        tokenizer: The model's.
        length: Tokens after which texts are cut off, those that are read and those that are written.
        start: The token that decoders are given first.
        shift: Gives the decoder's inputs for padded labels.

    Raises:
        UserError: The file is missing, or a line is of another form (it is named).
    """
    found = read_objects(path, lambda value: _pair_of(value) is not None, _TEXTS)
    pairs = [[line[key] for key in _pair_of(line)] for line in found]
    inputs = tokenized(tokenizer, [read for read, _ in pairs], length)
    labels = target_tokens(tokenizer, [written for _, written in pairs], length, start)
    return Written(inputs.inputs, labels, inputs.padding, cut=length, shift=shift)


def sounds_with_texts(
    path: Path, tokenizer: Any, extractor: Any, length: int, start: int | None, shift: Shift
) -> Examples:
    """Lines with an ``audio``, a WAV file by its path from the folder of the jsonl, and its ``text``.

    Args:
        path: Of the file.
        tokenizer: The model's.
        extractor: What makes features of sounds, of transformers.
        length: Tokens after which texts are cut off.
        start: The token that decoders are given first.
        shift: Gives the decoder's inputs for padded labels.

    Raises:
        UserError: A file is missing, a line is of another form (it is named), or a sound is of a form or length that the
            model does not take.
    """
    found = read_objects(path, lambda value: _has(value, ("audio", "text")), _SOUNDS)
    files = [path.parent / line["audio"] for line in found]
    for file in files:
        check_sound(file, extractor.sampling_rate, getattr(extractor, "n_samples", 0))
    labels = target_tokens(tokenizer, [line["text"] for line in found], length, start)
    return Spoken(files, labels, cut=length, shift=shift, extractor=extractor)


def target_tokens(tokenizer: Any, texts: list[str], length: int | None, start: int | None) -> list[Tensor]:
    """The tokens of what is to be written, int64 each, without the one that decoders are given first.

    Raises:
        UserError: A text has no token.
    """
    coded = tokenizer(text_target=texts, truncation=length is not None, max_length=length, verbose=False)
    rows = [ids[1:] if ids and ids[0] == start else ids for ids in coded["input_ids"]]
    empty = next((text for text, ids in zip(texts, rows, strict=True) if not ids), None)
    if empty is not None:
        raise UserError(f"what is to be written must have a token, but {empty[:40]!r} has none.")
    return [torch.tensor(ids, dtype=torch.int64) for ids in rows]


def decoder_inputs_of(model: nn.Module) -> Shift:
    """What makes the inputs of a decoder from padded labels: the function that the model's own class, or its file, has.

    Raises:
        UserError: It has none, or that fails.
    """
    own, kind = getattr(model, "prepare_decoder_input_ids_from_labels", None), type(model)
    in_file = getattr(inspect.getmodule(kind), "shift_tokens_right", None)
    if own is None and in_file is None:
        raise UserError(
            f"model must have a function of its own that makes decoder inputs of labels, but {kind.__name__} has none; "
            "train it in Python (docs/how-to/other-models.md)."
        )

    def shift(labels: Tensor) -> Tensor:
        if own is not None:
            return own(labels=labels)
        return in_file(labels, model.config.pad_token_id, model.config.decoder_start_token_id)

    try:
        shift(torch.zeros(1, 2, dtype=torch.int64))
    except Exception as error:
        raise UserError(
            f"model must say what its decoder begins with, but {kind.__name__} does not: {first_line(error)}"
        ) from error
    return shift


def _together(read: list[bytes], written: list[bytes]) -> list[bytes]:
    return [one + other for one, other in zip(read, written, strict=True)]


def _largest(rows: list[Tensor]) -> int:
    return max(int(row.max()) for row in rows)


def _pair_of(value: Any) -> tuple[str, str] | None:
    return next((pair for pair in _PAIRS if _has(value, pair)), None)


def _has(value: Any, keys: tuple[str, str]) -> bool:
    return isinstance(value, dict) and all(isinstance(value.get(key), str) and value[key].strip() for key in keys)
