"""Transposed convolutions on a quantized weight and input."""

import torch.nn.functional as F
from torch import Tensor, nn

from torchqat.layers.conv import QuantConv
from torchqat.layers.sharded import whole


class QuantConvTranspose(QuantConv):
    """A transposed convolution; its weight ``[in, out / groups, *kernel]`` is a matrix with a row an output channel."""

    rounds_shards = False

    @property
    def matrix_shape(self) -> tuple[int, int]:
        return self.out_channels, self.weight.numel() // self.out_channels

    @property
    def master(self) -> Tensor:
        return self._by_output(whole(self.weight)).reshape(self.matrix_shape)

    @property
    def multiplies_rows(self) -> bool:
        """What a row is multiplied with overlaps differently at each output: the weight is rounded without inputs."""
        return False

    def _by_output(self, weight: Tensor) -> Tensor:
        """``[groups, out / groups, in / groups, *kernel]``."""
        inputs, outputs, *kernel = weight.shape
        return weight.view(self.groups, inputs // self.groups, outputs, *kernel).transpose(1, 2)

    def shaped(self, matrix: Tensor) -> Tensor:
        inputs, outputs, *kernel = self.weight.shape
        by_output = matrix.view(self.groups, outputs, inputs // self.groups, *kernel)
        return by_output.transpose(1, 2).reshape(self.weight.shape)

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        self._observe(x)
        inputs = self.quantized_input(x) if self.rounds(x) else x
        weight = self.shaped(self.quantized_weight()).to(x.dtype)
        dimensions = len(self.kernel_size)
        added = self._output_padding(
            x, output_size, self.stride, self.padding, self.kernel_size, dimensions, self.dilation
        )
        convolve = F.conv_transpose1d if dimensions == 1 else F.conv_transpose2d
        return convolve(inputs, weight, self.bias, self.stride, self.padding, added, self.groups, self.dilation)


class QuantConvTranspose1d(QuantConvTranspose, nn.ConvTranspose1d):
    """``nn.ConvTranspose1d``."""

    kind = "ConvTranspose1d"


class QuantConvTranspose2d(QuantConvTranspose, nn.ConvTranspose2d):
    """``nn.ConvTranspose2d``."""

    kind = "ConvTranspose2d"
