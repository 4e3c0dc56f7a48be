"""ONNX graphs by the onnx package, weights by its reference evaluator."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from torchqat.checkpoints.readers.reading import Reading
from torchqat.errors import UserError, first_line


def read_onnx(folder: Path) -> Reading:
    """The graph in ``folder``: what each DequantizeLinear of codes gives, as a matrix ``[out, in]``, and what else it holds.

    What is multiplied lies ``[in, out]`` in the graph; kernels and entries of embeddings lie in rows. What no output is
    computed from counts as not there.

    Raises:
        UserError: The file is damaged.
    """
    import onnx

    file = next(iter(sorted(folder.glob("*.onnx"))))
    try:
        model = onnx.load(file)
        onnx.checker.check_model(model)
    except Exception as error:
        raise UserError(f"{file} must be an ONNX model, but does not load: {first_line(error)}.") from error
    initializers = {tensor.name: tensor for tensor in model.graph.initializer}
    products, taken = _multiplied(model.graph), _taken(model.graph)
    reading = Reading()
    read: set[str] = set()
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0].endswith(".codes") and node.output[0] in taken:
            name = node.input[0].removesuffix(".codes")
            lacking = [used for used in node.input if used not in initializers]
            if lacking:
                reading.missing.append(lacking[0])
                continue
            found = _evaluate(node, [initializers[used] for used in node.input])
            multiplied = node.output[0] in products
            reading.weights[name] = found.t().contiguous() if multiplied else found.flatten(1)
            read.update(node.input)
    for name, tensor in initializers.items():
        if name not in read and name in taken:
            reading.others[name] = torch.from_numpy(np.array(onnx.numpy_helper.to_array(tensor)))
    return reading


def _taken(graph) -> set[str]:
    """Names of all that the outputs of ``graph`` are computed from."""
    names = {output.name for output in graph.output}
    for node in reversed(graph.node):  # each stands after what it takes
        if names.intersection(node.output):
            inside = (attribute.g for attribute in node.attribute if attribute.HasField("g"))
            names.update(node.input, *map(_taken, inside))
    return names


def _multiplied(graph) -> set[str]:
    """Names of second operands of MatMul, casts between looked through."""
    found = {node.input[1] for node in graph.node if node.op_type == "MatMul"}
    casts = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "Cast"}
    return found | {casts[name] for name in found if name in casts}


def _evaluate(node, initializers: list) -> Tensor:
    import onnx
    from onnx.reference import ReferenceEvaluator

    kind = next(tensor.data_type for tensor in initializers if tensor.name == node.input[1])
    output = onnx.helper.make_tensor_value_info(node.output[0], kind, None)
    graph = onnx.helper.make_graph([node], "weight", [], [output], initializers)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)])
    return torch.from_numpy(np.array(ReferenceEvaluator(model).run(None, {})[0]))
