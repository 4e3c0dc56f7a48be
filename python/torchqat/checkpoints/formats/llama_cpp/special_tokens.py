"""Special tokens of a vocabulary, by what llama.cpp calls them."""

import gguf


def add_special_tokens(writer: gguf.GGUFWriter, **ids: int | None) -> None:
    """Write the id of each, named as in ``tokenizer.ggml.<name>_token_id``; of those that a tokenizer lacks, none."""
    for name, index in ids.items():
        if index is not None:
            getattr(writer, f"add_{name}_token_id")(index)
