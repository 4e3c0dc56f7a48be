"""llama.cpp's own quantizer, by the Python that has llama-cpp-python."""

import os
import subprocess
from pathlib import Path

_PROGRAM = """
import ctypes, sys, llama_cpp
settings = llama_cpp.llama_model_quantize_default_params()
settings.ftype, settings.nthread, settings.allow_requantize = int(sys.argv[3]), 1, True
sys.exit(llama_cpp.llama_model_quantize(sys.argv[1].encode(), sys.argv[2].encode(), ctypes.byref(settings)))
"""


def llama_quantize(source: Path, target: Path, file_type: int) -> None:
    """Write ``source`` again as ``target``, of a file type of llama.h; 0 is float32."""
    command = [os.environ["TORCHQAT_LLAMA_CPP"], "-c", _PROGRAM, str(source), str(target), str(file_type)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
