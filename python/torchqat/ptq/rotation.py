"""Rotation of the residual stream (R1) and of value heads (R2) by Hadamard matrices, folded into the weights (QuaRot).

An orthogonal rotation of what flows between the blocks spreads outliers over all channels, and a model with RMS norms gives
the same results. Nothing is computed at run time for it. numerics.md (22).
"""

from typing import Any

import torch
from torch import Tensor, nn

from torchqat._library import random_rotation
from torchqat.errors import UserError
from torchqat.model.blocks import find_blocks
from torchqat.model.placement import Placed
from torchqat.model.towers import language_model, output_head
from torchqat.ptq.block import Forward, in_floating_point
from torchqat.ptq.calls import alike

# Layers that write to the residual stream; the rest of a block's linear layers read it through a norm, or, as in
# o_proj and down_proj, something of the block's own.
_WRITERS = ("o_proj", "down_proj")
_NORMS = {"input_layernorm": ("q_proj", "k_proj", "v_proj"), "post_attention_layernorm": ("gate_proj", "up_proj")}
_READERS = tuple(name for readers in _NORMS.values() for name in readers)
_SEED = 0


@torch.no_grad()
def rotate(model: nn.Module, batch: Any, forward: Forward, placed: Placed, together: int = 0) -> None:
    """Rotate ``model`` in place. Its float results stay as they were.

    Args:
        model: A causal language model with Llama's names (Llama, Mistral, Qwen2, Qwen3), prepared, its head untied.
        batch: Any batch: the results on it are compared before and after.
        forward: How to run it.
        placed: Where its blocks are rotated.
        together: Neighbouring features that are rotated with each other alone, such as those of a group; 0: all. Of value
            heads, where heads are a multiple of that; else whole heads are.

    Raises:
        UserError: ``together`` does not divide the residual stream, or the model's architecture is not one whose residual
            stream may be rotated; it is left as it was.
    """
    saved = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    head = output_head(model)
    embedding = model.get_input_embeddings() if hasattr(model, "get_input_embeddings") else None
    if head is None or embedding is None:
        raise UserError("hadamard needs a causal language model with an embedding and an output head, but has none.")
    if together and embedding.embedding_dim % together:
        raise UserError(
            f"initialize.rotation_size must divide the model's hidden size, {embedding.embedding_dim}, but is {together}."
        )
    with in_floating_point(model):
        expected = _logits(forward(model, batch))
        # What reads images or sounds writes to the residual stream, too.
        fits = language_model(model) is None and _rotate_parts(model, embedding, head, placed, together)
        tolerance = 1e-3 if expected.dtype == torch.float32 else 0.1
        if fits and alike(_logits(forward(model, batch)), expected, tolerance):
            return
        for name, parameter in model.named_parameters():
            parameter.copy_(saved[name])
    raise UserError(
        "hadamard needs a model whose residual stream may be rotated (Llama, Mistral, Qwen2, Qwen3 and their like), but "
        f"{type(model).__name__} is not one; choose another initialize.method."
    )


def _rotate_parts(model: nn.Module, embedding: nn.Embedding, head: nn.Linear, placed: Placed, together: int) -> bool:
    size = embedding.embedding_dim
    rotation = _rotation(size, together).to(embedding.weight.device)
    blocks = [block for _, block in find_blocks(model)]
    final = next((m for n, m in model.named_modules() if n.rpartition(".")[2] == "norm" and _is_norm(m, size)), None)
    if not blocks or final is None:
        return False
    _right(embedding, rotation)
    for block in blocks:
        parts = {name.rpartition(".")[2]: module for name, module in block.named_modules()}
        if not all(name in parts for name in (*_READERS, *_WRITERS, *_NORMS)):
            return False
        with placed.hold(block):
            _rotate_block(parts, rotation, together)
    _absorb(final, [head])
    _right(head, rotation)
    return True


def _rotation(size: int, together: int) -> Tensor:
    """Of each ``together`` features among themselves, where that divides ``size``."""
    if not together or size % together:
        return random_rotation(size, _SEED)
    return torch.block_diag(*[random_rotation(together, _SEED + block) for block in range(size // together)])


def _rotate_block(parts: dict[str, nn.Module], rotation: Tensor, together: int) -> None:
    for norm, readers in _NORMS.items():
        _absorb(parts[norm], [parts[reader] for reader in readers])
    for name in _READERS:
        _right(parts[name], rotation)
    for name in _WRITERS:
        _left(parts[name], rotation)
    _rotate_heads(parts["v_proj"], parts["o_proj"], getattr(parts.get("self_attn"), "head_dim", 0), together)


def _is_norm(module: nn.Module, size: int) -> bool:
    weight = getattr(module, "weight", None)
    return weight is not None and weight.shape == (size,)


def _absorb(norm: nn.Module, readers: list[nn.Linear]) -> None:
    """The norm's weight into what reads it, so that it commutes with a rotation."""
    for reader in readers:
        reader.weight.copy_(reader.weight.double() * norm.weight.double())
    norm.weight.fill_(1.0)


def _right(module: nn.Module, rotation: Tensor) -> None:
    module.weight.copy_(module.weight.double() @ rotation)


def _left(module: nn.Linear, rotation: Tensor) -> None:
    module.weight.copy_(rotation.T @ module.weight.double())
    if module.bias is not None:
        module.bias.copy_(rotation.T @ module.bias.double())


def _rotate_heads(value: nn.Linear, output: nn.Linear, head_size: int, together: int) -> None:
    if not head_size or value.out_features % head_size or output.in_features % head_size:
        return
    rotation = _rotation(head_size, together).to(value.weight.device)
    heads = value.weight.double().view(-1, head_size, value.in_features)
    value.weight.copy_((rotation.T @ heads).view_as(value.weight))
    if value.bias is not None:
        value.bias.copy_((value.bias.double().view(-1, head_size) @ rotation).flatten())
    columns = output.weight.double().view(output.out_features, -1, head_size)
    output.weight.copy_((columns @ rotation).view_as(output.weight))


def _logits(output: Any) -> Tensor:
    return output.logits if hasattr(output, "logits") else output
