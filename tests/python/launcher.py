"""Programs and training on one process or several, for tests."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from forked import ONE_THREAD, Program

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


def anew(arguments: list, **variables: str) -> subprocess.Popen:
    """``python ARGUMENTS``, where nothing is that of another process: not the seed of hashes, not what libraries chose."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, *map(str, arguments)], env={**os.environ, **variables}, **pipes)


def torchrun(count: int, *arguments) -> subprocess.Popen:
    """``python ARGUMENTS`` on ``count`` processes, as users start it."""
    command = ["-m", "torch.distributed.run", "--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0"]
    return anew([*command, "--nproc_per_node", count, *arguments], **ONE_THREAD)


def said_by(code: str, folder: Path, processes: int, *arguments, by_torchrun: bool = False) -> str:
    """What ``code`` prints, which is written to a file in ``folder`` and run on ``processes``."""
    file = folder / "worker.py"
    file.write_text(code)
    arguments = [file, *arguments]
    process = torchrun(processes, *arguments) if by_torchrun else Program(arguments, folder, count=processes)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out


class Launcher:
    """Starts ``torchqat train`` in ``folder``, alone or on several processes.

    ``twins`` has what was trained on one process before, by what was asked for.
    """

    def __init__(self, folder: Path, model: Path, data: Path, twins: dict[tuple, Path]):
        self.folder, self.model, self.data, self.twins = folder, model, data, twins

    def start(self, name: str, processes: int, *options: str, by_torchrun: bool = False, **values):
        text = RECIPE
        for key, value in {**_VALUES, **values}.items():
            text = text.replace(key, str(value))
        recipe = self.folder / f"{name}.yaml"
        recipe.write_text(text)
        arguments = ["-m", "torchqat", "train", recipe, "--model", self.model, "--data", self.data]
        arguments += ["--output", self.folder / name, *options]
        return torchrun(processes, *arguments) if by_torchrun else Program(arguments, self.folder, name, processes)

    def __call__(self, name: str, processes: int, *options: str, **values) -> tuple[Path, str]:
        """To its end; returns the run's folder and what was said."""
        process = self.start(name, processes, *options, **values)
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err[-3000:]
        return self.folder / name, out + err

    def alone(self, **values) -> Path:
        """The folder of a run on one process, to compare with and not to change: it is trained once."""
        asked = tuple({**_VALUES, **values}.values())
        if asked not in self.twins:
            self.twins[asked], _ = self(f"alone-{len(self.twins)}", 1, **values)
        return self.twins[asked]


def wait_until(reached: Callable[[], bool], process) -> None:
    """Until ``reached`` holds, or ``process`` has ended."""
    while not reached() and process.poll() is None:
        time.sleep(0.02)
