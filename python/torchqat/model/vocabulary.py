"""Whether a model has a row for every token of its data: torch stops at one without, on a GPU with no word on why."""

from typing import Any

from torch import nn

from torchqat.errors import UserError


def check_tokens(model: nn.Module, tokenizer: Any, largest: int | None, path: str) -> None:
    """Whether the embedding of ``model`` has a row for token ``largest``.

    Args:
        model: Any, also without its weights.
        tokenizer: What made the tokens.
        largest: The largest of the data; ``None`` of data that are no tokens.
        path: Where the model came from.

    Raises:
        UserError: It has none.
    """
    rows = None if largest is None else embedded_tokens(model)
    if rows is None or largest < rows:
        return
    token = tokenizer.convert_ids_to_tokens(largest)
    raise UserError(
        f"The data have token {largest} ({token}) of the tokenizer of {path}, but its model embeds tokens 0 to "
        f"{rows - 1}: give it the tokenizer that it was trained with, or enlarge the model by resize_token_embeddings."
    )


def embedded_tokens(model: nn.Module) -> int | None:
    """How many tokens ``model`` has an embedding of; ``None`` where it does not say."""
    for module in model.modules():
        if not hasattr(module, "get_input_embeddings"):
            continue
        try:
            found = module.get_input_embeddings()
        except NotImplementedError:  # as transformers has it of models without tokens
            return None
        return found.weight.shape[0] if isinstance(found, nn.Embedding) else None
    return None
