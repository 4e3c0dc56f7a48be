"""``QuantLinear``: ``nn.Linear`` on a quantized weight and input."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchqat import ops
from torchqat.layers.quant_layer import QuantLayer


class QuantLinear(QuantLayer, nn.Linear):
    """``nn.Linear`` with fake quantization of its weight ``[out, in]`` and input, as one operator."""

    kind = "Linear"
    _settings = ("in_features", "out_features", "bias")

    def forward(self, x: Tensor) -> Tensor:
        self._observe(x)
        weight, input = self._weight_quantizer.text, self._input_quantizer.text if self.input_ready else ""
        if not weight and not input:
            return F.linear(x, self.master, self.bias)
        if self.frozen_codes is not None:
            inputs = self.quantized_input(x) if self.input_ready else x
            return F.linear(inputs, self._frozen_weight(x.dtype), self.bias)
        weight_parameters, input_parameters = self._weight_parameters(), self._input_parameters()
        kept = self._kept_weight(x, *weight_parameters)
        return ops.quant_linear(
            x, self.master, self.bias, *weight_parameters, *input_parameters, kept, weight, input, self.outer_scale()
        )  # fmt: skip

    def _kept_weight(self, x: Tensor, scale: Tensor | None, zero_point: Tensor | None) -> list[Tensor]:
        """What the cache has of the weight in force. A compiled graph has no state, and so no cache."""
        alone = self.adapter is None and self.shared_outer_scale is None
        if self._cache.policy == "none" or not alone or torch.compiler.is_compiling():
            return []
        return self._cache.get(self._weight_quantizer.text, self.weight, scale, zero_point, x.dtype)
