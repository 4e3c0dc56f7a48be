"""ONNX graphs in which DequantizeLinear turns the trained codes into weights (opset 21: INT4 in blocks)."""

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from torchqat._library import QuantizedWeights, find_format
from torchqat.errors import UserError, first_line

OPSET = 21  # the first with INT4 and block_size
# Protobuf holds 2 GB; what is larger goes into a file beside the graph.
_MOST_INLINE_BYTES = 1 << 30


def write_onnx(model: nn.Module, layers: Iterable[QuantizedWeights], path: Path, example: Any) -> None:
    """Write ``model`` to ``path``.

    Args:
        model: A prepared model.
        layers: Its quantized layers.
        path: The file.
        example: Inputs that the graph is traced with: a tensor or a tuple of them, whose first dimension stays free.

    Raises:
        UserError: There is no example, or torch cannot export the model.
    """
    import onnx

    inputs = as_inputs(example)
    deployed = copy.deepcopy(model).eval()
    bits: dict[str, int] = {}
    for layer in layers:
        parent, _, leaf = layer.name.rpartition(".")
        setattr(deployed.get_submodule(parent), leaf, _Deployed(layer, model.get_submodule(layer.name).bias))
        bits[layer.name] = layer.weight.bits
    graph = _export(deployed, inputs)
    for initializer in graph.graph.initializer:
        name, _, leaf = initializer.name.rpartition(".")
        if bits.get(name, 8) <= 4 and leaf in ("codes", "zero_point"):
            _pack(initializer)
    onnx.checker.check_model(graph)
    large = graph.ByteSize() > _MOST_INLINE_BYTES
    onnx.save(graph, path, save_as_external_data=large, location=f"{path.name}.data" if large else None)


def as_inputs(example: Any) -> tuple[Tensor, ...]:
    """``example`` as a tuple of tensors.

    Raises:
        UserError: There is none.
    """
    if example is None:
        raise UserError(
            "example must be given for onnx, as the tensor or the tuple of tensors that the model takes, but is not."
        )
    return tuple(example) if isinstance(example, (tuple, list)) else (example,)


class _Deployed(nn.Module):
    """A linear layer as the graph will have it: its nodes are written as they are, not traced."""

    def __init__(self, layer: QuantizedWeights, bias: Tensor | None):
        super().__init__()
        tensors = find_format("onnx").tensors(layer)
        self.register_buffer("codes", tensors[f"{layer.name}.weight"])
        self.register_buffer("scale", tensors[f"{layer.name}.scale"])
        self.register_buffer("zero_point", tensors.get(f"{layer.name}.zero_point"))
        self.register_buffer("bias", None if bias is None else bias.detach().clone())
        self.axis = {"axis": 1} if layer.weight.granularity == "channel" else {}
        if layer.weight.granularity == "group":
            self.axis = {"axis": 0, "block_size": layer.weight.group_size}
        self.input = layer.input
        if self.input is not None:
            zero = layer.input_zero_point
            self.register_buffer("input_scale", layer.input_scale.reshape(()))
            self.register_buffer(
                "input_zero_point", torch.zeros((), dtype=torch.int8) if zero is None else zero.reshape(())
            )
            low, _ = self.input.quant_range(8)
            # The narrow grid ends at -127, where QuantizeLinear would go on to -128.
            self.register_buffer("input_low", low * self.input_scale if low > -128 else None)

    def forward(self, x: Tensor) -> Tensor:
        inputs = [self.codes, self.scale] + ([self.zero_point] if self.zero_point is not None else [])
        weight = _node("DequantizeLinear", inputs, self.scale.dtype, self.codes.shape, **self.axis)
        if self.input is not None:
            x = self._rounded(x)
        y = torch.matmul(x, weight.to(x.dtype))
        # Not Add, and without a bias a sum of one: of a product and what is added or applied to it, onnxruntime makes one
        # node, before it looks for products that could take packed weights.
        return _node("Sum", [y] if self.bias is None else [y, self.bias], y.dtype, y.shape)

    def _rounded(self, x: Tensor) -> Tensor:
        qparams = [self.input_scale.to(x.dtype), self.input_zero_point]
        if self.input_low is not None:
            x = _node("Max", [x, self.input_low.to(x.dtype)], x.dtype, x.shape)
        codes = _node("QuantizeLinear", [x, *qparams], torch.int8, x.shape)
        return _node("DequantizeLinear", [codes, *qparams], x.dtype, x.shape)


def _node(kind: str, inputs: list[Tensor], dtype: torch.dtype, shape: torch.Size, **attributes: int) -> Tensor:
    return torch.onnx.ops.symbolic(kind, inputs, attributes, dtype=dtype, shape=shape, version=OPSET)


def _export(model: nn.Module, inputs: tuple[Tensor, ...]):
    free = tuple({0: torch.export.Dim.DYNAMIC} if x.dim() else {} for x in inputs)
    try:
        with _quiet():
            program = torch.onnx.export(
                model, inputs, dynamo=True, opset_version=OPSET, dynamic_shapes=free, optimize=False, verbose=False
            )  # fmt: skip
    except Exception as error:
        raise UserError(f"torch could not export the model to ONNX: {first_line(error)}") from error
    return program.model_proto


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter says much that is no news to whoever asked for a file."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _pack(initializer) -> None:
    """INT8 to INT4, two to a byte, the first in the low nibble."""
    import onnx

    codes = np.frombuffer(initializer.raw_data, dtype=np.uint8) & 15
    padded = np.append(codes, np.zeros(codes.size % 2, dtype=np.uint8))
    initializer.raw_data = (padded[::2] | (padded[1::2] << 4)).tobytes()
    initializer.data_type = onnx.TensorProto.INT4
