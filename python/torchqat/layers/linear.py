"""``QuantLinear``: ``nn.Linear`` on a quantized weight and input."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchqat import ops
from torchqat.layers.kept_weight import capturing
from torchqat.layers.quant_layer import QuantLayer


class QuantLinear(QuantLayer, nn.Linear):
    """``nn.Linear`` with fake quantization of its weight ``[out, in]`` and input, as one operator.

    ``prepare`` puts it in the place of a layer, whose parameters it shares. Inputs are ``[..., in]`` in float32, float16 or
    bfloat16, results ``[..., out]`` in the same dtype.
    """

    kind = "Linear"
    _settings = ("in_features", "out_features", "bias")

    def forward(self, x: Tensor) -> Tensor:
        self._observe(x)
        weight, input = self._weight_quantizer.text, self._input_quantizer.text if self.rounds(x) else ""
        if not weight and not input:
            return F.linear(x, self.master, self.bias)
        if self.frozen_codes is not None:
            inputs = self.quantized_input(x) if input else x
            return F.linear(inputs, self._frozen_weight(x.dtype), self.bias)
        *input_parameters, input_outer_scale = self._input_parameters() if input else (None, None, None)
        if self.gathered_rounded or not weight:  # whose scale then has no gradient
            return ops.quant_linear(
                x, self.master, self.bias, None, None, *input_parameters, [], "", input, None, input_outer_scale
            )
        weight_parameters = self._weight_parameters()
        outer_scale = self.outer_scale()
        kept = self._kept_weight(x, *weight_parameters, outer_scale)
        return ops.quant_linear(
            x, self.master, self.bias, *weight_parameters, *input_parameters, kept, weight, input, outer_scale,
            input_outer_scale,
        )  # fmt: skip

    @property
    def keeps_weight(self) -> bool:
        """Not in a compiled graph, which has no state, nor in one of CUDA, which is replayed when what was kept is gone."""
        if torch.compiler.is_compiling() or self._cache.policy == "none" or capturing(self.weight):
            return False
        return self.adapter is None and self.frozen_codes is None

    def _kept_weight(
        self, x: Tensor, scale: Tensor | None, zero_point: Tensor | None, outer_scale: Tensor | None = None
    ) -> list[Tensor]:
        """What the cache has of the weight in force."""
        if not self.keeps_weight:
            return []
        self._maker.forget_what_was_stepped(self._cache)
        kept = self._cache.get(self._weight_quantizer.text, self.weight, scale, zero_point, x.dtype, outer_scale)
        return self._maker.hand_out(self._cache, kept)
