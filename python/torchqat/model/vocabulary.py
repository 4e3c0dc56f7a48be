"""Whether a model has a row for every token of its data: torch stops at one without, on a GPU with no word on why."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from torchqat.errors import UserError
from torchqat.precision import dtype_word


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


def check_positions(model: nn.Module, longest: int, path: str) -> str:
    """Whether ``model`` has a position for each token of ``longest``: one of transformers says how many it has.

    Args:
        model: Any, also without its weights.
        longest: Tokens of the longest sequence that it is given.
        path: Where the model came from.

    Returns:
        What should be known where positions are computed, and go on beyond those that the model was made for; else nothing.

    Raises:
        UserError: It embeds positions, fewer than that.
    """
    config = getattr(model, "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    most = getattr(text, "max_position_embeddings", None)
    if not isinstance(most, int) or longest <= most:
        return ""
    embeddings = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    if any(module.num_embeddings - getattr(module, "offset", 0) == most for module in embeddings):
        raise UserError(
            f"sequence_length must be at most {most}, since {path} has an embedding for so many positions, but is {longest}."
        )
    return f"Sequences are of up to {longest} tokens, but {path} is made for {most} (its max_position_embeddings)."


def check_ids(model: nn.Module, batch: Any, by_itself: bool = False) -> None:
    """Whether what ``model`` embeds of ``batch`` are rows of tokens that it has; a batch of no tokens is not looked at.

    Args:
        model: Any; one of transformers says what it embeds.
        batch: A tensor, or several by place or by name.
        by_itself: It must be ids alone, or have them by name.

    Raises:
        UserError: They are not.
    """
    ids = _ids_of(model, batch)
    if by_itself and not (isinstance(batch, Tensor) or (isinstance(batch, Mapping) and ids is not None)):
        raise UserError(
            f"A batch of a {type(model).__name__} must be int64 [rows, tokens], or a dict with input_ids, but is a "
            f"{type(batch).__name__} without."
        )
    rows = None if ids is None else embedded_tokens(model)
    if rows is None or ids.is_meta:
        return
    kind = type(model).__name__
    if ids.is_floating_point() or ids.is_complex() or ids.dim() != 2:
        found = f"{dtype_word(ids.dtype)} {list(ids.shape)}"
        raise UserError(f"A batch of a {kind} must be int64 [rows, tokens], but is {found}.")
    least, most = int(ids.min()), int(ids.max())
    if least < 0 or most >= rows:
        raise UserError(
            f"A batch of a {kind} must have tokens from 0 to {rows - 1}, which are those that it embeds, but has "
            f"{least if least < 0 else most}."
        )


def _ids_of(model: nn.Module, batch: Any) -> Tensor | None:
    if isinstance(batch, Mapping):
        found = batch.get("input_ids")
    elif getattr(model, "main_input_name", "") == "input_ids":
        found = batch[0] if isinstance(batch, tuple | list) and batch else batch
    else:
        return None
    return found if isinstance(found, Tensor) and found.numel() else None


def embedded_tokens(model: nn.Module) -> int | None:
    """How many tokens ``model`` has an embedding of; ``None`` where it does not say."""
    for module in model.modules():
        if not hasattr(module, "get_input_embeddings"):
            continue
        try:
            found = module.get_input_embeddings()
        except NotImplementedError:  # as transformers has it of models without tokens
            return None
        # Outside of a forward, FSDP1 and DeepSpeed ZeRO-3 have another shape in its place.
        is_there = isinstance(found, nn.Embedding) and found.weight.dim() == 2
        return found.weight.shape[0] if is_there else None
    return None
