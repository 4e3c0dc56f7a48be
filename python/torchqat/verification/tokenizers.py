"""Whether a checkpoint has the tokenizer of the training: with another one its weights are given other text."""

import json
import tempfile
from pathlib import Path
from typing import Any

from torchqat.checkpoints.formats.tokenizer_files import save_tokenizer
from torchqat.errors import UserError
from torchqat.extras import needs
from torchqat.model.loading import load_tokenizer

_SPECIAL = ("bos_token_id", "eos_token_id", "unk_token_id", "pad_token_id", "sep_token_id", "cls_token_id")

# Of a GGUF file, by its key.
_SPECIAL_OF_GGUF = {
    "bos_token_id": "bos_token_id",
    "eos_token_id": "eos_token_id",
    "unknown_token_id": "unk_token_id",
    "padding_token_id": "pad_token_id",
}
_OF_PAIRS = ("gpt2", "llama")  # tokenizers of GGUF files that have the tokens as transformers spells them


def differing_tokenizer(folder: Path, tokenizer: Any, texts: list[str]) -> list[str]:
    """What the tokenizer in ``folder`` has otherwise than ``tokenizer`` has it, written and read as that was.

    ``tokenizer`` where there is none, or none that loads; else ``tokenizer.`` and a word for what differs. Of one of a
    class that transformers does not know, the files are compared.
    """
    with tempfile.TemporaryDirectory() as scratch:
        save_tokenizer(tokenizer, Path(scratch))
        try:
            wanted = load_tokenizer(scratch)
        except UserError:
            return [] if _has_files_of(folder, Path(scratch)) else ["tokenizer"]
    try:
        found = load_tokenizer(str(folder))
    except UserError:
        return ["tokenizer"]
    ours, theirs = _said(wanted, texts), _said(found, texts)
    return [f"tokenizer.{key}" for key in ours if ours[key] != theirs[key]]


def _has_files_of(folder: Path, written: Path) -> bool:
    files = (file.relative_to(written) for file in written.rglob("*") if file.is_file())
    return all((folder / f).is_file() and (folder / f).read_bytes() == (written / f).read_bytes() for f in files)


def _said(tokenizer: Any, texts: list[str]) -> dict[str, Any]:
    return {
        "vocabulary": tokenizer.get_vocab(),
        "special_tokens": [getattr(tokenizer, name, None) for name in _SPECIAL],
        "texts": [tokenizer(text)["input_ids"] for text in texts],
        "chat_template": tokenizer.chat_template,
    }


def differing_in_gguf(folder: Path, tokenizer: Any) -> list[str]:
    """The same of a GGUF file. What only llama.cpp knows, such as where words begin, its engine is asked."""
    with needs("hf", "A GGUF file"):
        from torchqat.checkpoints.readers.gguf import GgufFile, gguf_files

    file = GgufFile(gguf_files(folder))
    kind = file.of_tokenizer("ggml.model")
    if kind in (None, "no_vocab"):
        return ["tokenizer"]
    if kind not in _OF_PAIRS:
        return []
    backend = getattr(tokenizer, "backend_tokenizer", None)
    model = json.loads(backend.to_str())["model"] if backend is not None else {}
    if model.get("type") != "BPE":  # of which alone such files are written
        return ["tokenizer"]
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in model["merges"]]
    tokens, template = dict(enumerate(file.of_tokenizer("ggml.tokens"))), tokenizer.chat_template
    ids = sorted(set(tokenizer.get_vocab().values()))
    same = {
        "vocabulary": [tokens.get(index) for index in ids] == tokenizer.convert_ids_to_tokens(ids),
        "merges": kind == "llama" or file.of_tokenizer("ggml.merges") == merges,
        "special_tokens": all(
            file.of_tokenizer(f"ggml.{key}") == getattr(tokenizer, ours) for key, ours in _SPECIAL_OF_GGUF.items()
        ),
        "chat_template": isinstance(template, dict) or file.of_tokenizer("chat_template") == (template or None),
    }
    return [f"tokenizer.{key}" for key, equal in same.items() if not equal]
