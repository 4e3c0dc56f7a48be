"""transformers in this process: checkpoints as models that can be run and looked into."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from torchqat.data.batch import as_inputs
from torchqat.errors import UserError, first_line
from torchqat.verification.engines.outputs import compared, outputs_of
from torchqat.verification.result import OutputAgreement

# Relative to the largest output: the weights are the same, and so are the operations.
_BOUND, _BOUND_IN_HALF = 1e-5, 2e-2


def load_in_transformers(folder: Path) -> nn.Module:
    """The checkpoint as transformers loads it, its weights dense and its inputs unquantized.

    Raises:
        UserError: transformers cannot load the folder.
    """
    from torchqat.verification.engines.workers.transformers_worker import load

    try:
        return load(Path(folder))
    except Exception as error:
        raise UserError(f"transformers could not load {folder}: {first_line(error)}") from error


@torch.no_grad()
def outputs_in_transformers(folder: Path, model: nn.Module, example: Any) -> OutputAgreement:
    """Compare the outputs of a checkpoint that writes no text with those of ``model``, both given ``example``.

    Raises:
        UserError: There is no example, or transformers cannot load the folder or run it.
    """
    as_inputs(example)  # says so if there is none
    loaded = load_in_transformers(folder)
    try:
        theirs = outputs_of(loaded, example)
    except Exception as error:
        raise UserError(f"transformers could not run {folder}: {first_line(error)}") from error
    exact = all(next(one.parameters()).dtype == torch.float32 for one in (model, loaded))
    bound = _BOUND if exact else _BOUND_IN_HALF
    return compared("transformers", theirs, outputs_of(model, example), bound, "the order of sums")
