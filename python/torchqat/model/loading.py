"""Loading models and their tokenizers, from a folder, a GGUF file or, where there is network, from the hub."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from torchqat._library import DTYPES
from torchqat.errors import UserError, first_line
from torchqat.extras import needs
from torchqat.model.completeness import CAUSAL_LM, Wanted, check_complete, check_parts, lacks_pooler_alone
from torchqat.model.finite import check_finite
from torchqat.model.gguf_source import check_read_whole
from torchqat.model.loader import language_model_loader
from torchqat.model.own_code import check_floating, note_export, note_other_architecture, note_own_code
from torchqat.model.passed_over import remember_passed_over
from torchqat.model.quantized import Quantized, quantization_of
from torchqat.model.source import check_place, double_note, doubles_of, is_gguf, place_of, tensors_of

# Names of files that tokenizers are loaded from.
_OF_TOKENIZERS = re.compile("token|vocab|merges|spiece|sentencepiece|bpe")


def no_note(_text: str) -> None:
    """For those who have been told already."""


def load_model(path: str, dtype: str = "float32", note: Callable[[str], None] = no_note) -> nn.Module:
    """A causal language model in evaluation mode, with the parts that read images or sounds where it has such.

    Args:
        path: A folder with ``config.json`` and safetensors, a GGUF file, or a hub id.
        dtype: ``float32``, ``bfloat16`` or ``float16``.
        note: Told what is not as it was there: codes that were made dense, tensors that are left out.

    Raises:
        UserError: There is no such folder and the hub cannot be reached, a file is damaged, the folder does not hold a
            causal language model, lacks a tensor of it or has others, or is quantized in a way that cannot be undone.
    """
    return load_pretrained(path, dtype, CAUSAL_LM, note)


def load_pretrained(path: str, dtype: str, wanted: Wanted, note: Callable[[str], None] = no_note) -> nn.Module:
    """The model that a class of transformers loads, in evaluation mode.

    Args:
        path: A folder with ``config.json`` and safetensors, or a hub id; of a causal language model also a GGUF file.
        dtype: ``float32``, ``bfloat16`` or ``float16``.
        wanted: The class, and what may be missing.
        note: As ``load_model``.

    Raises:
        UserError: As ``load_model``.
    """
    model = _loaded(path, dtype, wanted, note)
    check_finite(model, path)
    model.config.architectures = [type(model).__name__]  # which exports say, not what it was made from
    return model.eval()


def check_loads(path: str, wanted: Wanted, note: Callable[[str], None] = no_note, dtype: str = "float32") -> None:
    """Whether ``load_pretrained`` would load ``path``, found out without reading weights.

    Where there are none yet, as of a model that is yet to be fetched, its configuration is looked at.

    Raises:
        UserError: As ``load_model``.
    """
    if is_gguf(path) or tensors_of(path):
        _loaded(path, dtype, wanted, note, looks=True)
    elif quantized := _configuration(path)[1]:
        note(quantized.note)


def check_streams(path: str) -> None:
    """Whether the tensors of ``path`` are weights, as those who read them one by one take them to be.

    Raises:
        UserError: It is quantized already, a GGUF file, or no model that transformers knows.
    """
    if is_gguf(path):
        raise UserError(f"To be streamed, model must be a folder, but {path} is a GGUF file.")
    check_place(path)
    try:
        quantized = _configuration(path)[1]
    except UserError:
        raise
    except Exception as error:
        raise UserError(_why(path, "folder with a causal language model", error)) from error
    if quantized:
        raise UserError(
            f"To be streamed, model must be in floating point, but {path} is quantized by {quantized.method}; run the "
            "recipe without streaming."
        )


def _loaded(
    path: str, dtype: str, wanted: Wanted, note: Callable[[str], None], looks: bool = False
) -> nn.Module | None:
    """The model; with ``looks`` one that has no weights yet or, where that is none, ``None``."""
    with needs("hf", "Loading a model"):
        import transformers  # noqa: F401

    check_place(path)
    if is_gguf(path) and wanted is not CAUSAL_LM:
        raise UserError(f"model must be a folder or a hub id, unless it is a causal language model, but is {path}.")
    config, quantized, model, found = _read(path, dtype, wanted, looks)
    tensors, kept = tensors_of(path), []  # those of the hub are here by now
    if model is not None:
        kept = check_complete(model, found, config, tensors, path, wanted, note)
        note_own_code(model, config, path, note)
        if not is_gguf(path):
            note_other_architecture(model, config, path, wanted.adds_head or wanted.leaves_heads, note)
        if quantized is None:
            check_floating(model, tensors, path)
    if is_gguf(path):
        check_read_whole(path, model)
        note(f"{path} is a GGUF file: what is called full precision are the weights that its blocks stand for.")
    if quantized is None:
        note_export(path, note)
        if doubles := double_note(doubles_of(tensors), path, dtype):
            note(doubles)
    else:
        quantized.check_scales(tensors)
        note(quantized.note)
        if not looks:
            model = quantized.dense(model, DTYPES[dtype])
    if model is not None:
        remember_passed_over(model, path, kept)
    return model


def _read(path: str, dtype: str, wanted: Wanted, looks: bool) -> tuple[Any, Quantized | None, nn.Module | None, Any]:
    """What ``path`` says of its model, the model as ``_loaded`` has it, and what transformers found while it loaded."""
    import transformers

    loader, options = getattr(transformers, wanted.loader), {"device_map": "meta"} if looks else {}
    config = quantized = None
    tensors = tensors_of(path)
    try:
        config, quantized = _configuration(path)
        if wanted is CAUSAL_LM:
            loader = language_model_loader(config, path)
        if quantized is not None:
            quantized.check_scales(tensors)
        if looks and quantized is not None and quantized.needs_weights:
            quantized.check_libraries()
            return config, quantized, None, None
        model, found = _from_pretrained(loader, path, dtype, quantized and config, options)
        if not wanted.pools and lacks_pooler_alone(model, found["missing_keys"]):
            options = {**options, "add_pooling_layer": False}
            model, found = _from_pretrained(loader, path, dtype, quantized and config, options)
        return config, quantized, model, found
    except UserError:
        raise
    except Exception as error:
        if isinstance(error, RuntimeError) and quantized is not None:
            raise UserError(quantized.refusal) from error
        if isinstance(error, RuntimeError) and config is not None:
            check_parts(loader, config, tensors, path)
        raise UserError(_why(path, wanted.what, error)) from error


def configuration_of(path: str, what: str) -> Any:
    """The configuration of a folder or hub id.

    Raises:
        UserError: There is none; ``what`` says what is looked for.
    """
    with needs("hf", "Loading a model"):
        from transformers import AutoConfig

    check_place(path)
    place, named = place_of(path)
    try:
        return AutoConfig.from_pretrained(place, trust_remote_code=False, **named)
    except Exception as error:
        raise UserError(_why(path, what, error)) from error


def _configuration(path: str) -> tuple[Any, Quantized | None]:
    from transformers import AutoConfig

    place, named = place_of(path)
    config = AutoConfig.from_pretrained(place, trust_remote_code=False, **named)
    return config, None if named else quantization_of(config, path)


def _from_pretrained(
    loader: Any, path: str, dtype: str, config: Any, options: dict[str, Any]
) -> tuple[nn.Module, dict[str, Any]]:
    """A model and what transformers found while it loaded. What it makes up is the same each time."""
    place, named = place_of(path)
    if named:
        import transformers

        dense = getattr(transformers, "GgufConfig", None)  # older ones have no other way
        options = {**options, **named, **({"quantization_config": dense(dequantize=True)} if dense else {})}
    else:
        options = {**options, "use_safetensors": True}
    if config is not None:
        options["config"] = config
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return loader.from_pretrained(
            place,
            dtype=DTYPES[dtype],
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **options,
        )


def empty_model(path: str) -> nn.Module:
    """A causal language model as the configuration in a folder describes it, its weights yet to be loaded.

    Raises:
        UserError: It describes none.
    """
    with needs("hf", "Loading a model"):
        from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
        if hasattr(config, "quantization_config"):
            del config.quantization_config  # of no method that transformers has
        return language_model_loader(config, path).from_config(config, trust_remote_code=False)
    except UserError:
        raise
    except Exception as error:
        raise UserError(_why(path, "causal language model", error)) from error


def load_tokenizer(path: str):
    """The tokenizer of a folder, GGUF file or hub id."""
    with needs("hf", "Loading a tokenizer"):
        from transformers import AutoTokenizer

    place, named = place_of(path)
    if Path(path).is_dir() and not any(_OF_TOKENIZERS.search(file.name) for file in Path(path).iterdir()):
        raise UserError(
            f"{path} must have a tokenizer, but has none: copy that of the model into it, such as tokenizer.json."
        )
    try:
        return AutoTokenizer.from_pretrained(place, trust_remote_code=False, **named)
    except Exception as error:
        raise UserError(f"{path} must have a tokenizer that transformers can load, but {first_line(error)}") from error


def _why(path: str, what: str, error: Exception) -> str:
    if Path(path).exists():
        return f"model must be a {what} that transformers can load, but {path} is not: {first_line(error)}"
    return (
        f"model must be a folder that exists or a hub id, but {path} is no folder here and could not be fetched from the "
        f"hub: {first_line(error)}"
    )
