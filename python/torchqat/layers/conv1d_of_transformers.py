"""``QuantConv1D``: transformers' ``Conv1D``, a linear layer whose weight lies as GPT-2's does, ``[in, out]``."""

import sys

import torch
from torch import Tensor, nn

from torchqat import ops
from torchqat.layers.quant_layer import QuantLayer
from torchqat.layers.sharded import whole


def conv1d_class() -> type[nn.Module] | None:
    """transformers' class, where a program has it: a model that has such layers has imported it."""
    module = sys.modules.get("transformers.pytorch_utils")
    return getattr(module, "Conv1D", None)


class QuantConv1D(QuantLayer):
    """A linear layer with fake quantization of its weight, which is stored as ``[in, out]``, and of its input."""

    kind = "Conv1D"
    _settings = ("nx", "nf", "bias")
    rounds_shards = False

    @property
    def matrix_shape(self) -> tuple[int, int]:
        return self.nf, self.nx

    @property
    def master(self) -> Tensor:
        return whole(self.weight).t().contiguous()

    def shaped(self, matrix: Tensor) -> Tensor:
        return matrix.t()

    def forward(self, x: Tensor) -> Tensor:
        self._observe(x)
        weight, input = self._weight_quantizer.text, self._input_quantizer.text if self.rounds(x) else ""
        if self.frozen_codes is not None:
            inputs = self.quantized_input(x) if input else x
            return torch.nn.functional.linear(inputs, self._frozen_weight(x.dtype), self.bias)
        if not weight and not input:
            return torch.nn.functional.linear(x, self.master, self.bias)
        *input_parameters, input_outer_scale = self._input_parameters() if input else (None, None, None)
        return ops.quant_linear(
            x, self.master, self.bias, *self._weight_parameters(), *input_parameters, [], weight, input,
            self.outer_scale(), input_outer_scale,
        )  # fmt: skip
