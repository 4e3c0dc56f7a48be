"""gpt-oss' own checkpoints, dense by transformers' own arithmetic."""

import torch
from torch import Tensor

from torchqat.checkpoints.readers.reading import Reading
from torchqat.errors import UserError, first_line
from torchqat.extras import needs

_BLOCKS, _SCALES = "_blocks", "_scales"


def experts(tensors: dict[str, Tensor]) -> Reading:
    """Weights ``[experts, in, out]`` in float32, as the model has them, and the rest."""
    with needs("hf", "Reading a checkpoint"):
        from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    names = {name.removesuffix(end) for name in tensors for end in (_BLOCKS, _SCALES) if name.endswith(end)}
    found = Reading()
    for name in sorted(names):
        if lacking := [name + end for end in (_BLOCKS, _SCALES) if name + end not in tensors]:
            found.missing += lacking
            continue
        try:
            found.weights[name] = convert_moe_packed_tensors(
                tensors[name + _BLOCKS], tensors[name + _SCALES], dtype=torch.float32
            )
        except Exception as error:  # whatever a stranger's shapes and dtypes lead to
            raise UserError(f"{name} must be experts in MXFP4 that can be read, but {first_line(error)}.") from error
    inside = {name + end for name in names for end in (_BLOCKS, _SCALES)}
    found.others = {name: tensor for name, tensor in tensors.items() if name not in inside}
    return found
