"""Fake quantization of a weight as others do it, each as ``f(weight) -> rounded weight`` with autograd.

Peers live outside the environment that torchqat is tested in: ``make bench`` puts them on the path.
"""

import json
import logging
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils import parametrize

Quantize = Callable[[Tensor], Tensor]


def torchao(group: int, symmetric: bool = True) -> Quantize | None:
    """torchao's own module for QAT, INT4 in groups."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            from torchao.quantization.qat import IntxFakeQuantizeConfig
            from torchao.quantization.qat.fake_quantizer import IntxFakeQuantizer
        except ImportError:
            return None
        finally:
            logging.disable(logging.NOTSET)
    return IntxFakeQuantizer(IntxFakeQuantizeConfig(torch.int4, group_size=group, is_symmetric=symmetric))


def straight_through(group: int) -> Quantize:
    """What people write by hand: the same grid as torchqat's ``narrow``, with float32 scales."""

    def quantize(weight: Tensor) -> Tensor:
        grouped = weight.reshape(-1, group).float()
        scale = grouped.detach().abs().amax(1, keepdim=True).clamp(min=1e-9) / 7
        inverse = 1 / scale
        rounded = (torch.round(grouped * inverse).clamp(-7, 7) * scale).view_as(weight).to(weight.dtype)
        return weight + (rounded - weight).detach()

    return quantize


def aten_per_channel(group: int) -> Quantize:
    """ATen's fused operator, one channel a group; its scales are given."""

    def quantize(weight: Tensor) -> Tensor:
        grouped = weight.reshape(-1, group)
        scale = grouped.detach().abs().amax(1) / 7
        zero = torch.zeros_like(scale, dtype=torch.int32)
        return torch.fake_quantize_per_channel_affine(grouped, scale, zero, 0, -7, 7).view_as(weight)

    return quantize


def aten_learnable(group: int) -> Quantize:
    """ATen's operator with gradients of scale and zero point."""

    def quantize(weight: Tensor) -> Tensor:
        grouped = weight.reshape(-1, group)
        scale = (grouped.detach().abs().amax(1) / 7).requires_grad_()
        zero = torch.zeros_like(scale)
        return torch._fake_quantize_learnable_per_channel_affine(grouped, scale, zero, 0, -7, 7, 1.0).view_as(weight)

    return quantize


def brevitas(group: int, weight: Tensor, symmetric: bool = True) -> Quantize | None:
    """Brevitas' INT4 weights in groups, scale from the range, as its linear layer calls them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            from brevitas.nn import QuantLinear
            from brevitas.quant.shifted_scaled_int import ShiftedUint8WeightGroupQuantFloat
            from brevitas_examples.common.generative.quantizers import IntWeightSymmetricGroupQuant
        except ImportError:
            return None
        layer = QuantLinear(
            weight.shape[1], weight.shape[0], bias=False, weight_bit_width=4, weight_group_size=group, dtype=weight.dtype,
            weight_quant=IntWeightSymmetricGroupQuant if symmetric else ShiftedUint8WeightGroupQuantFloat,
        )  # fmt: skip
    return lambda w: layer.weight_quant(w).value


class Earlier:
    """An earlier state of torchqat, whose library of operators runs in a process of its own.

    Attributes:
        cases: One call each, by name, which returns the seconds of a forward and backward.
    """

    def __init__(self, library: str, size: int, dtype: torch.dtype, group: int):
        worker = Path(__file__).parent / "workers" / "earlier.py"
        arguments = [library, str(size), str(dtype).removeprefix("torch."), str(group)]
        self._process = subprocess.Popen(
            [sys.executable, worker, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        names = json.loads(self._process.stdout.readline())
        self.cases = {name: lambda name=name: self._seconds(name) for name in names}

    def _seconds(self, name: str) -> float:
        print(name, file=self._process.stdin, flush=True)
        return float(self._process.stdout.readline())

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()


def compiled(quantize: Quantize | None) -> Quantize | None:
    """The same under ``torch.compile``, for static shapes."""
    return None if quantize is None else torch.compile(quantize, dynamic=False)


def torchao_model(model: torch.nn.Module, weights: str, inputs: bool) -> torch.nn.Module | None:
    """A model prepared by torchao for INT4 weights in groups of 32 and, where asked, INT8 inputs per token.

    Its training in NVFP4 and MXFP4 rounds inputs too, and NVFP4's needs a GPU of compute capability 10: for these its
    tensors convert the weight alone, straight through.
    """
    if torchao(32) is None:
        return None
    linears = {name: m for name, m in model.named_modules() if isinstance(m, torch.nn.Linear) and "lm_head" not in name}
    if weights != "int4":
        for linear in linears.values():
            parametrize.register_parametrization(linear, "weight", _Converted(weights), unsafe=True)
        return model
    from torchao.quantization import quantize_
    from torchao.quantization.qat import IntxFakeQuantizeConfig, QATConfig

    weight = IntxFakeQuantizeConfig(torch.int4, group_size=32, is_symmetric=True)
    activation = IntxFakeQuantizeConfig(torch.int8, "per_token", is_symmetric=False) if inputs else None
    config = QATConfig(activation_config=activation, weight_config=weight, step="prepare")
    quantize_(model, config, filter_fn=lambda _, name: name in linears)
    return model


class _Converted(torch.nn.Module):
    """A weight as torchao's NVFP4 or MXFP4 tensors hold it; gradients pass as they are."""

    def __init__(self, weights: str):
        super().__init__()
        self._weights = weights

    def forward(self, weight: Tensor) -> Tensor:
        from torchao.prototype.mx_formats.mx_tensor import MXTensor
        from torchao.prototype.mx_formats.nvfp4_tensor import NVFP4Tensor, per_tensor_amax_to_scale

        with torch.no_grad():
            if self._weights == "nvfp4":
                outer = per_tensor_amax_to_scale(weight.abs().max())
                held = NVFP4Tensor.to_nvfp4(weight, per_tensor_scale=outer)
            else:
                held = MXTensor.to_mx(weight, torch.float4_e2m1fn_x2, 32)
            rounded = held.dequantize(weight.dtype)
        return weight + (rounded - weight).detach()
