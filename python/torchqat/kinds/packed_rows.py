"""Whether a model keeps the sequences of a packed row apart: tried, not looked up."""

import torch
from torch import nn

from torchqat.data.conversations import Row, collated
from torchqat.device import device_of
from torchqat.errors import UserError, first_line
from torchqat.kinds.kind import Kind

_LENGTHS = (7, 5)
# Of the largest logit: other sums round otherwise, a sequence that sees another is far off.
_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}
_HALF_TOLERANCE = 5e-2


@torch.no_grad()
def check_packs(model: nn.Module, kind: Kind) -> None:
    """Run two short sequences in one row, with padding after them, and alone.

    Raises:
        UserError: The model does not give the same.
    """
    generator, most = torch.Generator().manual_seed(0), min(100, model.get_input_embeddings().num_embeddings)
    rows = [Row.of(torch.randint(0, most, (length,), generator=generator)) for length in _LENGTHS]
    device, training = device_of(model), model.training
    model.eval()
    try:
        alone = [kind.outputs(model, row.ids[None].to(device))[0] for row in rows]
        batch = collated([Row.joined(rows)], packed_to=sum(_LENGTHS) + 4)
        together = kind.outputs(model, {name: tensor.to(device) for name, tensor in batch.items()})[0]
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{_cannot(model)}: {first_line(error)}") from error
    finally:
        model.train(training)
    wanted = torch.cat(alone)
    error = (together[: len(wanted)].float() - wanted.float()).abs().max()
    if not error <= _TOLERANCE.get(wanted.dtype, _HALF_TOLERANCE) * wanted.float().abs().max():
        raise UserError(f"{_cannot(model)}: its sequences see each other.")


def _cannot(model: nn.Module) -> str:
    return (
        "data.packing: true needs a model that keeps sequences apart where position_ids begin again, but "
        f"{type(model).__name__} does not; set data.packing: false"
    )
