"""``PackedLinear``: a linear layer for inference whose weight stays packed in memory."""

import torch
from torch import Tensor, nn

from torchqat import ops
from torchqat._library import QuantizedWeights, pack_weights


class PackedLinear(nn.Module):
    """``nn.Linear`` on a weight that stays in 4 or 8 bits; on a CPU its product reads the codes as they are.

    Inputs are rounded as training rounded them. Up to the rounding of sums the result is that of dequantizing first,
    numerics.md (35). It runs on a CPU, where it is made, too, whatever device the weights come from. It gives no
    gradients, and refuses an input that wants one.

    Args:
        weights: What ``convert`` gives, of an integer grid.
        bias: ``[out]`` or ``None``; it is added in the dtype of the input.

    Attributes:
        weight_spec: How the weight is quantized.
        input_spec: How the input is, or ``None``.

    Raises:
        ValueError: The weights are FP8.
    """

    def __init__(self, weights: QuantizedWeights, bias: Tensor | None = None):
        super().__init__()
        packed = pack_weights(weights)
        self.out_features, self.in_features = weights.codes.shape
        self.weight_spec, self.input_spec = weights.weight, weights.input
        self.bits, self.group_size = packed.bits, packed.group_size
        self.register_buffer("panels", packed.panels)
        self.register_buffer("scale", packed.scale)
        self.register_buffer("zero_point", packed.zero_point)
        self.register_buffer("bias", None if bias is None else bias.detach().cpu().clone())
        self.register_buffer("input_scale", _square(weights.input_scale))
        self.register_buffer("input_zero_point", _square(weights.input_zero_point))

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return ops.packed_linear(
            self.rounded_input(x), self.panels, self.scale, self.zero_point, bias,
            self.bits, self.group_size, self.out_features,
        )  # fmt: skip

    def rounded_input(self, x: Tensor) -> Tensor:
        """The input as it is multiplied, in the shape and dtype of ``x``."""
        spec = self.input_spec
        if spec is None:
            return x
        if spec.dynamic:
            return ops.fake_quantize(x, spec.quantizer(spec.bits, "minmax"))
        return ops.fake_quantize(x, spec.quantizer(spec.bits, "fixed"), self.input_scale, self.input_zero_point)

    @property
    def weight(self) -> Tensor:
        """The dequantized weight ``[out, in]`` in the dtype of the scales, made when it is asked for."""
        codes = ops.unpack_panels(self.panels, self.bits, self.group_size, self.out_features, self.in_features)
        scale, zero_point = (
            None if values is None else torch.ops.qat.unpack_panel_values(values, self.out_features)
            for values in (self.scale, self.zero_point)
        )
        return ops.dequantize(codes, scale.float(), zero_point, (1, self.group_size), scale.dtype)

    @property
    def nbytes(self) -> int:
        """Bytes of weight, scales, zero points and bias."""
        return sum(t.nbytes for t in (self.panels, self.scale, self.zero_point, self.bias) if t is not None)

    def extra_repr(self) -> str:
        sizes = f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
        return f"{sizes}, weight={self.weight_spec}, input={self.input_spec or 'float'}"


def _square(value: Tensor | None) -> Tensor | None:
    return None if value is None else value.detach().cpu().reshape(1, 1)
