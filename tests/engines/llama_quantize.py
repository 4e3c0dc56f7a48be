"""llama.cpp's own quantizer, by the Python that has llama-cpp-python."""

import os
import subprocess
from pathlib import Path

import gguf

_PROGRAM = Path(__file__).parents[2] / "benchmarks" / "workers" / "llama_quantize.py"


def run_quantizer(
    source: Path, target: Path, file_type: int, matrix: Path | None = None
) -> subprocess.CompletedProcess:
    """Ask for ``source`` once more as ``target``, of a file type of llama.h, by the importance matrix ``matrix``."""
    given = [] if matrix is None else [matrix, Path(gguf.__file__).parents[1]]
    command = [os.environ["TORCHQAT_LLAMA_CPP"], _PROGRAM, source, target, file_type, *given]
    return subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=600)


def llama_quantize(source: Path, target: Path, file_type: int) -> None:
    """Write ``source`` again as ``target``, of a file type of llama.h; 0 is float32."""
    done = run_quantizer(source, target, file_type)
    assert done.returncode == 0, done.stderr[-2000:]
