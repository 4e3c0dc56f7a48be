"""The fake quantization of an earlier state, for ``fake_quantize.py --earlier LIBRARY``:

    python benchmarks/workers/earlier.py LIBRARY SIZE DTYPE GROUP

LIBRARY is that state's ``libqat_ops.so``. Prints the names of its cases as JSON, then for every name that it reads the
seconds that one forward and backward took. Knows the operators of before there was one for all quantizers.
"""

import json
import sys
import time
from functools import partial

import torch

# For the other process' threads to stop waiting for work, which they do on our cores.
PAUSE = 0.003


def earlier_cases(weight: torch.Tensor, group: int) -> dict:
    qat, block = torch.ops.qat, [1, group]
    cases = {}
    for grid in ("narrow", "full", "signed", "asymmetric"):
        run = partial(qat.fake_quantize_dynamic, block=block, bits=4, grid=grid, scale_dtype=torch.bfloat16)
        cases[grid] = (lambda w, run=run: run(w)[0], [])
    scale, zero = qat.choose_qparams(weight.detach(), block, 4, "asymmetric", "minmax", torch.bfloat16)
    scale.requires_grad_()
    learned_zero = zero.float().requires_grad_()
    for name, zero_point in (("learned", None), ("learned, zero point", learned_zero)):
        run = partial(
            qat.fake_quantize_learned, scale=scale, zero_point=zero_point, block=block, quant_min=-8, quant_max=7,
            scale_dtype=torch.bfloat16, gradient_scale=0.1,
        )  # fmt: skip
        cases[name] = (run, [scale] if zero_point is None else [scale, zero_point])
    return cases


def main() -> None:
    library, size, dtype, group = sys.argv[1:5]
    torch.ops.load_library(library)
    torch.manual_seed(0)
    weight = (torch.randn(int(size), int(size)) * 0.02).to(getattr(torch, dtype)).requires_grad_()
    grad = torch.randn(int(size), int(size)).to(weight.dtype)
    cases = earlier_cases(weight, int(group))
    print(json.dumps(list(cases)), flush=True)
    for line in sys.stdin:
        quantize, others = cases[line.strip()]
        time.sleep(PAUSE)
        start = time.perf_counter()
        torch.autograd.grad(quantize(weight), [weight, *others], grad)
        print(time.perf_counter() - start, flush=True)
        time.sleep(PAUSE)


if __name__ == "__main__":
    main()
