"""ModelOpt's NVFP4 and MXFP4 on a model, in an environment of its own. See ``formats.py`` beside this file.

Its fake quantization needs a GPU, so that what is asked are the tensors that its exporter writes: ``quantize``, then
``dequantize``. Inputs in NVFP4 have the outer scale that was the largest in calibration, as its exporter stores it.
"""

from collections.abc import Callable

import torch
from formats import main

BLOCK = {"nvfp4": 16, "mxfp4": 32}


def rounded(x: torch.Tensor, kind: str, outer: torch.Tensor | None = None) -> torch.Tensor:
    from modelopt.torch.quantization.qtensor import MXFP4QTensor, NVFP4QTensor

    if kind == "mxfp4":
        tensor, scale = MXFP4QTensor.quantize(x, BLOCK[kind])
        return tensor.dequantize(dtype=x.dtype, scale=scale, block_sizes={-1: BLOCK[kind]})
    tensor, scale, outer = NVFP4QTensor.quantize(x, BLOCK[kind], weights_scaling_factor_2=outer)
    return tensor.dequantize(dtype=x.dtype, scale=scale, double_scale=outer, block_sizes={-1: BLOCK[kind]})


def calibrated(model, linears: list, rows: list[list[int]]) -> dict:
    """The outer scale of each input in NVFP4: its largest magnitude over 6 * 448."""
    largest = dict.fromkeys(linears, torch.zeros(()))
    hooks = [
        linear.register_forward_pre_hook(
            lambda module, args: largest.__setitem__(module, torch.maximum(largest[module], args[0].abs().amax()))
        )
        for linear in linears
    ]
    for row in rows:
        model(torch.tensor([row]))
    for hook in hooks:
        hook.remove()
    return {linear: amax.float() / (6 * 448) for linear, amax in largest.items()}


def rounding(kind: str, outer: torch.Tensor | None) -> Callable:
    return lambda _module, args: (rounded(args[0], kind, outer),)


@torch.no_grad()
def quantize(model, rows: list[list[int]], weights: str, inputs: str):
    linears = [m for m in model.model.layers.modules() if isinstance(m, torch.nn.Linear)]
    outer = calibrated(model, linears, rows) if inputs == "nvfp4" else {}
    for linear in linears:
        linear.weight.copy_(rounded(linear.weight, weights))
        if inputs:
            linear.register_forward_pre_hook(rounding(inputs, outer.get(linear)))
    return model


if __name__ == "__main__":
    main(quantize)
