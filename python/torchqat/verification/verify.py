"""``verify``: is what a stranger reads what training used, and does an engine compute what training computed?"""

import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from torchqat._library import DTYPES
from torchqat.checkpoints.formats.known import find_format
from torchqat.checkpoints.formats.tensors import cache_spec, checkpoint_plan
from torchqat.checkpoints.readers import format_of
from torchqat.device import device_of, find_device
from torchqat.errors import UserError
from torchqat.files import as_path, read_json
from torchqat.layers.kv_cache import caches
from torchqat.layers.prepared import quant_layers
from torchqat.layers.wrapped import unwrapped
from torchqat.model.loader import is_encoder_decoder
from torchqat.model.placement import on_device
from torchqat.model.towers import generates
from torchqat.precision import products
from torchqat.progress import working
from torchqat.verification.engines import TRANSFORMERS, Bench, Engine, Question, Speed, find_engine
from torchqat.verification.engines.agreement import agreement_of
from torchqat.verification.engines.outputs import in_half
from torchqat.verification.result import Verification
from torchqat.verification.tensors import compare_tensors
from torchqat.verification.tokenizers import differing_in_gguf, differing_tokenizer

_ROUNDS_ITS_OWN_WAY = "transformers rounds inputs and caches in its own ways, so its outputs were not compared"
# Formats that transformers loads in this process.
_IN_TRANSFORMERS = ("compressed-tensors", "compressed-tensors-0.18", "mxfp4", "dense")
_TEXTS = ["def main(argv):\n    return len(argv) > 1\n", "The quick brown fox's 3 jumps: 1234, été!"]


@torch.no_grad()
def verify(
    folder: str | Path,
    model: nn.Module,
    tokens: Tensor | None = None,
    engine: str = "",
    bench: bool = False,
    tokenizer=None,
    baseline: str = "",
    example: Any = None,
    original: nn.Module | None = None,
    device: str | torch.device | None = None,
) -> Verification:
    """Compare the checkpoint in ``folder`` with the model that was exported to it.

    Every tensor is compared bit for bit: the weights of quantized layers, as a reader that shares nothing with the exporter
    computes them, with those of the training forward, rounded once to the dtype that is served; scales of inputs and
    caches; and what stays unquantized. So are the configuration and the tokens that texts begin and end with. Then an
    engine loads the checkpoint, and its log probabilities and greedy text are compared with the training forward's.

    Args:
        folder: What ``export`` wrote.
        model: The prepared model.
        tokens: Prompts, int64 ``[batch, sequence]``; by default 4 fixed ones of 32 tokens.
        engine: ``transformers``, ``vllm``, ``llama.cpp``, ``mlx``, ``openvino``, ``onnxruntime-genai``, ``executorch``,
            ``onnxruntime``, or ``reader`` for the tensors alone.
            When not given, transformers for compressed-tensors, mxfp4 and dense checkpoints of weights alone, else
            ``reader``. Of models that write no text, outputs are compared.
        bench: Also time the engine.
        tokenizer: Compared with the one that the folder or the GGUF file has.
        baseline: With ``bench``, the float model's folder, to be timed as well.
        example: For models that write no text, their inputs: a tensor, a tuple of them, or a dict by name; by default, of
            those that take token ids, the same as ``tokens``, for encoder and decoder. For models that write text and also
            read images, inputs with such, by name: transformers is asked for the outputs on them, too.
        original: With ``bench`` in onnxruntime, the float model, to be timed as a graph of its own.
        device: Where forwards of ``model`` are compared with an engine's, and engines that run on either compute, as recipes
            say it; where the model is when ``None``.

    Raises:
        UserError: The folder cannot be read, the engine is not there, cannot load it or would compute something else, or
            there is no such device.
    """
    folder, model = as_path("folder", folder), unwrapped(model)
    place = device_of(model) if device is None else find_device(device)
    format = format_of(folder)
    compared = compare_tensors(folder, format, model)
    if tokenizer is not None and format != "onnx":
        differing = (
            differing_in_gguf(folder, tokenizer) if format == "gguf" else differing_tokenizer(folder, tokenizer, _TEXTS)
        )
        compared = _with(compared, settings=[*compared.settings, *differing])
    engine = engine or ("transformers" if _runs_in_transformers(format, model) else "reader")
    if engine == "reader":
        if bench:
            raise UserError(f"engine must be given to be timed, as one that loads {format}, but is reader.")
        return compared
    if engine == "onnxruntime":
        from torchqat.verification.engines.onnxruntime import float_speed, run_onnx

        agreement, speed = run_onnx(folder, model, example, bench)
        baseline = float_speed(original, example) if bench and original is not None else None
        return _with(compared, agreement=agreement, speed=speed, baseline=baseline)
    if not _writes_text(model) and not compared.ok:
        return compared
    if not _writes_text(model):
        return _of_outputs(compared, engine, folder, model, example, tokens, bench, place)
    chosen = find_engine(engine)
    chosen.python(format)  # says what is missing, if it is
    plan = checkpoint_plan(model)
    chosen.check(model, plan.layers, plan.kv_cache)
    if not compared.ok:
        return compared  # an engine that answers differently would only be the consequence
    found = _ask(chosen, folder, format, model, tokens, bench, tokenizer, baseline, place)
    if isinstance(example, dict) and chosen is TRANSFORMERS and not rounds_activations(model):
        from torchqat.verification.engines.transformers import outputs_in_transformers

        found["with_image"] = outputs_in_transformers(folder, model, example, place)
    return _with(compared, **found)


def _with(compared: Verification, **found) -> Verification:
    return Verification(**{**vars(compared), **found})


def _runs_in_transformers(format: str, model: nn.Module) -> bool:
    return format in _IN_TRANSFORMERS and hasattr(model, "config") and not rounds_activations(model)


def _writes_text(model: nn.Module) -> bool:
    """Whether token ids are all that ``model`` needs for the next: decoders of encoders need what these read, too."""
    return generates(model) and not is_encoder_decoder(model.config)


def _of_outputs(
    compared: Verification,
    engine: str,
    folder: Path,
    model: nn.Module,
    example: Any,
    tokens: Tensor | None,
    bench: bool,
    device: torch.device,
) -> Verification:
    """Outputs of a model that writes no text, in transformers."""
    if engine != "transformers" or bench:
        raise UserError(
            "A model that writes no text is compared in transformers, or timed in onnxruntime as a graph, but engine is "
            f"{engine}."
        )
    if rounds_activations(model):
        return _with(compared, notes=[_ROUNDS_ITS_OWN_WAY])
    from torchqat.verification.engines.transformers import outputs_in_transformers

    given = _example(model, tokens) if example is None else example
    return _with(compared, agreement=outputs_in_transformers(folder, model, given, device))


def _example(model: nn.Module, tokens: Tensor | None) -> Any:
    """Inputs of a model that takes token ids; ``None`` of others."""
    if getattr(model, "main_input_name", "") != "input_ids" or not hasattr(model, "config"):
        return None
    given = {"input_ids": _prompts(model, tokens)}
    return {**given, "decoder_input_ids": given["input_ids"]} if model.config.is_encoder_decoder else given


def rounds_activations(model: nn.Module) -> bool:
    """Whether inputs of a layer, or keys and values of a cache, are quantized."""
    return bool(caches(model)) or any(layer.input_spec is not None for _, layer in quant_layers(model))


# -- engines ----------------------------------------------------------------------------------------------------------


def _ask(
    engine: Engine,
    folder: Path,
    format: str,
    model: nn.Module,
    tokens: Tensor | None,
    bench: bool,
    tokenizer,
    baseline: str,
    device: torch.device,
) -> dict[str, Any]:
    prompts = _prompts(model, tokens)
    timed = Bench([int(t) for t in _prompts(model, None, 1, 256)[0]]) if bench else None
    texts = _TEXTS if tokenizer is not None else []
    cache = cache_spec(model)
    types = engine.caches.setting(cache).types if cache is not None else ()
    question = Question(str(folder), prompts.tolist(), texts=texts, bench=timed, device=str(device), cache=types)
    here = engine is TRANSFORMERS and format in _IN_TRANSFORMERS and not bench
    slow = ", in a dtype that the processor emulates" if _is_emulated(folder, device) else ""
    with working(f"Asking {engine.name}{slow}"):
        served = engine.serve_here(question) if here else engine.serve(format, question)
    found: dict[str, Any] = {}
    rounded = rounds_activations(model)
    if engine is TRANSFORMERS and rounded:
        found["notes"] = [_ROUNDS_ITS_OWN_WAY]
    else:
        half = find_format(format).dtype is not None or _in_half(folder) or in_half(model)
        with on_device(model, device):
            found["agreement"] = agreement_of(engine, served, model, prompts, half, rounded, tokenizer, texts)
    if bench:
        found["speed"] = served.speed
        if baseline:
            found["baseline"] = _baseline_speed(engine, format, baseline, question, tokenizer)
    return found


def _in_half(folder: Path) -> bool:
    """Whether the configuration of the checkpoint says that engines compute in half precision."""
    return _dtype_in(folder) in ("float16", "bfloat16")


def _is_emulated(folder: Path, device: torch.device) -> bool:
    """Whether an engine that computes in the dtype of the checkpoint has it emulated."""
    return _in_half(folder) and not products(device, DTYPES[_dtype_in(folder)]).multiplied


def _dtype_in(folder: Path) -> str | None:
    path = folder / "config.json"
    return read_json(path, "The configuration of a checkpoint").get("dtype") if path.is_file() else None


def _prompts(model: nn.Module, tokens: Tensor | None, count: int = 4, length: int = 32) -> Tensor:
    if tokens is not None:
        return tokens
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, model.config.get_text_config().vocab_size, (count, length), generator=generator)


def _baseline_speed(engine: Engine, format: str, folder: str, question: Question, tokenizer) -> Speed:
    """The float model in the same engine, in the form that the engine takes."""
    from torchqat.model.loading import load_model

    if format != "gguf":
        plain = Question(folder, [], bench=question.bench, device=question.device)
        return engine.serve(format, plain).speed
    from torchqat.checkpoints.formats.gguf import write_gguf

    scratch = Path(tempfile.mkdtemp())
    try:
        write_gguf(load_model(folder), [], None, scratch / "float.gguf", tokenizer)
        return engine.serve("gguf", Question(str(scratch), [], bench=question.bench, device=question.device)).speed
    finally:
        shutil.rmtree(scratch)
