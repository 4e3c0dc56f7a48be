"""``imatrix``: an importance matrix for llama.cpp's own quantizers, of the statistics that calibration goes by."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from torchqat.data.batch import Batch
from torchqat.data.given import listed
from torchqat.device import find_device
from torchqat.errors import UserError
from torchqat.extras import needs
from torchqat.files import as_path
from torchqat.kinds import find_kind
from torchqat.layers.wrapped import unwrapped
from torchqat.model.placement import on_device
from torchqat.model.vocabulary import check_ids
from torchqat.ptq.squared_inputs import squared_inputs


def imatrix(
    model: nn.Module,
    batches: Iterable[Batch],
    output: str | Path,
    datasets: Iterable[str] = (),
    forward: Callable[[nn.Module, Any], Any] | None = None,
    device: str | torch.device | None = None,
) -> list[str]:
    """Write the importance matrix of ``model`` to the file ``output``, as llama.cpp's quantizers read it.

    For each matrix that it multiplies tokens with, the file has the sums of their squares, column by column, and how many
    tokens there were (``<tensor>.in_sum2``, ``<tensor>.counts``); of experts those of the tokens that the router sends to
    each. The output head is left out, as ``llama-imatrix`` does. ``llama-quantize --imatrix`` weighs errors by their mean.

    Args:
        model: A language model in floating point, or a prepared one, of an architecture that GGUF files are written for.
        batches: Calibration tokens, int64 ``[batch, sequence]``, or dicts with ``input_ids`` and ``attention_mask``.
        output: The file, which must end in ``.gguf``; replaced if it exists.
        datasets: What the file says that the tokens are from.
        forward: How to run one batch; by default as a causal language model.
        device: Where to compute, as recipes say it; where the model is when ``None``.

    Returns:
        The names of the tensors of llama.cpp that it speaks of.

    Raises:
        UserError: GGUF files are not written for such a model, there is no batch, or what is given are no batches of tokens
            that it embeds, or the file cannot be written.
    """
    output = as_path("output", output)
    if output.suffix != ".gguf":
        raise UserError(f"An importance matrix must be a file that ends in .gguf, but is {output}.")
    with needs("hf", "A GGUF file"):
        from torchqat.checkpoints.formats.gguf_architectures import architecture_of
        from torchqat.checkpoints.formats.llama_cpp.imatrix import write_imatrix
    model = unwrapped(model)
    architecture_of(model)  # before it is run
    batches = listed(batches)
    for batch in batches:
        check_ids(model, batch, by_itself=True)
    with on_device(model, None if device is None else find_device(device)) as placed:
        found = squared_inputs(model, batches, forward or find_kind("causal_lm").outputs, placed)
    sequences = [_ids(batch) for batch in batches]
    chunks, longest = sum(len(ids) for ids in sequences), max(ids.shape[1] for ids in sequences)
    sums = ((name, squares.sums, squares.tokens) for name, squares in found.items())
    return write_imatrix(output, model, sums, list(datasets), chunks, longest)


def _ids(batch: Batch) -> torch.Tensor:
    return batch["input_ids"] if isinstance(batch, dict) else batch
