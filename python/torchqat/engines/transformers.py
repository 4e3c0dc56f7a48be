"""transformers in this process: checkpoints as models that can be run and looked into."""

from pathlib import Path

from torch import nn

from torchqat.errors import UserError, first_line


def load_in_transformers(folder: Path) -> nn.Module:
    """The checkpoint as transformers loads it, its weights dense and its inputs unquantized.

    Raises:
        UserError: transformers cannot load the folder.
    """
    from torchqat.engines.workers.transformers_worker import load

    try:
        return load(Path(folder))
    except Exception as error:
        raise UserError(f"transformers could not load {folder}: {first_line(error)}") from error
