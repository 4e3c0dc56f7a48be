"""How long a fresh clone takes to its first result: set-up, and the demo with each set of instructions.

    python benchmarks/fresh_clone.py [--keep FOLDER]

The last commit is cloned into a folder of its own; ``make setup`` and ``make demo`` run there as README.md says, the demo
once with what the processor has and once with AVX2 alone, by the switches of torch (``ATEN_CPU_CAPABILITY``), of its
libraries and of torchqat (``TORCHQAT_CPU_CAPABILITY``). What each printed goes on the page. Goals: set-up within 6 minutes
on two cores, the demo within 3 minutes with AVX-512 and within 5 with AVX2.
"""

import argparse
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from common import publish, table, verdict

ROOT = Path(__file__).resolve().parents[1]
AVX2 = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "TORCHQAT_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
}
# What is run, with which variables, and within how many seconds it should be done.
STEPS = [
    ("make setup", {}, 360),
    ("make demo", {}, 180 if "avx512f" in Path("/proc/cpuinfo").read_text() else 300),
    ("make demo", AVX2, 300),
]
# Of what a command prints, so many lines at its end.
LINES = 24


def timed(command: str, variables: dict[str, str], clone: Path) -> tuple[float, str]:
    """Seconds, and what it printed, with no scratch model kept; how this program itself runs is left out."""
    inherited = {key: value for key, value in os.environ.items() if key not in ("OMP_NUM_THREADS", "VIRTUAL_ENV")}
    begun = time.monotonic()
    done = subprocess.run(
        command.split(),
        cwd=clone,
        env=inherited | variables,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    if done.returncode:
        raise SystemExit(f"{command} failed:\n{done.stdout[-4000:]}")
    return time.monotonic() - begun, done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=Path, help="where the clone goes and stays; by default it is removed")
    options = parser.parse_args()
    folder = options.keep or Path(tempfile.mkdtemp())
    subprocess.run(["git", "clone", "-q", str(ROOT), str(folder / "torchqat")], check=True)
    rows, printed, figures = [], [], {}
    try:
        for command, variables, limit in STEPS:
            seconds, text = timed(command, variables, folder / "torchqat")
            said = " ".join([*(f"{key}={value}" for key, value in variables.items()), command])
            figures[said] = seconds
            rows.append([f"`{said}`", f"{seconds:.0f} s", f"{limit} s: {verdict(seconds, limit)}"])
            lines = [line for line in text.replace(str(folder), "").splitlines() if line.strip()]
            printed.append("\n".join([f"$ {said}", *(line[:160] for line in lines[-LINES:])]))
    finally:
        if not options.keep:
            shutil.rmtree(folder, ignore_errors=True)
    body = table(["command", "time", "goal"], rows) + "\n\n" + f"What they printed, the last {LINES} lines of each:\n\n"
    body += "```\n" + "\n\n".join(printed) + "\n```"
    publish("fresh_clone", "From a fresh clone to the first result", body, figures, "python benchmarks/fresh_clone.py")


if __name__ == "__main__":
    main()
