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
import torch.nn.functional as F
from torch import Tensor, nn

from torchqat._library import LayerPlan, QuantizedWeights, find_format
from torchqat.data.batch import as_inputs
from torchqat.device import CPU
from torchqat.errors import UserError, first_line, first_of
from torchqat.layers.conv import QuantConv
from torchqat.layers.quant_layer import QuantLayer

OPSET = 21  # the first with INT4 and block_size
# Protobuf holds 2 GB; what is larger goes into a file beside the graph.
_MOST_INLINE_BYTES = 1 << 30
# Of its products of floats with codes: 1 is float32, by default it is 8-bit integers.
ACCURACY = "session.qdq_matmulnbits_accuracy_level"


def products_note(layers: Iterable[LayerPlan]) -> str:
    """A sentence where onnxruntime, left to itself, would round inputs that training does not; else empty."""
    bare = [layer.name for layer in layers if layer.type == "Linear" and layer.weight and not layer.input]
    if not bare:
        return ""
    return (
        f"onnxruntime by itself rounds what enters {first_of(bare)} to 8 bits, which training has not seen: open the graph "
        f"with the session option {ACCURACY} set to 1, as verify does unless it times."
    )


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
        setattr(deployed.get_submodule(parent), leaf, _deployed(layer, model.get_submodule(layer.name)))
        bits[layer.name] = layer.weight.bits
    graph = _export(deployed.to(CPU), tuple(tensor.to(CPU) for tensor in inputs))
    for initializer in graph.graph.initializer:
        name, _, leaf = initializer.name.rpartition(".")
        if bits.get(name, 8) <= 4 and leaf in ("codes", "zero_point"):
            _pack(initializer)
    onnx.checker.check_model(graph)
    large = graph.ByteSize() > _MOST_INLINE_BYTES
    onnx.save(graph, path, save_as_external_data=large, location=f"{path.name}.data" if large else None)


def _deployed(layer: QuantizedWeights, module: QuantLayer) -> nn.Module:
    kinds = {"Linear": _Linear, "Conv1d": _Conv, "Conv2d": _Conv, "Embedding": _Embedding}
    return kinds[module.kind](layer, module)


class _Deployed(nn.Module):
    """A layer as the graph will have it: the nodes of its numbers are written as they are, not traced."""

    def __init__(self, layer: QuantizedWeights, module: QuantLayer):
        super().__init__()
        self.axis: dict[str, int] = {}
        self._register_weight(layer, module)
        bias = getattr(module, "bias", None)
        self.register_buffer("bias", None if bias is None else bias.detach().clone())
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

    def _register_weight(self, layer: QuantizedWeights, module: QuantLayer) -> None:
        """As rows and columns are; scales vary along the rows."""
        spec = layer.weight
        shape = {"tensor": (), "channel": (-1,)}.get(spec.granularity, layer.scale.shape)
        self._register(layer.codes.view(module.weight.shape), layer.scale.reshape(shape), layer.zero_point)
        if spec.granularity == "channel":
            self.axis = {"axis": 0}
        if spec.granularity == "group":
            self.axis = {"axis": 1, "block_size": spec.group_size}

    def _register(self, codes: Tensor, scale: Tensor, zero_point: Tensor | None) -> None:
        self.register_buffer("codes", codes)
        self.register_buffer("scale", scale)
        self.register_buffer("zero_point", None if zero_point is None else zero_point.reshape(scale.shape))

    def weight(self, dtype: torch.dtype) -> Tensor:
        inputs = [self.codes, self.scale] + ([self.zero_point] if self.zero_point is not None else [])
        return _node("DequantizeLinear", inputs, self.scale.dtype, self.codes.shape, **self.axis).to(dtype)

    def rounded(self, x: Tensor) -> Tensor:
        """The input as it is rounded, where it is."""
        if self.input is None:
            return x
        qparams = [self.input_scale.to(x.dtype), self.input_zero_point]
        if self.input_low is not None:
            x = _node("Max", [x, self.input_low.to(x.dtype)], x.dtype, x.shape)
        codes = _node("QuantizeLinear", [x, *qparams], torch.int8, x.shape)
        return _node("DequantizeLinear", [codes, *qparams], x.dtype, x.shape)


class _Linear(_Deployed):
    """Its weight lies as MatMul takes it, ``[in, out]``."""

    def _register_weight(self, layer: QuantizedWeights, module: QuantLayer) -> None:
        tensors = find_format("onnx").tensors(layer)
        zero_point = tensors.get(f"{layer.name}.zero_point")
        self._register(tensors[f"{layer.name}.weight"], tensors[f"{layer.name}.scale"], zero_point)
        if layer.weight.granularity == "channel":
            self.axis = {"axis": 1}
        if layer.weight.granularity == "group":
            self.axis = {"axis": 0, "block_size": layer.weight.group_size}

    def forward(self, x: Tensor) -> Tensor:
        y = torch.matmul(self.rounded(x), self.weight(x.dtype))
        # Not Add, and without a bias a sum of one: of a product and what is added or applied to it, onnxruntime makes one
        # node, before it looks for products that could take packed weights.
        return _node("Sum", [y] if self.bias is None else [y, self.bias], y.dtype, y.shape)


class _Conv(_Deployed):
    """Its weight lies as Conv takes it."""

    def __init__(self, layer: QuantizedWeights, module: QuantConv):
        super().__init__(layer, module)
        self.convolution = [module._conv_forward]  # in a list: not a part of the graph's model

    def forward(self, x: Tensor) -> Tensor:
        return self.convolution[0](self.rounded(x), self.weight(x.dtype), self.bias)


class _Embedding(_Deployed):
    """Entries in rows. All of them become floats before any is looked up; onnxruntime does that once, while it loads."""

    def forward(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.weight(self.scale.dtype))


def _node(kind: str, inputs: list[Tensor], dtype: torch.dtype, shape: torch.Size, **attributes: int) -> Tensor:
    return torch.onnx.ops.symbolic(kind, inputs, attributes, dtype=dtype, shape=shape, version=OPSET)


def _export(model: nn.Module, inputs: tuple[Tensor, ...]):
    free = tuple({place: torch.export.Dim.DYNAMIC for place in range(_free_dims(x))} for x in inputs)
    try:
        with _quiet():
            program = torch.onnx.export(
                model, inputs, dynamo=True, opset_version=OPSET, dynamic_shapes=free, optimize=False, verbose=False
            )  # fmt: skip
    except Exception as error:
        raise UserError(f"torch could not export the model to ONNX: {first_line(error)}") from error
    return program.model_proto


def _free_dims(x: Tensor) -> int:
    """Leading dimensions that may be others when the graph runs: the batch, and of token ids the tokens."""
    return min(x.dim(), 1 if x.is_floating_point() else 2)


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
