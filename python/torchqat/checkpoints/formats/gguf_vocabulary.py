"""A tokenizer of transformers as the keys that llama.cpp tokenizes by."""

import json
import re

import gguf

from torchqat.checkpoints.formats.llama_cpp.pre_tokenizers import pre_tokenizer
from torchqat.checkpoints.formats.llama_cpp.special_tokens import add_special_tokens
from torchqat.checkpoints.formats.llama_cpp.word_pieces import add_word_pieces
from torchqat.errors import UserError


def add_vocabulary(writer: gguf.GGUFWriter, tokenizer, rows: int) -> None:
    """Tokens, merges or scores, special tokens and the chat template; without a tokenizer, none.

    Args:
        writer: Of a file whose header is not written yet.
        tokenizer: A fast tokenizer of transformers, or ``None``.
        rows: Rows of the token embedding; tokens up to there are filled up with unused ones.

    Raises:
        UserError: llama.cpp has no tokenizer like it, or it has more tokens than the model.
    """
    if tokenizer is None:
        writer.add_tokenizer_model("no_vocab")
        return
    backend = getattr(tokenizer, "backend_tokenizer", None)
    description = json.loads(backend.to_str()) if backend is not None else {"model": {"type": "slow"}}
    model = description["model"]
    if model["type"] == "WordPiece":
        add_word_pieces(writer, tokenizer, description, *_tokens(description, rows))
        return
    if model["type"] != "BPE":
        raise UserError(f"gguf takes BPE and WordPiece tokenizers, but this one is {model['type']}.")
    tokens, types = _tokens(description, rows)
    if model.get("byte_fallback"):
        writer.add_tokenizer_model("llama")
        writer.add_token_scores(_scores(model, tokens))
        writer.add_add_space_prefix(_adds_space(description))
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(pre_tokenizer(description))
        writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in model["merges"]])
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    add_special_tokens(
        writer,
        bos=tokenizer.bos_token_id,
        eos=tokenizer.eos_token_id,
        unk=tokenizer.unk_token_id,
        pad=tokenizer.pad_token_id,
    )
    _add_ends(writer, tokenizer)
    _add_chat_template(writer, tokenizer)


def _tokens(description: dict, rows: int) -> tuple[list[str], list[int]]:
    model = description["model"]
    tokens: list[str | None] = [None] * rows
    kind = gguf.TokenType
    types = [kind.UNUSED] * rows
    added = {entry["id"]: entry for entry in description["added_tokens"]}
    known = {index: text for text, index in model["vocab"].items()}
    known.update({index: entry["content"] for index, entry in added.items()})
    if known and max(known) >= rows:
        raise UserError(
            f"The tokenizer must have at most the model's {rows} tokens, but has one with the id {max(known)}."
        )
    for index, text in known.items():
        tokens[index], types[index] = text, kind.NORMAL
        if index in added:
            types[index] = kind.CONTROL if added[index]["special"] else kind.USER_DEFINED
        elif model.get("byte_fallback") and re.fullmatch(r"<0x[0-9A-F]{2}>", text):
            types[index] = kind.BYTE
        if text == model.get("unk_token"):
            types[index] = kind.UNKNOWN
    return [text if text is not None else f"[PAD{index}]" for index, text in enumerate(tokens)], types


def _scores(model: dict, tokens: list[str]) -> list[float]:
    """SentencePiece merges the pair of the highest score first, which here is the earliest merge."""
    rank: dict[str, int] = {}
    for order, merge in enumerate(model["merges"]):
        left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
        rank.setdefault(left + right, order)
    return [-float(rank[token]) if token in rank else -1e6 for token in tokens]


def _adds_space(description: dict) -> bool:
    """Whether text is read as if a space stood before it."""
    text = json.dumps([description.get("normalizer"), description.get("pre_tokenizer")])
    return '"Prepend"' in text or '"prepend_scheme": "always"' in text or '"prepend_scheme": "first"' in text


def _add_ends(writer: gguf.GGUFWriter, tokenizer) -> None:
    """Whether a text begins and ends with a special token."""
    sample = tokenizer("a").input_ids
    begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    writer.add_add_bos_token(bool(sample) and begin is not None and sample[0] == begin)
    writer.add_add_eos_token(bool(sample) and end is not None and sample[-1] == end)


def _add_chat_template(writer: gguf.GGUFWriter, tokenizer) -> None:
    if template := getattr(tokenizer, "chat_template", None):
        named = isinstance(template, dict)  # several, of which llama.cpp takes one by its name
        writer.add_chat_template([{"name": n, "template": t} for n, t in template.items()] if named else template)
