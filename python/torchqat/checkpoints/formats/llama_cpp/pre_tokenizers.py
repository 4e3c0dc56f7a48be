"""The names by which llama.cpp knows the ways that text is split before pairs are merged.

``convert_hf_to_gguf`` knows a tokenizer by a hash of what it makes of one text, which changes with the vocabulary. What
llama.cpp does is decided by the pattern alone, so that is what is looked at: tokenizers of one's own are known as well.
"""

from typing import Any

from torchqat.errors import UserError

_ENDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_CL100K = rf"{_ENDS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_REST}"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_BEFORE = r"[^\r\n\p{L}\p{N}]?"
_AFTER = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_O200K = rf"{_BEFORE}{_UPPER}*{_LOWER}+{_ENDS}?|{_BEFORE}{_UPPER}+{_LOWER}*{_ENDS}?|\p{{N}}{{1,3}}|{_AFTER}"
_TEKKEN = rf"{_BEFORE}{_UPPER}*{_LOWER}+|{_BEFORE}{_UPPER}+{_LOWER}*|\p{{N}}|{_AFTER}"

# By the pattern, and whether a stretch that is a token as it stands is taken whole, whatever the merges.
PATTERNS = {
    (_CL100K, True): "llama-bpe",
    (_CL100K, False): "dbrx",
    (_CL100K.replace("{1,3}", ""), True): "qwen2",
    (_CL100K.replace("{1,3}", ""), False): "qwen2",
    (_O200K, True): "gpt-4o",
    (_O200K, False): "gpt-4o",
    (_TEKKEN, True): "tekken",
}


def pre_tokenizer(description: dict[str, Any]) -> str:
    """llama.cpp's name for the pre-tokenizer in ``description``, which is what ``tokenizer.json`` holds.

    Raises:
        UserError: It has none like it.
    """
    top = description.get("pre_tokenizer") or {}
    parts = top.get("pretokenizers", [top])
    kinds = [part.get("type") for part in parts]
    if kinds == ["ByteLevel"] and parts[0].get("use_regex", True):
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and parts[0].get("individual_digits"):
        return "smollm"
    if kinds == ["Punctuation", "ByteLevel", "Digits", "Split"] and _is_falcon(parts):
        return "falcon"
    if kinds == ["Split", "ByteLevel"]:
        pattern = parts[0]["pattern"].get("Regex", "")
        whole = bool(description.get("model", {}).get("ignore_merges"))
        if (pattern, whole) in PATTERNS:
            return PATTERNS[pattern, whole]
    raise UserError(
        "gguf takes tokenizers that split text as GPT-2, Llama 3, GPT-4, GPT-4o, Qwen2, Mistral's Tekken, Falcon or SmolLM "
        f"do, or of SentencePiece, but this one has {' and '.join(str(kind) for kind in kinds)}."
    )


def _is_falcon(parts: list[dict[str, Any]]) -> bool:
    pattern = parts[3]["pattern"].get("Regex", "")
    return parts[0].get("behavior") == "Contiguous" and pattern == "[0-9][0-9][0-9]"
