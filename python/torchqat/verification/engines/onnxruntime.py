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

from torchqat.data.batch import as_inputs
from torchqat.device import release_memory
from torchqat.errors import UserError
from torchqat.layers.prepared import quant_layers
from torchqat.verification.engines.engine import last_error
from torchqat.verification.engines.outputs import all_outputs_of, compared
from torchqat.verification.engines.question import Speed
from torchqat.verification.result import OutputAgreement

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
    inputs = as_inputs(example)
    theirs, _ = serve_onnx(folder, inputs)
    ours = all_outputs_of(model, example)
    if len(theirs) != len(ours):  # caches and the like, of which a graph makes other tensors
        theirs, ours = theirs[:1], ours[:1]
    rounded = any(layer.input_spec is not None for _, layer in quant_layers(model))
    bound = _BOUND_OF_ROUNDED_INPUTS if rounded else _BOUND
    why = "the order of sums" + (
        ", and inputs on the border of two levels, of which either may be taken" if rounded else ""
    )
    pairs = [(t, o) for t, o in zip(map(torch.from_numpy, theirs), ours, strict=True) if o.is_floating_point()]
    found = [compared("onnxruntime", theirs, ours.float(), bound, why) for theirs, ours in pairs]
    agreement = max(found, key=lambda one: one.difference / one.bound)
    return agreement, serve_onnx(folder, inputs, _REPEATS)[1] if bench else None


def float_speed(model: nn.Module, example: Any) -> Speed:
    """What the float ``model`` costs, as a graph of its own."""
    from torchqat.checkpoints.formats.onnx import write_onnx

    with tempfile.TemporaryDirectory() as scratch:
        write_onnx(model, [], Path(scratch) / "model.onnx", example)
        return serve_onnx(Path(scratch), as_inputs(example), _REPEATS)[1]


def serve_onnx(folder: Path, inputs: tuple[Tensor, ...], repeats: int = 0) -> tuple[list[np.ndarray], Speed]:
    """Outputs of the graph in ``folder``; ``Speed.runs`` is there where ``repeats`` is not 0.

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
        release_memory()  # onnxruntime has its own
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
        if done.returncode != 0:
            raise UserError(f"onnxruntime could not run {model}: {last_error(done.stderr)}")
        times = json.loads(Path(f"{found}.json").read_text())
        with np.load(found) as arrays:
            outputs = [arrays[f"arr_{i}"] for i in range(len(arrays.files))]
    fastest = min(times["run_seconds"], default=0.0)
    return outputs, Speed(times["load_seconds"], times["peak_bytes"], runs=1 / fastest if fastest else None)
