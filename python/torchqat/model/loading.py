"""Loading models and their tokenizers, from a folder or, where there is network, from the hub."""

from pathlib import Path

import torch
from torch import nn

from torchqat._library import DTYPES, FileError, check_safetensors
from torchqat.errors import UserError, first_line
from torchqat.extras import needs
from torchqat.files import read_json


def load_model(path: str, dtype: str = "float32") -> nn.Module:
    """A causal language model in evaluation mode.

    Args:
        path: A folder with ``config.json`` and safetensors, or a hub id.
        dtype: ``float32``, ``bfloat16`` or ``float16``.

    Raises:
        UserError: There is no such folder and the hub cannot be reached, a file is damaged, or the folder does not hold a
            causal language model.
    """
    return load_pretrained(path, dtype, "AutoModelForCausalLM", "causal language model")


def load_pretrained(path: str, dtype: str, loader: str, what: str) -> nn.Module:
    """The model that a class of transformers loads, in evaluation mode.

    Args:
        path: A folder with ``config.json`` and safetensors, or a hub id.
        dtype: ``float32``, ``bfloat16`` or ``float16``.
        loader: Name of the class.
        what: What it loads, for messages.

    Raises:
        UserError: As ``load_model``.
    """
    with needs("hf", "Loading a model"):
        import transformers

    _check_folder(path)
    try:
        model = getattr(transformers, loader).from_pretrained(
            path, dtype=DTYPES[dtype], trust_remote_code=False, use_safetensors=True
        )
    except Exception as error:
        raise UserError(_why(path, what, error)) from error
    check_finite(model, path)
    return model.eval()


def empty_model(path: str) -> nn.Module:
    """A causal language model as the configuration in a folder describes it, its weights yet to be loaded.

    Raises:
        UserError: It describes none.
    """
    with needs("hf", "Loading a model"):
        from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
        if hasattr(config, "quantization_config"):
            del config.quantization_config  # of no method that transformers has
        return AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except Exception as error:
        raise UserError(_why(path, "causal language model", error)) from error


def check_finite(model: nn.Module, path: str) -> None:
    """Raises UserError, naming the first, if a parameter has elements that are not finite."""
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise UserError(f"The weights of {path} must be finite, but {name} has NaN or infinite elements.")


def load_tokenizer(path: str):
    """The tokenizer of a folder or hub id."""
    with needs("hf", "Loading a tokenizer"):
        from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except Exception as error:
        raise UserError(f"{path} must have a tokenizer that transformers can load, but {first_line(error)}") from error


def _check_folder(path: str) -> None:
    folder = Path(path)
    if not folder.is_dir():
        if folder.is_file() or path.startswith((".", "/", "~")):
            raise UserError(f"model must be a folder that exists or a hub id, but {path} is not a folder.")
        return
    if not (folder / "config.json").is_file():
        raise UserError(f"model must be a Hugging Face folder with a config.json, but {path} has none.")
    _check_index(folder / "model.safetensors.index.json")
    try:
        for file in sorted(folder.glob("*.safetensors")):
            check_safetensors(str(file))
    except FileError as error:
        raise UserError(str(error)) from error


def _check_index(path: Path) -> None:
    """The files that it names are read: none outside the folder."""
    if not path.is_file():
        return
    index = read_json(path, "The index of a model's files")
    files = index.get("weight_map") if isinstance(index, dict) else None
    for name in files.values() if isinstance(files, dict) else [files]:
        if not isinstance(name, str) or Path(name).name != name:
            raise UserError(f"{path} must map names of tensors to names of files beside it, but has {name!r}.")


def _why(path: str, what: str, error: Exception) -> str:
    if Path(path).is_dir():
        return f"model must be a {what} that transformers can load, but {path} is not: {first_line(error)}"
    return (
        f"model must be a folder that exists or a hub id, but {path} is no folder here and could not be fetched from the "
        f"hub: {first_line(error)}"
    )
