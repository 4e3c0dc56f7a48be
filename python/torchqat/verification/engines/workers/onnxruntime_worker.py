"""Modules in onnxruntime; not a language model's worker, but run like one.

python onnxruntime_worker.py MODEL.onnx INPUTS.npz OUTPUTS.npz [REPEATS]
"""

import json
import resource
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime


def run(path: str, arrays: list[np.ndarray], repeats: int = 0) -> tuple[list[np.ndarray], dict]:
    """Outputs for ``arrays``, in the order of the graph's inputs; seconds of loading and of ``repeats`` runs."""
    began = time.perf_counter()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if not repeats:
        # By itself, onnxruntime rounds what enters 4-bit products to 8 bits; in float32 its sums can be told from mistakes.
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    times = {"load_seconds": time.perf_counter() - began, "run_seconds": []}
    names = [value.name for value in session.get_inputs()]
    outputs = session.run(None, dict(zip(names, arrays, strict=True)))
    for _ in range(repeats):
        began = time.perf_counter()
        session.run(None, dict(zip(names, arrays, strict=True)))
        times["run_seconds"].append(time.perf_counter() - began)
    return outputs, times


def main(path: str, inputs: str, outputs: str, repeats: str = "0") -> None:
    with np.load(inputs) as found:
        arrays = [found[f"arr_{i}"] for i in range(len(found.files))]
    results, times = run(path, arrays, int(repeats))
    np.savez(outputs, *results)
    times["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    Path(outputs + ".json").write_text(json.dumps(times))


if __name__ == "__main__":
    main(*sys.argv[1:])
