"""What torchqat says, by key: ``sentences.txt`` alone has the words, so that other words are a change of one line."""

import re
from pathlib import Path
from string import Formatter

FILE = Path(__file__).with_name("sentences.txt")


def entries(text: str) -> list[tuple[str, str]]:
    """The keys of a golden file and their sentences, in its order."""
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [tuple(line.split(": ", 1)) for line in lines]


SENTENCES = dict(entries(FILE.read_text(encoding="utf-8")))


def matches(key: str, /, **values: object) -> str:
    """A regular expression for the sentence of ``key``, in which a placeholder that has no value is any text."""
    found = ""
    for words, name in _parts(key, values):
        found += re.escape(words)
        if name is not None:
            found += re.escape(str(values[name])) if name in values else ".*?"
    return f"(?s){found}"


def said(text: str, key: str, /, **values: object) -> bool:
    """Whether ``text`` has the sentence of ``key`` with these values."""
    return re.search(matches(key, **values), text) is not None


def sentence(key: str, /, **values: object) -> str:
    """The whole sentence of ``key``, each of whose placeholders has a value."""
    return "".join(words + ("" if name is None else str(values[name])) for words, name in _parts(key, values))


def _parts(key: str, values: dict[str, object]) -> list[tuple[str, str | None]]:
    """The words of a sentence, each with the placeholder that follows them."""
    if key not in SENTENCES:
        raise KeyError(f"key must be one of {FILE.name}, but is {key}.")
    parts = [(words, name) for words, name, _, _ in Formatter().parse(SENTENCES[key])]
    unknown = values.keys() - {name for _, name in parts}
    if unknown:
        raise KeyError(f"{key} has no placeholder {' and '.join(sorted(unknown))}: {SENTENCES[key]}")
    return parts
