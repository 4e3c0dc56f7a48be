"""Programs and training on several processes, by torchrun, for tests."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

RECIPE = """version: 1
data: {calibration: {samples: 4, sequence_length: 32}, evaluation: {samples: 4, sequence_length: 32}}
layers:
  - match: "model.layers.*"
    weight: {dtype: int4, group_size: 32, grid: full, scale: SCALE}
    INPUT
schedule: [{until: 50%, weight: int6}, {until: 100%, weight: int4}]
train: {steps: 8, batch_size: 4, gradient_accumulation: ACCUMULATION, sequence_length: 32, checkpoint_every: 2,
        validate_every: VALIDATE, learning_rate: 1.0e-3MORE}
export: [safetensors]
TOP
"""
_VALUES = {"SCALE": "learned", "INPUT": "", "ACCUMULATION": "1", "MORE": "", "VALIDATE": "4", "TOP": ""}
_TORCHRUN = ["-m", "torch.distributed.run", "--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0"]


def on_processes(count: int) -> list[str]:
    """Python, of which ``count`` processes run what follows."""
    return [sys.executable, *([*_TORCHRUN, "--nproc_per_node", str(count)] if count > 1 else [])]


def said_by(code: str, folder: Path, processes: int, *arguments) -> str:
    """What ``code`` prints, which is written to a file in ``folder`` and run on ``processes``."""
    program = folder / "worker.py"
    program.write_text(code)
    command = [*on_processes(processes), str(program), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


class Launcher:
    """Starts ``torchqat train`` in ``folder``, alone or by torchrun."""

    def __init__(self, folder: Path, model: Path, data: Path):
        self.folder, self.model, self.data = folder, model, data

    def start(self, name: str, processes: int, *options: str, **values) -> subprocess.Popen:
        text = RECIPE
        for key, value in {**_VALUES, **values}.items():
            text = text.replace(key, str(value))
        recipe = self.folder / f"{name}.yaml"
        recipe.write_text(text)
        command = [*on_processes(processes), "-m", "torchqat", "train", recipe, "--model", self.model]
        command += ["--data", self.data, "--output", self.folder / name, *options]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(list(map(str, command)), env=environment, **pipes)

    def __call__(self, name: str, processes: int, *options: str, **values) -> tuple[Path, str]:
        """To its end; returns the run's folder and what was said."""
        process = self.start(name, processes, *options, **values)
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err[-3000:]
        return self.folder / name, out + err


def wait_until(reached: Callable[[], bool], process: subprocess.Popen) -> None:
    """Until ``reached`` holds, or ``process`` has ended."""
    while not reached() and process.poll() is None:
        time.sleep(0.02)
