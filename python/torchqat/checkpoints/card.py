"""The model card of a checkpoint, ``README.md``, as a file: written anew while it is ours, left alone once it is the user's.

What stands in it is of reports/card.py.
"""

import re
import shutil
from hashlib import sha256
from pathlib import Path

from torchqat.files import CARD, write_text

_SEAL = "<!-- torchqat wrote this card, and writes it anew until it is changed: {} -->\n"


def sealed(text: str) -> str:
    """``text`` with a last line that says what it was, by which a card that was changed since is known."""
    return text + _SEAL.format(_sum(text))


def is_ours(path: Path) -> bool:
    """Whether there is no card at ``path``, or one that ``write_card`` wrote and nobody changed."""
    if not path.exists():
        return True
    body, _, last = path.read_text(encoding="utf-8", errors="replace").rstrip("\n").rpartition("\n")
    found = re.fullmatch(re.escape(_SEAL.strip()).replace(r"\{\}", "([0-9a-f]{64})"), last)
    return found is not None and found[1] == _sum(body + "\n")


def write_card(folder: Path, text: str) -> bool:
    """The card ``text`` into ``folder``, unless the user has written one there; returns whether it was written."""
    ours = is_ours(folder / CARD)
    if ours:
        write_text(folder / CARD, sealed(text))
    return ours


def keep_card(old: Path, new: Path) -> None:
    """The card of the user's in ``old``, if one is there, also in ``new``, which is about to take its place."""
    if not is_ours(old / CARD):
        shutil.copyfile(old / CARD, new / CARD)


def _sum(text: str) -> str:
    return sha256(text.encode()).hexdigest()
