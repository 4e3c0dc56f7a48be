"""A newcomer's first minutes: an empty environment, the wheel, a model, and a GGUF file that llama.cpp writes text from.

    python benchmarks/first_minutes.py WHEEL --model DIR --data PATH --llama-cpp PYTHON [--quickstart]

In a folder outside of the sources with a home of its own, so that nothing is cached but pip's downloads. Each command is the
README's, run as it stands there but for its names; seconds are those of the clock. llama.cpp runs in an environment that has
llama-cpp-python. OMP_NUM_THREADS is handed on.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from common import publish, table

# Of a command's output only this many lines at the end are kept.
KEPT = 14
WRITES = (
    "from llama_cpp import Llama; llama = Llama('gguf-run/exports/gguf/model.gguf', verbose=False); "
    "print(llama('def main', max_tokens=24)['choices'][0]['text'])"
)


@dataclass
class Step:
    """A command as a newcomer types it, and what came of it."""

    typed: str
    seconds: float = 0.0
    printed: str = ""


def walked(steps: list[str], folder: Path, environment: dict[str, str]) -> list[Step]:
    """Each of them in turn; the first that fails ends the program with what it printed."""
    done = []
    for typed in steps:
        print(f"$ {typed}", flush=True)
        start = time.perf_counter()
        ran = subprocess.run(
            ["bash", "-c", typed], cwd=folder, env=environment, capture_output=True, text=True, errors="replace"
        )
        printed = shortened(ran.stdout if ran.stdout.strip() else ran.stderr)
        printed = printed.replace(environment["TORCHQAT_LLAMA_CPP"], "$TORCHQAT_LLAMA_CPP")
        done.append(Step(typed, time.perf_counter() - start, printed))
        print(f"{printed}\n({done[-1].seconds:.0f} s)", flush=True)
        if ran.returncode != 0:
            sys.exit(f"{typed} ended with {ran.returncode}: {ran.stderr[-2000:]}")
    return done


def shortened(text: str) -> str:
    """The end of what was printed, without digests and long lines."""
    lines = [re.sub(r"; sha256 \w+", "", line).rstrip() for line in text.splitlines() if line.strip()]
    return "\n".join(line[:160] for line in lines[-KEPT:])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--llama-cpp", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--quickstart", action="store_true")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for name, target in (("my-model", asked.model), ("my-text", asked.data), (asked.wheel.name, asked.wheel)):
            (folder / name).symlink_to(target.resolve())
        (folder / "home").mkdir()
        kept = {name: os.environ[name] for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY") if name in os.environ}
        environment = {"HOME": str(folder / "home"), "PATH": f"{folder}/venv/bin:/usr/local/bin:/usr/bin:/bin", **kept}
        # The engine has an environment of its own, as docs/formats.md says; a symbolic link would lose it.
        environment["TORCHQAT_LLAMA_CPP"] = str(asked.llama_cpp.absolute())
        steps = [
            "python3 -m venv venv",
            f"pip install './{asked.wheel.name}[all]'",
            "torchqat doctor",
            *(["torchqat run quickstart"] if asked.quickstart else []),
            "torchqat check int4 --model my-model",
            f"torchqat run int4 --model my-model --data my-text --output my-run --steps {asked.steps}",
            f"torchqat run q4-k-m --model my-model --data my-text --output gguf-run --steps {asked.steps}",
            "torchqat verify gguf-run/exports/gguf --engine llama.cpp",
            f'$TORCHQAT_LLAMA_CPP -c "{WRITES}"',
        ]
        done = walked(steps, folder, environment)
    threads = os.environ.get("OMP_NUM_THREADS", "all")
    whole = sum(step.seconds for step in done)
    rows = [[f"`{step.typed}`".replace(WRITES, "..."), f"{step.seconds:.0f}"] for step in done]
    texts = "\n".join(f"$ {step.typed}\n{step.printed}" for step in done[2:])
    body = (
        f"From an empty virtual environment to text from llama.cpp in {whole / 60:.1f} minutes, "
        f"OMP_NUM_THREADS {threads}.\n\n"
        + table(["command", "seconds"], rows)
        + f"\n\nWhat the commands after the installation printed, the last {KEPT} lines of each:\n\n```\n{texts}\n```\n"
    )
    figures = [{"command": step.typed, "seconds": round(step.seconds, 1)} for step in done]
    command = "python benchmarks/first_minutes.py WHEEL --model DIR --data PATH --llama-cpp PYTHON"
    publish("first_minutes", "A newcomer's first minutes", body, figures, command)


if __name__ == "__main__":
    main()
