"""onnxruntime: modules that are not language models, their outputs beside those of the training forward."""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from torchqat.engines.engine import last_error
from torchqat.engines.job import Speed
from torchqat.errors import UserError
from torchqat.prepare import quant_layers
from torchqat.verification import OutputAgreement

_VARIABLE = "TORCHQAT_ONNXRUNTIME"
_WORKER = Path(__file__).with_name("workers") / "onnxruntime_worker.py"
_REPEATS = 30
# Relative to the largest output.
_BOUND, _BOUND_OF_ROUNDED_INPUTS = 1e-4, 2e-2


def run_onnx(folder: Path, model: nn.Module, example: Any, bench: bool = False) -> tuple[OutputAgreement, Speed | None]:
    """Compare the outputs of the graph in ``folder`` with those of ``model``, both given ``example``; ``bench`` times it.

    Raises:
        UserError: There is no example, onnxruntime is not installed, or it cannot run the graph.
    """
    from torchqat.formats.onnx import as_inputs

    inputs = as_inputs(example)
    (theirs, *_), _ = serve_onnx(folder, inputs)
    training = model.training
    model.eval()
    ours = first_tensor(model(*inputs)).detach().float().cpu()
    model.train(training)
    rounded = any(layer.input_spec is not None for _, layer in quant_layers(model))
    difference = (torch.from_numpy(theirs).float() - ours).abs().max().item()
    bound = (_BOUND_OF_ROUNDED_INPUTS if rounded else _BOUND) * max(ours.abs().max().item(), 1e-12)
    why = "the order of sums" + (
        ", and inputs on the border of two levels, of which either may be taken" if rounded else ""
    )
    speed = serve_onnx(folder, inputs, _REPEATS)[1] if bench else None
    return OutputAgreement("onnxruntime", difference, bound, why), speed


def first_tensor(output: Any) -> Tensor:
    """What a module returned, or the first thing in it."""
    if isinstance(output, Tensor):
        return output
    return output[0] if isinstance(output, (tuple, list)) else next(iter(output.values()))


def serve_onnx(folder: Path, inputs: tuple[Tensor, ...], repeats: int = 0) -> tuple[list[np.ndarray], Speed]:
    """Outputs of the graph in ``folder``; ``Speed.prefill`` is runs per second where ``repeats`` is not 0.

    Raises:
        UserError: onnxruntime is not installed, or it cannot run the graph.
    """
    python = os.environ.get(_VARIABLE) or (sys.executable if importlib.util.find_spec("onnxruntime") else "")
    if not python:
        raise UserError(
            "engine onnxruntime is not installed: run pip install torchqat[onnx], or let "
            f"{_VARIABLE} name the Python of an environment that has it."
        )
    model = next(iter(sorted(folder.glob("*.onnx"))), folder / "model.onnx")
    with tempfile.TemporaryDirectory() as scratch:
        given, found = Path(scratch) / "inputs.npz", Path(scratch) / "outputs.npz"
        np.savez(given, *[x.detach().cpu().numpy() for x in inputs])
        command = [python, str(_WORKER), str(model), str(given), str(found), str(repeats)]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
        if done.returncode != 0:
            raise UserError(f"onnxruntime could not run {model}: {last_error(done.stderr)}")
        times = json.loads(Path(f"{found}.json").read_text())
        with np.load(found) as arrays:
            outputs = [arrays[f"arr_{i}"] for i in range(len(arrays.files))]
    fastest = min(times["run_seconds"], default=0.0)
    return outputs, Speed(times["load_seconds"], times["peak_bytes"], 1 / fastest if fastest else None)
