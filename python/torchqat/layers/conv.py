"""Convolutions on a quantized weight and input."""

import torch.nn.functional as F
from torch import Tensor, nn

from torchqat.layers.quant_layer import QuantLayer


class QuantConv(QuantLayer):
    """A convolution with fake quantization of its weight and input.

    The weight ``[out, in / groups, *kernel]`` is quantized as a matrix with a row for each output channel, whose
    columns are a patch: granularity ``channel`` is a scale for each output channel. The input has one scale.
    """

    _settings = (
        "in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "transposed", "output_padding",
        "groups", "padding_mode", "_reversed_padding_repeated_twice", "bias",
    )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        self._observe(x)
        inputs = self.quantized_input(x) if self.rounds(x) else x
        weight = self.quantized_weight().view(self.weight.shape)
        return self._conv_forward(inputs, weight.to(x.dtype), self.bias)

    @property
    def multiplies_rows(self) -> bool:
        return self.groups == 1

    def _padded(self, x: Tensor) -> Tensor:
        """``[batch, channels, ...]``, as its kernel goes over it."""
        batched = x if x.dim() == 2 + len(self.kernel_size) else x.unsqueeze(0)
        mode = {"zeros": "constant"}.get(self.padding_mode, self.padding_mode)
        return F.pad(batched, self._reversed_padding_repeated_twice, mode=mode)


class QuantConv1d(QuantConv, nn.Conv1d):
    """``nn.Conv1d``, its weight ``[out, in / groups, length]``."""

    kind = "Conv1d"

    def input_rows(self, x: Tensor) -> Tensor:
        """Its patches, ``[batch, positions, cols]``."""
        (length,), (stride,), (dilation,) = self.kernel_size, self.stride, self.dilation
        windows = self._padded(x).unfold(2, (length - 1) * dilation + 1, stride)[..., ::dilation]
        return windows.transpose(1, 2).flatten(2)


class QuantConv2d(QuantConv, nn.Conv2d):
    """``nn.Conv2d``, its weight ``[out, in / groups, height, width]`` and input quantized.

    ``prepare`` puts it in the place of a layer, whose parameters it shares. Inputs are ``[batch, in, height, width]`` in
    float32, float16 or bfloat16, results in the same dtype.
    """

    kind = "Conv2d"

    def input_rows(self, x: Tensor) -> Tensor:
        """Its patches, ``[batch, positions, cols]``."""
        return F.unfold(self._padded(x), self.kernel_size, self.dilation, 0, self.stride).transpose(1, 2)
