"""An engine: a program of others that serves checkpoints, run in an environment of its own."""

import importlib.util
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import nn

from torchqat._library import KvCacheSpec, LayerPlan
from torchqat.device import release_memory
from torchqat.errors import UserError, first_line
from torchqat.verification.engines.caches import Caches
from torchqat.verification.engines.question import Question, Served

# FP8 has a step of 1/8 and bfloat16 an error of 1/256 of a value: 3 % of a cache's elements land on the other level, which
# is a third of the energy of the rounding itself. Measured, KL is up to 6 times that of weights alone.
_ROUNDED_FACTOR = 5.0
_WORKERS = Path(__file__).with_name("workers")


@dataclass(frozen=True)
class Engine:
    """One that ``verify`` can ask.

    Attributes:
        name: As ``--engine`` has it.
        modules: What Python imports it by, for each format it loads.
        install: The command that installs it.
        caches: Which caches of keys and values it keeps.
        kl_bound: Mean KL from the training forward to it, in nats a token, that is still called equal in half precision.
        float32_kl_bound: The same where everything is float32.
        margin: Where the training forward prefers a token by less than this, in nats, the engine may choose another.
        why: Where that difference comes from.
        float4_devices: Where it runs weights in NVFP4 and MXFP4, by the types of devices.
        refusal: Why it would not compute what a model with such layers does, though a format that it loads holds them, in
            words that follow "because", and empty when it would; all that its formats hold where there is none.
    """

    name: str
    modules: dict[str, str]
    install: str
    caches: Caches
    kl_bound: float
    margin: float
    why: str
    float32_kl_bound: float | None = None
    float4_devices: tuple[str, ...] = ("cpu", "cuda")
    refusal: Callable[[nn.Module, Iterable[LayerPlan]], str] | None = None

    @property
    def formats(self) -> tuple[str, ...]:
        return tuple(self.modules)

    def bound(self, half: bool, rounded: bool = False) -> float:
        """The KL that counts as equal.

        Args:
            half: Whether the engine or the model computes in half precision.
            rounded: Whether inputs or caches are quantized as well: what half precision moves over the border of two levels
                then moves by a whole one.
        """
        bound = self.kl_bound if half or self.float32_kl_bound is None else self.float32_kl_bound
        return _ROUNDED_FACTOR * bound if rounded else bound

    def clear(self, rounded: bool = False) -> float:
        """From how many nats on a preference of the training forward is one that the engine must share.

        Args:
            rounded: As of ``bound``. KL is quadratic in differences of log-probabilities, which so may grow by the square
                root of what it may.
        """
        return math.sqrt(_ROUNDED_FACTOR) * self.margin if rounded else self.margin

    def check(self, model: nn.Module, layers: Iterable[LayerPlan], cache: KvCacheSpec | None = None) -> None:
        """Whether it computes what ``model`` does with ``layers`` and ``cache``, which may be planned or there.

        Raises:
            UserError: It does not.
        """
        why = self.refusal(model, layers) if self.refusal else ""
        why = why or (self.caches.refusal(cache) if cache is not None else "")
        if why:
            raise UserError(f"engine {self.name} cannot run this model, because {why}.")

    @property
    def _word(self) -> str:
        return self.name.replace(".", "_").replace("-", "_")

    @property
    def worker(self) -> str:
        return f"{self._word}_worker"

    def variable(self) -> str:
        """The environment variable that names the Python of an environment that has the engine."""
        return f"TORCHQAT_{self._word.upper()}"

    def python(self, format: str) -> str:
        """The interpreter to run it with.

        Raises:
            UserError: It is not installed (the command that would is named), or does not load the format.
        """
        if format not in self.modules:
            raise UserError(
                f"engine must be one that loads {format}, but {self.name} loads {' and '.join(self.formats)}."
            )
        elsewhere = os.environ.get(self.variable())
        if elsewhere:
            return elsewhere
        module = self.modules[format]
        if importlib.util.find_spec(module) is None:
            raise UserError(
                f"engine {self.name} needs {module} for {format}, which is not installed: run {self.install}, or let "
                f"{self.variable()} name the Python of an environment that has it."
            )
        return sys.executable

    def serve(self, format: str, question: Question) -> Served:
        """Run ``question`` in a process of its own.

        Raises:
            UserError: The engine is not there, or could not do it.
        """
        python = self.python(format)
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        environment.update(VLLM_ENABLE_V1_MULTIPROCESSING="0", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
        environment.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
        with tempfile.TemporaryDirectory() as scratch:
            path, output = Path(scratch) / "question.json", Path(scratch) / "out"
            absolute = {"checkpoint": str(Path(question.checkpoint).resolve())}
            if question.device != "cpu":
                environment["CUDA_VISIBLE_DEVICES"] = visible(question.device)
                absolute["device"] = "cuda:0"
            path.write_text(json.dumps({**question.as_dict(), **absolute}), encoding="utf-8")
            release_memory()  # the engine has its own
            command = [os.path.abspath(python), str(_WORKERS / "serving.py"), self.worker, str(path), str(output)]
            # There, because some engines leave logs wherever they are started.
            done = subprocess.run(
                command, capture_output=True, text=True, env=environment, errors="replace", cwd=scratch
            )
            if done.returncode != 0:
                raise UserError(f"{self.name} could not run {question.checkpoint}: {last_error(done.stderr)}")
            with np.load(f"{output}.npz") as arrays:
                return Served.of(json.loads(Path(f"{output}.json").read_text()), dict(arrays))

    def serve_here(self, question: Question) -> Served:
        """Run ``question`` in this process, which saves the seconds of a new one.

        Raises:
            UserError: The engine could not do it.
        """
        from torchqat.verification.engines.workers import serving

        worker = importlib.import_module(f"torchqat.verification.engines.workers.{self.worker}")

        def load(folder: Path, asked: dict):
            try:
                return worker.Model(folder, asked)
            except Exception as error:
                raise UserError(f"{self.name} could not load {folder}: {first_line(error)}") from error

        try:
            return Served.of(*serving.serve(load, question.as_dict()))
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"{self.name} could not run {question.checkpoint}: {first_line(error)}") from error


def visible(device: str) -> str:
    """What ``CUDA_VISIBLE_DEVICES`` must be for a process to see ``device``, as this one calls it, alone."""
    own, number = os.environ.get("CUDA_VISIBLE_DEVICES"), int(device.partition(":")[2] or 0)
    return own.split(",")[number].strip() if own else str(number)


def last_error(text: str) -> str:
    """The line of a traceback that says what happened."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.split(":")[0].split(".")[-1].endswith(("Error", "Exception"))]
    return (errors or lines or ["it ended without a word"])[-1]
