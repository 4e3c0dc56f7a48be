"""``verify``: is what a stranger reads what training used, and does an engine compute what training computed?"""

import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from torchqat._library import CheckpointPlan, QuantizedWeights, find_format
from torchqat.checkpoints.convert import convert_layers
from torchqat.checkpoints.formats.tensors import cache_scales, checkpoint_plan, float_tensors
from torchqat.checkpoints.readers import format_of, read_checkpoint
from torchqat.checkpoints.readers.reading import Reading
from torchqat.errors import UserError
from torchqat.layers.kv_cache import caches
from torchqat.layers.prepared import quant_layers
from torchqat.verification.engines import TRANSFORMERS, Bench, Engine, Job, Speed, find_engine
from torchqat.verification.engines.agreement import agreement_of
from torchqat.verification.result import Verification

_ROUNDS_ITS_OWN_WAY = "transformers rounds inputs and caches in its own ways, so its outputs were not compared"
# What a dense weight may be rounded to.
_SERVED = (torch.float32, torch.float16, torch.bfloat16)
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
) -> Verification:
    """Compare the checkpoint in ``folder`` with the model that was exported to it.

    Every tensor is compared bit for bit: the weights of quantized layers, as a reader that shares nothing with the exporter
    computes them, with those of the training forward, rounded once to the dtype that is served; scales of inputs and
    caches; and what stays unquantized. Then an engine loads the checkpoint, and its log probabilities and greedy text are
    compared with the training forward's.

    Args:
        folder: What ``export`` wrote.
        model: The prepared model.
        tokens: Prompts, int64 ``[batch, sequence]``; by default 4 fixed ones of 32 tokens.
        engine: ``transformers``, ``vllm``, ``llama.cpp``, ``onnxruntime``, or ``reader`` for the tensors alone. When not
            given, transformers for compressed-tensors checkpoints of weights alone, else ``reader``. Of models that write no
            text, outputs are compared.
        bench: Also time the engine.
        tokenizer: Compared with the one that a GGUF file carries.
        baseline: With ``bench``, the float model's folder, to be timed as well.
        example: For models that write no text, their inputs: a tensor or a tuple of them; by default, of those that take
            token ids, the same as ``tokens``.
        original: With ``bench`` in onnxruntime, the float model, to be timed as a graph of its own.

    Raises:
        UserError: The folder cannot be read, or the engine is not there or cannot load it.
    """
    folder = Path(folder)
    format = format_of(folder)
    compared = _compare_tensors(folder, format, model)
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
        return _of_outputs(compared, engine, folder, model, example, tokens, bench)
    chosen = find_engine(engine)
    chosen.python(format)  # says what is missing, if it is
    if not compared.ok:
        return compared  # an engine that answers differently would only be the consequence
    return _with(compared, **_ask(chosen, folder, format, model, tokens, bench, tokenizer, baseline))


def _with(compared: Verification, **found) -> Verification:
    return Verification(**{**vars(compared), **found})


def _runs_in_transformers(format: str, model: nn.Module) -> bool:
    return format == "compressed-tensors" and hasattr(model, "config") and not _rounds_activations(model)


def _writes_text(model: nn.Module) -> bool:
    return hasattr(model, "can_generate") and model.can_generate()


def _of_outputs(
    compared: Verification,
    engine: str,
    folder: Path,
    model: nn.Module,
    example: Any,
    tokens: Tensor | None,
    bench: bool,
) -> Verification:
    """Outputs of a model that writes no text, in transformers."""
    if engine != "transformers" or bench:
        raise UserError(
            "A model that writes no text is compared in transformers, or timed in onnxruntime as a graph, but engine is "
            f"{engine}."
        )
    if _rounds_activations(model):
        return _with(compared, notes=[_ROUNDS_ITS_OWN_WAY])
    from torchqat.verification.engines.transformers import outputs_in_transformers

    given = _prompts(model, tokens) if example is None else example
    return _with(compared, agreement=outputs_in_transformers(folder, model, given))


def _rounds_activations(model: nn.Module) -> bool:
    return bool(caches(model)) or any(layer.input_spec is not None for _, layer in quant_layers(model))


# -- tensors ----------------------------------------------------------------------------------------------------------


def _compare_tensors(folder: Path, format: str, model: nn.Module) -> Verification:
    reading = read_checkpoint(folder, model)
    plan = checkpoint_plan(model)
    expected = _expected_others(folder, format, model, plan, reading)
    differing: dict[str, int] = {}
    missing = list(reading.missing)
    found_layers = {name.rpartition(".")[0] for name in missing}
    for layer in convert_layers(model, torch.float32):
        expected.update(_expected_of_input(layer, format))
        read = reading.weights.get(layer.name)
        if read is None:
            if layer.name not in found_layers:
                missing.append(f"{layer.name}.weight")
            continue
        exact = read.dtype if read.dtype in _SERVED else torch.float32
        count = _differing(read, layer.dequantize(exact)) + _unlike_training(model, layer)
        if count:
            differing[layer.name] = count
    missing += [name for name in expected if name not in reading.others]
    for name in expected.keys() & reading.others.keys():
        count = _differing(reading.others[name], expected[name])
        if count:
            differing[name] = count
    return Verification(
        len(plan.layers), dict(sorted(differing.items())), missing, _unexpected(reading, plan, expected)
    )


def _unexpected(reading: Reading, plan: CheckpointPlan, expected: dict[str, Tensor]) -> list[str]:
    planned = {layer.name for layer in plan.layers}
    return sorted([n for n in reading.weights if n not in planned] + [n for n in reading.others if n not in expected])


def _expected_others(
    folder: Path, format: str, model: nn.Module, plan: CheckpointPlan, reading: Reading
) -> dict[str, Tensor]:
    if format == "gguf":
        from torchqat.checkpoints.formats.gguf import float_values
        from torchqat.checkpoints.readers.gguf import stored_types

        return float_values(model, plan, stored_types(folder))
    expected = dict(float_tensors(model, plan))
    if format != "onnx":
        return {**expected, **cache_scales(model, format)}
    # A graph has what it uses, constants of its own among it; one that lacks something does not load.
    used = {name: tensor for name, tensor in expected.items() if name in reading.others}
    scales = ("input_scale", "input_zero_point", "input_low")
    reading.others = {n: t for n, t in reading.others.items() if n in used or n.rpartition(".")[2] in scales}
    return used


def _expected_of_input(layer: QuantizedWeights, format: str) -> dict[str, Tensor]:
    """Scale and zero point of a calibrated input; in a graph also where it is clipped."""
    found = {leaf: getattr(layer, leaf) for leaf in ("input_scale", "input_zero_point")}
    if format == "onnx" and layer.input_scale is not None:
        low, _ = layer.input.quant_range(8)
        if layer.input_zero_point is None:
            found["input_zero_point"] = torch.zeros(1, dtype=torch.int8)
        found["input_low"] = low * layer.input_scale if low > -128 else None
    return {f"{layer.name}.{leaf}": value for leaf, value in found.items() if value is not None}


def _differing(read: Tensor, expected: Tensor) -> int:
    expected = expected.detach().cpu()
    if read.numel() != expected.numel() or (read.dim() > 1 and read.shape != expected.shape):
        return max(read.numel(), expected.numel())
    return int((read.reshape(expected.shape) != expected.to(read.dtype)).sum())


def _unlike_training(model: nn.Module, layer) -> int:
    """Elements in which the codes do not stand for the weight that the forward multiplies with."""
    module = model.get_submodule(layer.name)
    return _differing(layer.dequantize(module.weight.dtype).cpu(), module.quantized_weight())


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
) -> dict[str, Any]:
    prompts = _prompts(model, tokens)
    timed = Bench([int(t) for t in _prompts(model, None, 1, 256)[0]]) if bench else None
    texts = _TEXTS if tokenizer is not None else []
    job = Job(str(folder), prompts.tolist(), texts=texts, bench=timed)
    here = engine is TRANSFORMERS and format == "compressed-tensors" and not bench
    served = engine.serve_here(job) if here else engine.serve(format, job)
    found: dict[str, Any] = {}
    rounded = _rounds_activations(model)
    if engine is TRANSFORMERS and rounded:
        found["notes"] = [_ROUNDS_ITS_OWN_WAY]
    else:
        half = find_format(format).dtype is not None or next(model.parameters()).dtype != torch.float32
        found["agreement"] = agreement_of(engine, served, model, prompts, half, rounded, tokenizer, texts)
    if bench:
        found["speed"] = served.speed
        if baseline:
            found["baseline"] = _baseline_speed(engine, format, baseline, job, tokenizer)
    return found


def _prompts(model: nn.Module, tokens: Tensor | None, count: int = 4, length: int = 32) -> Tensor:
    if tokens is not None:
        return tokens
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, model.config.vocab_size, (count, length), generator=generator)


def _baseline_speed(engine: Engine, format: str, folder: str, job: Job, tokenizer) -> Speed:
    """The float model in the same engine, in the form that the engine takes."""
    from torchqat.model.loading import load_model

    if format != "gguf":
        plain = Job(folder, [], bench=job.bench)
        return engine.serve("compressed-tensors", plain).speed
    from torchqat.checkpoints.formats.gguf import write_gguf

    scratch = Path(tempfile.mkdtemp())
    try:
        write_gguf(load_model(folder), [], None, scratch / "float.gguf", tokenizer)
        return engine.serve("gguf", Job(str(scratch), [], bench=job.bench)).speed
    finally:
        shutil.rmtree(scratch)
