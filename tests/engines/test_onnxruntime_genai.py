"""The graph that ONNX Runtime GenAI makes of a GPTQ or AWQ folder: its constants are the codes and scales of training."""

import os
import subprocess
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torchqat
from engine_models import HALF, OFFSET, needs
from gguf_models import build as build_architecture
from onnx.numpy_helper import to_array
from test_openvino import byte_level
from torchqat.layers.prepared import quant_layers
from torchqat.verification.engines import ONNXRUNTIME_GENAI
from torchqat.verification.engines import engine as engines

BUILD = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from onnxruntime_genai_worker import build
build(Path(sys.argv[2]), Path(sys.argv[3]), [])
"""


def prepared(name, weight, more=""):
    model = build_architecture(name, hidden_size=256, intermediate_size=512)
    rules = f'  - {{match: "model.layers.*", weight: {weight}}}\n'
    return torchqat.prepare(model, torchqat.parse_recipe(f"version: 1\nlayers:\n{rules}{more}")).eval()


def graph_of(folder: Path) -> onnx.GraphProto:
    made = folder.parent / "made"
    workers = str(Path(engines.__file__).with_name("workers"))
    python = os.environ[ONNXRUNTIME_GENAI.variable()]
    subprocess.run([python, "-c", BUILD, workers, str(folder), str(made)], check=True)
    return onnx.load(made / "model.onnx").graph


def fields(octets: np.ndarray, bits: int) -> np.ndarray:
    """Codes of a row, the first of two in the low nibble."""
    found = octets if bits == 8 else np.stack([octets & 15, octets >> 4], -1)
    return found.reshape(octets.shape[0], -1).astype(np.float32)


def weights_of(graph: onnx.GraphProto) -> dict[str, torch.Tensor]:
    """``[out, in]`` of (codes - zero points) * scales in float32, and of what is a number; by the names in the graph."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    found = {}
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in constants:
            found[node.input[1]] = to_array(constants[node.input[1]]).astype(np.float32).T
        if node.op_type == "MatMulNBits":
            settings = {attribute.name: attribute.i for attribute in node.attribute}
            rows, columns, size = settings["N"], settings["K"], settings["block_size"]
            codes, scales, zeros = (to_array(constants[name]) for name in node.input[1:4])
            blocks = columns // size
            levels = fields(codes.reshape(rows, -1), settings["bits"]).reshape(rows, blocks, size)
            shift = fields(zeros.reshape(rows, -1), settings["bits"])[:, :blocks, None]
            dense = (levels - shift) * scales.astype(np.float32).reshape(rows, blocks, 1)
            found[node.input[1]] = dense.reshape(rows, columns)
    return {name: torch.from_numpy(np.ascontiguousarray(dense)) for name, dense in found.items()}


def in_graph(layers: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """By the beginnings of their names in the graph, in which q, k and v are one matrix."""
    found = {}
    for name, weight in layers.items():
        if ".mlp." in name or name.endswith("o_proj"):
            found[name.replace("self_attn", "attn")] = weight
        elif name.endswith("q_proj"):
            parts = [layers[name.replace("q_proj", f"{leaf}_proj")] for leaf in "qkv"]
            found[name.replace("self_attn.q_proj", "attn.qkv_proj")] = torch.cat(parts)
    return found


@pytest.mark.parametrize(
    ("format", "weight"),
    [("gptq", HALF), ("gptq", "{dtype: int8, group_size: 64, scale_dtype: float16}"), ("awq", OFFSET)],
)
@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_its_constants_are_the_weights_of_training(name, format, weight, tmp_path):
    """Bit for bit; the head is what it was, in floating point."""
    needs("onnxruntime-genai")
    model = prepared(name, weight)
    folder = torchqat.export(model, tmp_path / "out", format, byte_level(320))
    read = weights_of(graph_of(folder))
    ours = {name: layer.quantized_weight().detach().float() for name, layer in quant_layers(model)}
    expected = in_graph(ours)
    for place, weight_there in expected.items():
        (theirs,) = [dense for found, dense in read.items() if found.startswith(place + ".")]
        assert torch.equal(theirs, weight_there), place
    (head,) = [dense for found, dense in read.items() if found.startswith("lm_head.")]
    assert torch.equal(head, model.lm_head.weight.detach().half().float()) and len(read) == len(expected) + 1
    checked = torchqat.verify(folder, model, engine="onnxruntime-genai")
    assert checked.ok and checked.agreement.kl < 1e-5, str(checked)


LEFT = '  - {match: "model.layers.1.mlp.down_proj", weight: float}\n'


@pytest.mark.parametrize(("weight", "more"), [("{dtype: int3, group_size: 32}", ""), (HALF, LEFT)])
def test_what_its_builder_does_not_take_is_refused(weight, more, tmp_path):
    """Since that ends without a word of what was wrong."""
    needs("onnxruntime-genai")
    model = prepared("llama", weight, more)
    folder = torchqat.export(model, tmp_path / "out", "gptq", byte_level(320))
    with pytest.raises(torchqat.UserError, match="engine onnxruntime-genai cannot run this model"):
        torchqat.verify(folder, model, engine="onnxruntime-genai")
    with pytest.raises(subprocess.CalledProcessError):
        graph_of(folder)
