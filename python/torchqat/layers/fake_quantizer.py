"""One tensor's fake quantization at one width: plain values, so that ``torch.compile`` sees constants."""

from dataclasses import dataclass

from torch import Tensor

from torchqat import ops
from torchqat._library import QuantSpec


@dataclass(frozen=True)
class FakeQuantizer:
    """How a tensor is rounded; made once per width.

    Attributes:
        text: As ``ops.fake_quantize`` and ``ops.quant_linear`` take it; empty when the tensor is left as it is.
    """

    text: str = ""

    @classmethod
    def of_weight(cls, spec: QuantSpec | None, bits: int, rows: int, cols: int) -> "FakeQuantizer":
        return cls() if spec is None else cls(spec.weight_quantizer(bits, rows, cols))

    @classmethod
    def of_input(cls, spec: QuantSpec | None, bits: int, features: int) -> "FakeQuantizer":
        return cls() if spec is None else cls(spec.input_quantizer(bits, features))

    def __call__(
        self, x: Tensor, scale: Tensor | None, zero_point: Tensor | None, outer_scale: Tensor | None = None
    ) -> Tensor:
        if not self.text:
            return x
        finds = self.text.startswith(("minmax", "absmean"))
        return ops.fake_quantize(x, self.text, None if finds else scale, None if finds else zero_point, outer_scale)
