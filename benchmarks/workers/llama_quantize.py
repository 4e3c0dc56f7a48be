"""llama.cpp's own quantizer, for the Python that has llama-cpp-python; tests of the engine run it, too.

    python llama_quantize.py SOURCE TARGET TYPE [MATRIX PACKAGES]

TYPE is the number of a type of files in llama.h. MATRIX is an importance matrix in GGUF, PACKAGES the folder of the package
gguf, which reads it. Exits with what llama.cpp returns, 0 where TARGET was written.
"""

import ctypes
import sys

import llama_cpp as C


def means_of(matrix: str) -> dict:
    """Of each tensor that the file ``matrix`` knows, the mean square of what enters a column, float32."""
    import gguf
    import numpy as np

    tensors = {tensor.name: tensor.data for tensor in gguf.GGUFReader(matrix).tensors}
    names = [name.removesuffix(".counts") for name in tensors if name.endswith(".counts")]
    means = {name: tensors[name + ".in_sum2"] / np.maximum(1, tensors[name + ".counts"]) for name in names}
    return {name: mean.ravel().astype(np.float32) for name, mean in means.items()}


def entries_of(means: dict):
    """As llama.cpp takes them, the last one empty; they point to the numbers of ``means``."""
    entries = (C.llama_model_imatrix_data * (len(means) + 1))()
    for entry, (name, mean) in zip(entries, means.items(), strict=False):
        entry.name, entry.size = name.encode(), mean.size
        entry.data = mean.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    return entries


def main(source: str, target: str, kind: str, matrix: str = "", packages: str = "") -> int:
    settings = C.llama_model_quantize_default_params()
    settings.ftype, settings.nthread, settings.allow_requantize = int(kind), 1, True
    if matrix:
        sys.path.insert(0, packages)
        means = means_of(matrix)
        if means:
            settings.imatrix = entries_of(means)
    return C.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(settings))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
