"""Calls a peer in an environment of its own, as ``workers/common.py`` describes."""

import json
import os
import subprocess
from pathlib import Path

import torch
from torch import Tensor


def rounded_by(
    python: str,
    name: str,
    model: str | Path,
    calibration: list[Tensor],
    bits: int,
    group: int,
    method: str,
    folder: Path,
) -> tuple[dict[str, Tensor], dict[str, float]] | None:
    """The state of ``model`` with weights that the peer ``name`` rounded, and the figures that ``workers/common.py`` names.

    ``None`` if it failed. ``folder`` is where it works, and what it leaves is removed again.
    """
    tokens, state = folder / "tokens.pt", folder / f"{name}.pt"
    torch.save({"calibration": calibration}, tokens)
    command = [python, Path(__file__).parent / "workers" / f"{name}.py", model, tokens, bits, group, method, state]
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, env=environment, cwd=folder)
    if done.returncode != 0:
        print(f"{name} {method} INT{bits} failed: {done.stderr.strip().splitlines()[-1]}")
        return None
    weights = torch.load(state)
    state.unlink()
    return weights, json.loads(done.stdout.strip().splitlines()[-1])
