"""The configuration files that a model of transformers brings, as transformers writes them."""

import tempfile
import warnings
from contextlib import suppress
from pathlib import Path

from torch import nn

from torchqat.errors import UserError, first_line


def save_configuration(model: nn.Module, folder: Path) -> None:
    """``config.json`` and, of models that generate, ``generation_config.json``; nothing of a model that has neither.

    transformers reads settings of generation that contradict each other, such as a temperature without sampling, but does
    not write them once anything has changed. They are the model's, so that they are written as they are, with a warning.

    Raises:
        UserError: transformers cannot write them.
    """
    if not hasattr(getattr(model, "config", None), "save_pretrained"):
        return
    try:
        model.config.save_pretrained(folder)
        if getattr(model, "generation_config", None) is not None:
            _save_generation(model.generation_config, folder)
    except OSError:  # of the disk
        raise
    except Exception as error:
        raise UserError(
            f"The model's configuration must be one that can be written, but {first_line(error)}"
        ) from error


def check_configuration(model: nn.Module) -> None:
    """Raises UserError where ``save_configuration`` would."""
    # A disk without room is no fault of the configuration, and the warning is for those who write.
    with suppress(OSError), tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save_configuration(model, Path(folder))


def _save_generation(config, folder: Path) -> None:
    try:
        config.save_pretrained(folder)
    except ValueError as error:
        warnings.warn(
            f"generation_config.json is written as the model has it, though {first_line(error)}", stacklevel=2
        )
        config.to_json_file(folder / "generation_config.json", keys_to_pop=["compile_config"])
