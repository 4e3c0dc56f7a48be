"""What an error of a layer's output does to the model's: second moments of gradients, by which GPTQ weighs its rows."""

from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from torchqat._library import FLOAT, InputStatistics
from torchqat.layers.linear import QuantLinear
from torchqat.layers.prepared import quant_layers
from torchqat.model.blocks import hooks
from torchqat.model.placement import Placed
from torchqat.precision import products
from torchqat.progress import counted
from torchqat.ptq.block import Forward, forwards_of, in_floating_point
from torchqat.ptq.calls import main_tensor
from torchqat.ptq.rerun import blocks_of, rerun

# More tell little else: a layer has hundreds to thousands of outputs.
TOKENS = 16_384
# Outputs of a layer, such as a head's, beyond which their second moments would take more memory than they are worth.
WIDEST = 8192
# Bits below which an error is too large for second moments at the float weights to tell what it does to a model that is not
# small: SmolLM2-135M at INT2 ends further from its float model than by the error of each layer's output.
NARROWEST = 3


def output_hessians(
    model: nn.Module, batches: list[Any], forward: Forward, placed: Placed, narrowest: int = 0
) -> dict[str, Tensor]:
    """Of each quantized linear layer, by name: the mean of ``g gᵀ`` over tokens, float32 ``[out, out]`` on the host.

    ``g`` is the gradient, at that layer's output, of the negative log-likelihood of choices drawn from the model's own
    distribution, so that errors ``e`` raise the model's KL divergence by about ``eᵀ g gᵀ e / 2`` (numerics.md 39). What is
    no distribution over choices counts by its squared error. The model is at work in floating point, in evaluation mode,
    and no parameter gets a gradient; a block is run once more in the backward pass, so that what one block saves is held.

    Args:
        model: Prepared.
        batches: Calibration batches, of which as many are read as give 16,384 tokens.
        forward: How to run one.
        placed: Where.
        narrowest: Weights of fewer bits have none.

    Raises:
        RuntimeError: No gradient goes back.
    """
    gathered: dict[str, _Moments] = {}
    weighed = [(name, layer) for name, layer in quant_layers(model) if _is_weighed(layer, narrowest)]
    if not weighed:
        return {}
    named = {id(layer): name for name, layer in weighed}

    def watch(layer: nn.Module, _inputs: tuple, output: Tensor) -> None:
        if not torch.is_grad_enabled():
            return  # a block that will be run once more
        if not output.requires_grad:
            output.requires_grad_()
        moments = gathered.setdefault(named[id(layer)], _Moments(output.shape[-1]))
        output.register_hook(lambda gradient: moments.add(gradient.detach()))

    asked = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    blocks = blocks_of(model)
    generator = torch.Generator().manual_seed(0)  # of the host, so that every device draws alike
    try:
        model.requires_grad_(False)
        with (
            in_floating_point(model),
            hooks([layer.register_forward_hook(watch) for _, layer in weighed]),
            forwards_of(blocks, [rerun(block, placed, _fast(placed)) for block in blocks]),
        ):
            for batch in counted(_first(batches, gathered), "Gradients of the output"):
                with torch.enable_grad(), _fast(placed):
                    given = forward(model, batch)
                    output, gradient = _drawn(given, generator)
                if not output.requires_grad:
                    raise RuntimeError("what it gave has no gradient")
                output.backward(gradient)
    finally:
        for parameter, wanted in asked:
            parameter.requires_grad_(wanted)
    return {name: moments.products.div_(moments.tokens) for name, moments in gathered.items() if moments.tokens}


class _Moments:
    """Second moments of one layer, on the host: on a device, those of all layers would take the room of many blocks.

    Attributes:
        products: Sum over tokens, float32 ``[out, out]``.
        tokens: How many.
    """

    def __init__(self, width: int):
        self.products, self.tokens = torch.zeros(width, width), 0

    def add(self, gradient: Tensor) -> None:
        some = InputStatistics(len(self.products))
        some.add(gradient)
        self.products.add_(some.hessian.cpu(), alpha=some.tokens)
        self.tokens += some.tokens


def _is_weighed(layer: nn.Module, narrowest: int) -> bool:
    if not isinstance(layer, QuantLinear) or layer.weight_spec is None or layer.weight_bits == FLOAT:
        return False
    if layer.weight_bits < narrowest:
        return False
    return not layer.weight_spec.finds_scale and layer.matrix_shape[0] <= WIDEST


def _first(batches: list[Any], gathered: dict[str, _Moments]) -> Iterable[Any]:
    for batch in batches:
        if max((moments.tokens for moments in gathered.values()), default=0) >= TOKENS:
            return
        yield batch


def _fast(placed: Placed) -> AbstractContextManager:
    """On a processor that multiplies bfloat16, products in it: what comes out is a mean of noise in any case."""
    is_faster = placed.device.type == "cpu" and products(placed.device, torch.bfloat16).multiplied
    return torch.autocast("cpu", torch.bfloat16, enabled=is_faster)


def _drawn(given: Any, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """What a model gave, and the gradient there: its logits where it says which they are, or a tensor is all it gives."""
    logits = getattr(given, "logits", given if isinstance(given, Tensor) else None)
    if isinstance(logits, Tensor) and logits.shape[-1] > 1:
        return logits, _of_choices(logits.detach(), generator)
    output = logits if isinstance(logits, Tensor) else main_tensor(_in_dict(given))
    if output is None:
        raise RuntimeError("what it gave has no tensor of floating point")
    return output, torch.randn(output.shape, generator=generator).to(output.device, output.dtype)


def _of_choices(logits: Tensor, generator: torch.Generator) -> Tensor:
    """Of ``-log p(choice)`` with respect to ``logits``, a choice being drawn from each position's own distribution."""
    gradient = torch.empty_like(logits)
    pairs = zip(logits.flatten(0, -2).split(256), gradient.view(-1, logits.shape[-1]).split(256), strict=True)
    for some, into in pairs:
        p = some.float().softmax(-1)
        up_to = p.cumsum(-1)
        share = torch.rand(len(p), 1, generator=generator).to(p.device) * up_to[:, -1:]
        chosen = torch.searchsorted(up_to, share).clamp_(max=p.shape[-1] - 1)
        into.copy_(p.scatter_add_(-1, chosen, torch.full_like(share, -1.0)))
    return gradient


def _in_dict(given: Any) -> Any:
    """Outputs of transformers are mappings that ``main_tensor`` does not enter."""
    return dict(given) if hasattr(given, "items") else given
