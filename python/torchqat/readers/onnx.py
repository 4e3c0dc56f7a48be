"""ONNX graphs by the onnx package, weights by its reference evaluator."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from torchqat.errors import UserError, first_line
from torchqat.readers.reading import Reading


def read_onnx(folder: Path) -> Reading:
    """The graph in ``folder``: what each DequantizeLinear of codes gives, ``[out, in]``, and every other initializer.

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
    reading = Reading()
    read: set[str] = set()
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0].endswith(".codes"):
            name = node.input[0].removesuffix(".codes")
            lacking = [used for used in node.input if used not in initializers]
            if lacking:
                reading.missing.append(lacking[0])
                continue
            reading.weights[name] = _evaluate(node, [initializers[used] for used in node.input]).t().contiguous()
            read.update(node.input)
    for name, tensor in initializers.items():
        if name not in read:
            reading.others[name] = torch.from_numpy(np.array(onnx.numpy_helper.to_array(tensor)))
    return reading


def _evaluate(node, initializers: list) -> Tensor:
    import onnx
    from onnx.reference import ReferenceEvaluator

    kind = next(tensor.data_type for tensor in initializers if tensor.name == node.input[1])
    output = onnx.helper.make_tensor_value_info(node.output[0], kind, None)
    graph = onnx.helper.make_graph([node], "weight", [], [output], initializers)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)])
    return torch.from_numpy(np.array(ReferenceEvaluator(model).run(None, {})[0]))
