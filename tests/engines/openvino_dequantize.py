"""Run by the Python of openvino: what the constants of the graph that OpenVINO GenAI makes of a GGUF file stand for.

python openvino_dequantize.py FOLDER OUT.npz
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import openvino
import openvino_genai


def graph_of(file: Path, scratch: Path) -> openvino.Model:
    (scratch / "model.gguf").symlink_to(file.resolve())
    openvino_genai.LLMPipeline(str(scratch / "model.gguf"), "CPU", enable_save_ov_model=True)
    return openvino.Core().read_model(scratch / "openvino_model.xml")


def numbers(constant) -> np.ndarray:
    found = np.asarray(constant.data)
    if constant.get_element_type() == openvino.Type.u4:
        octets = found.view(np.uint8).reshape(-1)
        found = np.stack([octets & 15, octets >> 4], -1).reshape(-1)[: np.prod(list(constant.shape))]
    return found.reshape(list(constant.shape)).astype(np.float32)


def dense(product) -> np.ndarray | None:
    """``[out, in]`` of (codes - zero points) * scales, in float32; ``None`` of weights that are numbers."""
    node = product.input_value(1).get_node()
    while node.get_type_name() in ("Convert", "Reshape"):
        node = node.input_value(0).get_node()
    if node.get_type_name() != "Multiply":
        return None
    shifted, scale = (node.input_value(i).get_node() for i in range(2))
    codes, zeros = (shifted.input_value(i).get_node().input_value(0).get_node() for i in range(2))
    found = (numbers(codes) - numbers(zeros)) * numbers(scale)
    return found.reshape(found.shape[0], -1)


def main(folder: Path, output: str) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        graph = graph_of(next(folder.glob("*.gguf")), Path(scratch))
        found = [dense(op) for op in graph.get_ops() if op.get_type_name() == "MatMul"]
        np.savez(output, *[weight for weight in found if weight is not None])


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
