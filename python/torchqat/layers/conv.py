"""``QuantConv2d``: ``nn.Conv2d`` on a quantized weight and input."""

import torch.nn.functional as F
from torch import Tensor, nn

from torchqat.layers.quant_layer import QuantLayer


class QuantConv2d(QuantLayer, nn.Conv2d):
    """``nn.Conv2d`` with fake quantization of its weight and input.

    The weight ``[out, in / groups, height, width]`` is quantized as a matrix with a row for each output channel, whose
    columns are a patch: granularity ``channel`` is a scale for each output channel. The input has one scale.
    """

    kind = "Conv2d"
    _settings = (
        "in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "transposed", "output_padding",
        "groups", "padding_mode", "_reversed_padding_repeated_twice", "bias",
    )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        self._observe(x)
        inputs = self.quantized_input(x) if self.input_ready else x
        weight = self.quantized_weight().view(self.weight.shape)
        return self._conv_forward(inputs, weight.to(x.dtype), self.bias)

    @property
    def multiplies_rows(self) -> bool:
        return self.groups == 1

    def input_rows(self, x: Tensor) -> Tensor:
        """Its patches, ``[batch, positions, cols]``."""
        padding = self._reversed_padding_repeated_twice
        mode = {"zeros": "constant"}.get(self.padding_mode, self.padding_mode)
        padded = F.pad(x if x.dim() == 4 else x.unsqueeze(0), padding, mode=mode)
        return F.unfold(padded, self.kernel_size, self.dilation, 0, self.stride).transpose(1, 2)
