"""Whether a checkpoint's folder has the tokenizer of the training: with another one its weights are given other text."""

import tempfile
from pathlib import Path
from typing import Any

from torchqat.checkpoints.formats.tokenizer_files import save_tokenizer
from torchqat.errors import UserError
from torchqat.model.loading import load_tokenizer

_SPECIAL = ("bos_token_id", "eos_token_id", "unk_token_id", "pad_token_id", "sep_token_id", "cls_token_id")


def differing_tokenizer(folder: Path, tokenizer: Any, texts: list[str]) -> list[str]:
    """What the tokenizer in ``folder`` has otherwise than ``tokenizer`` has it, written and read as that was.

    ``tokenizer`` where there is none, or none that loads; else ``tokenizer.`` and a word for what differs.
    """
    with tempfile.TemporaryDirectory() as scratch:
        save_tokenizer(tokenizer, Path(scratch))
        wanted = load_tokenizer(scratch)
    try:
        found = load_tokenizer(str(folder))
    except UserError:
        return ["tokenizer"]
    ours, theirs = _said(wanted, texts), _said(found, texts)
    return [f"tokenizer.{key}" for key in ours if ours[key] != theirs[key]]


def _said(tokenizer: Any, texts: list[str]) -> dict[str, Any]:
    return {
        "vocabulary": tokenizer.get_vocab(),
        "special_tokens": [getattr(tokenizer, name, None) for name in _SPECIAL],
        "texts": [tokenizer(text)["input_ids"] for text in texts],
        "chat_template": tokenizer.chat_template,
    }
