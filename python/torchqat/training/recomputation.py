"""Activations that are computed again in the backward, in place of keeping them (Chen et al. 2016)."""

from functools import cache, wraps

from torch import is_grad_enabled, nn
from torch.utils.checkpoint import checkpoint

from torchqat.errors import UserError
from torchqat.layers.followed_ranges import same_ranges
from torchqat.layers.prepared import quant_layers
from torchqat.layers.quant_layer import QuantLayer
from torchqat.model.blocks import NamedModules, find_blocks

_LAYERS = (QuantLayer, nn.Linear, nn.Conv1d, nn.Conv2d)


def recompute_activations(model: nn.Module) -> None:
    """Keep of each block of ``model`` what it is given alone, in place; dropout draws the same numbers again.

    Models of transformers do it themselves, those that can. Of others, each block's class becomes one that does.

    Raises:
        UserError: The model has no blocks.
    """
    # Only where it is needed: torch.compile takes no contexts.
    options = {"context_fn": same_ranges} if any(_follows(layer) for _, layer in quant_layers(model)) else {}
    if _switched(model, on=True, **options):
        return
    for _, block in _blocks(model):
        block.__class__ = _recomputing(type(block), **options)


def _follows(layer: QuantLayer) -> bool:
    return layer.input_spec is not None and layer.input_spec.follows


def check_recomputes(model: nn.Module) -> None:
    """Whether ``recompute_activations`` can be, which leaves nothing behind.

    Raises:
        UserError: As ``recompute_activations``.
    """
    if _switched(model, on=True):
        _switched(model, on=False)
    else:
        _blocks(model)


def _blocks(model: nn.Module) -> NamedModules:
    found = find_blocks(model, _LAYERS)
    if not found:
        raise UserError(
            f"train.gradient_checkpointing must be false for {type(model).__name__}, which has no list of blocks to "
            "recompute one by one, but is true."
        )
    return found


def _switched(model: nn.Module, on: bool, **options) -> bool:
    """Whether the model has a switch of its own, which transformers 5.24 gave another name, and it could be turned."""
    for name in ("activation_checkpointing", "gradient_checkpointing"):
        switch = getattr(model, f"{name}_{'enable' if on else 'disable'}", None)
        if switch is not None:
            try:
                switch(*[{"use_reentrant": False, **options}] * on)
            except (ValueError, NotImplementedError, AttributeError):  # as architectures say that they cannot
                return False
            return True
    return False


@cache
def _recomputing(kind: type[nn.Module], **options) -> type[nn.Module]:
    @wraps(kind.forward)
    def forward(self, *args, **kwargs):
        if not (self.training and is_grad_enabled()):
            return kind.forward(self, *args, **kwargs)
        return checkpoint(kind.forward, self, *args, use_reentrant=False, **options, **kwargs)

    names = {"forward": forward, "__module__": kind.__module__, "__qualname__": kind.__qualname__}
    return type(kind.__name__, (kind,), names)
