"""llm-compressor's GPTQ of one layer from a ready Hessian, in an environment of its own, for benchmarks/gptq_speed.py.

Reads names of files from standard input, each with ``weight``, ``hessian`` and ``group``; answers each with the seconds that
rounding took and the error of the layer's output, as JSON in one line.
"""

import json
import sys
import time

import torch


def rounded(weight, hessian, group: int):
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.utils import calculate_qparams
    from llmcompressor.modifiers.gptq.gptq_quantize import quantize_weight

    args = QuantizationArgs(num_bits=4, type="int", symmetric=True, strategy="group", group_size=group)
    copies = weight.clone()[None], hessian.clone()[None]  # it works in place
    begun = time.perf_counter()
    groups = weight.view(len(weight), -1, group)
    scale, zero_point = calculate_qparams(groups.amin(-1), groups.amax(-1), args)
    found = quantize_weight(*copies, scale[None], zero_point[None], None, args)
    return found[0][0], time.perf_counter() - begun


def main() -> None:
    for line in sys.stdin:
        case = torch.load(line.strip())
        weight, seconds = rounded(case["weight"], case["hessian"], case["group"])
        delta = case["weight"] - weight.float()
        error = ((delta @ case["hessian"]) * delta).sum(dtype=torch.float64).item()
        print(json.dumps({"seconds": seconds, "error": error}), flush=True)


if __name__ == "__main__":
    main()
