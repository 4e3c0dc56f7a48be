"""What classifiers learn from: lines of jsonl with texts, pairs of texts or words, and their labels."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from torchqat.data.examples import NO_LABEL, Examples, tokenized
from torchqat.data.jsonl import read_objects
from torchqat.errors import UserError

_TEXTS = 'a line must be {"text": ..., "label": index}'
_NUMBERS = 'a line must be {"text": ..., "label": number}, or have a "text_pair", too'
_SEVERAL = 'a line must be {"text": ..., "labels": [...]}, the indices of all that apply'
_WORDS = 'a line must be {"tokens": [...], "labels": [...]}, with an index for each token'


def labelled_texts(path: Path, tokenizer: Any, length: int, classes: int = 0) -> Examples:
    """Lines with a ``text`` and a ``label``, and a ``text_pair`` where a model reads two.

    Args:
        path: Of the file.
        tokenizer: The model's.
        length: Tokens after which texts are cut off.
        classes: Labels are indices of so many; 0 where that is not known, 1 where they are any numbers.

    Raises:
        UserError: The file is missing, or a line is of another form (it is named), or a label is not among the classes.
    """
    found = _objects(path, _is_number if classes == 1 else _is_labelled, _NUMBERS if classes == 1 else _TEXTS)
    labels = torch.tensor([example["label"] for example in found])
    if classes > 1:
        _check_below(path, int(labels.max()), classes)
    return _of_texts(path, found, tokenizer, length, labels)


def texts_of_several_labels(path: Path, tokenizer: Any, length: int, classes: int) -> Examples:
    """Lines with a ``text`` and ``labels``, the indices of all classes that apply; labels become 0 and 1, ``[n, classes]``.

    Raises:
        UserError: As ``labelled_texts``.
    """
    found = _objects(path, _has_several, _SEVERAL)
    _check_below(path, max((label for example in found for label in example["labels"]), default=0), classes)
    labels = torch.zeros(len(found), classes)
    for row, example in enumerate(found):
        labels[row, example["labels"]] = 1.0
    return _of_texts(path, found, tokenizer, length, labels)


def _of_texts(path: Path, found: list[dict[str, Any]], tokenizer: Any, length: int, labels: Tensor) -> Examples:
    pairs = [example.get("text_pair") for example in found]
    if any(pair is None for pair in pairs) and any(pair is not None for pair in pairs):
        raise UserError(f'{path} must have a "text_pair" in every line or in none, but has it in some.')
    texts = [example["text"] for example in found]
    return tokenized(tokenizer, texts, length, labels, None if pairs[0] is None else pairs)


def labelled_words(path: Path, tokenizer: Any, length: int, classes: int) -> Examples:
    """Lines with ``tokens``, the words of a text, and the ``labels`` of each.

    The first token that a word becomes has its label; the others, and those that the tokenizer adds, have none.

    Raises:
        UserError: As ``labelled_texts``, or the tokenizer does not say which words tokens are of.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise UserError(
            f"{type(tokenizer).__name__} does not say which words tokens are of, which labels of words need: give the "
            "model a tokenizer.json."
        )
    found = _objects(path, _has_words, _WORDS)
    _check_below(path, max(label for example in found for label in example["labels"]), classes)
    words = [example["tokens"] for example in found]
    coded = tokenizer(words, is_split_into_words=True, truncation=True, max_length=length, verbose=False)
    labels = [_of_first_tokens(coded.word_ids(row), example["labels"]) for row, example in enumerate(found)]
    rows = [torch.tensor(row) for row in coded["input_ids"]]
    return Examples(rows, labels, tokenizer.pad_token_id or 0, cut=length)


def _of_first_tokens(words: list[int | None], labels: list[int]) -> Tensor:
    before = [None, *words[:-1]]
    pairs = zip(words, before, strict=True)
    return torch.tensor([NO_LABEL if word is None or word == last else labels[word] for word, last in pairs])


def _objects(path: Path, is_good: Callable[[Any], bool], rule: str) -> list[dict[str, Any]]:
    return read_objects(path, is_good, rule, form="a readable jsonl file or module:function")


def _check_below(path: Path, label: int, classes: int) -> None:
    if label >= classes:
        raise UserError(f"labels must be below {classes}, the number of the model's classes, but {path} has {label}.")


def _has_text(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("text"), str)
        and isinstance(value.get("text_pair"), str | None)
    )


def _is_labelled(value: Any) -> bool:
    return _has_text(value) and type(value.get("label")) is int and value["label"] >= 0


def _is_number(value: Any) -> bool:
    return _has_text(value) and type(value.get("label")) in (int, float)


def _has_several(value: Any) -> bool:
    labels = value.get("labels") if _has_text(value) else None
    return isinstance(labels, list) and all(type(label) is int and label >= 0 for label in labels)


def _has_words(value: Any) -> bool:
    if not isinstance(value, dict) or not all(isinstance(value.get(key), list) for key in ("tokens", "labels")):
        return False
    words, labels = value["tokens"], value["labels"]
    good = all(isinstance(word, str) for word in words) and all(type(label) is int and label >= 0 for label in labels)
    return good and len(words) == len(labels) > 0
