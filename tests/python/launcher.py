"""Training by the command line on several processes, for tests."""

import os
import subprocess
import sys
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
TORCHRUN = ["-m", "torch.distributed.run", "--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0"]


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
        torchrun = [*TORCHRUN, "--nproc_per_node", processes] if processes > 1 else []
        command = [
            sys.executable,
            *torchrun,
            "-m",
            "torchqat",
            "train",
            recipe,
            "--model",
            self.model,
            "--data",
            self.data,
        ]
        command += ["--output", self.folder / name, *options]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(list(map(str, command)), env=environment, **pipes)

    def __call__(self, name: str, processes: int, *options: str, **values) -> tuple[Path, str]:
        """To its end; returns the run's folder and what was said."""
        process = self.start(name, processes, *options, **values)
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err[-3000:]
        return self.folder / name, out + err
