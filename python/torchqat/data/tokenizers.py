"""What is asked of a tokenizer beside its tokens: what it begins with, and what it is."""

import json
from hashlib import sha256
from typing import Any

from torchqat.extras import version_of


def beginning(tokenizer: Any) -> int | None:
    """The token that it puts before every text; ``None`` of one that puts none."""
    first = tokenizer.bos_token_id
    if first is None:
        return None
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    found = tokenizer("a")["input_ids"]
    return first if found[:1] == [first] and plain[:1] != [first] else None


def vocabulary(tokenizer: Any) -> int:
    """Above every token; those that were added may leave gaps."""
    return 1 + max(tokenizer.get_vocab().values(), default=0)


def content_of_tokenizer(tokenizer: Any) -> str:
    """Changes with the tokens that it makes of a text or of a conversation."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        found = json.loads(backend.to_str())
        found.pop("truncation", None), found.pop("padding", None)  # of the call that came last
    else:
        found = [type(tokenizer).__name__, sorted(tokenizer.get_vocab().items())]
    special = [tokenizer.bos_token_id, tokenizer.eos_token_id, getattr(tokenizer, "chat_template", None)]
    versions = [version_of("transformers"), version_of("tokenizers")]
    return sha256(json.dumps([found, special, beginning(tokenizer), versions], default=str).encode()).hexdigest()
