"""WordPiece tokenizers, BERT's, as llama.cpp knows them: pieces that begin a word have a mark, others none."""

from typing import Any

import gguf

from torchqat.checkpoints.formats.llama_cpp.special_tokens import add_special_tokens
from torchqat.errors import UserError

_BEGINS_WORD, _GOES_ON = "\u2581", "##"


def add_word_pieces(
    writer: gguf.GGUFWriter, tokenizer: Any, description: dict[str, Any], tokens: list[str], types: list[int]
) -> None:
    """The keys of a WordPiece vocabulary.

    Args:
        writer: Of a file whose header is not written yet.
        tokenizer: A fast tokenizer of transformers.
        description: What ``tokenizer.json`` holds of it.
        tokens: By their ids, as it has them.
        types: Of each, a ``gguf.TokenType``.

    Raises:
        UserError: llama.cpp splits text otherwise.
    """
    normalizer = description.get("normalizer") or {}
    _check(description, normalizer)
    _check_ends(tokenizer)
    added = {entry["id"] for entry in description["added_tokens"]}
    writer.add_tokenizer_model("bert")
    writer.add_token_list([text if i in added else _marked(text) for i, text in enumerate(tokens)])
    writer.add_token_types(types)
    lowercase, strips = normalizer["lowercase"], normalizer.get("strip_accents")
    writer.add_bool("tokenizer.ggml.normalizer.lowercase", lowercase)
    writer.add_bool("tokenizer.ggml.normalizer.strip_accents", lowercase if strips is None else strips)
    add_special_tokens(
        writer,
        bos=tokenizer.cls_token_id,  # llama.cpp begins with it
        sep=tokenizer.sep_token_id,
        unk=tokenizer.unk_token_id,
        pad=tokenizer.pad_token_id,
        mask=tokenizer.mask_token_id,
    )
    writer.add_add_bos_token(True)
    writer.add_add_sep_token(True)


def _marked(text: str) -> str:
    return text.removeprefix(_GOES_ON) if text.startswith(_GOES_ON) else _BEGINS_WORD + text


def _check(description: dict[str, Any], normalizer: dict[str, Any]) -> None:
    pre = (description.get("pre_tokenizer") or {}).get("type")
    is_of_bert = normalizer.get("type") == "BertNormalizer" and pre == "BertPreTokenizer"
    cleans = normalizer.get("clean_text", True) and normalizer.get("handle_chinese_chars", True)
    if not is_of_bert or not cleans or description["model"].get("continuing_subword_prefix", _GOES_ON) != _GOES_ON:
        raise UserError(
            "gguf takes WordPiece tokenizers that clean and split text as BERT's do, by BertNormalizer (clean_text and "
            f"handle_chinese_chars true), BertPreTokenizer and {_GOES_ON}, but this one has {normalizer.get('type')} and "
            f"{pre}, or other settings of them."
        )


def _check_ends(tokenizer: Any) -> None:
    sample = tokenizer("a").input_ids
    if not sample or sample[0] != tokenizer.cls_token_id or sample[-1] != tokenizer.sep_token_id:
        raise UserError(
            "gguf takes WordPiece tokenizers that begin a text with their cls token and end it with their sep token, as "
            f"llama.cpp does, but this one makes {sample} of one letter."
        )
