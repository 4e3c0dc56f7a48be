"""ONNX graphs: the reference evaluator finds the trained weights, onnxruntime computes what training computed."""

import onnx
import pytest
import torch
import torchqat
from sentences import matches, said
from small_net import recipe_for
from torch import nn
from torchqat.verification.engines.onnxruntime import run_onnx, serve_onnx


class Classifier(nn.Module):
    """Two quantized layers, one that stays, and what lies between."""

    def __init__(self):
        super().__init__()
        self.norm, self.first = nn.LayerNorm(64), nn.Linear(64, 96)
        self.second, self.head = nn.Linear(96, 33, bias=False), nn.Linear(33, 10)

    def forward(self, x):
        return self.head(torch.relu(self.second(torch.relu(self.first(self.norm(x))))))


def _prepared(weight: str, input: str = ""):
    rule = f'  - {{match: "re:first|second", weight: {weight}{f", input: {input}" if input else ""}}}\n'
    model = torchqat.prepare(Classifier(), torchqat.parse_recipe(f"version: 1\nlayers:\n{rule}"))
    torchqat.calibrate(model, [torch.randn(16, 64) for _ in range(4)])
    return model.eval()


CASES = {
    "int4 groups": ("{dtype: int4, group_size: 32, grid: full}", ""),
    "int4 asymmetric": ("{dtype: int4, group_size: 16, symmetric: false}", ""),
    "int3 per channel": ("{dtype: int3, scale: mse}", ""),
    "int4 per tensor": ("{dtype: int4, granularity: tensor}", ""),
    "int8 per channel": ("{dtype: int8}", ""),
    "int8 and inputs": ("{dtype: int8}", "{dtype: int8, granularity: tensor}"),
    "int4 and asymmetric inputs": (
        "{dtype: int4, group_size: 32}",
        "{dtype: int8, granularity: tensor, symmetric: false}",
    ),
}


@pytest.mark.parametrize("shape", ((4, 64), (2, 5, 64)), ids=str)
@pytest.mark.parametrize("name", CASES)
def test_onnxruntime_computes_what_training_computed(name, shape, tmp_path):
    model, x = _prepared(*CASES[name]), torch.randn(shape)
    folder = torchqat.export(model, tmp_path / "out", "onnx", example=x)
    checked = torchqat.verify(folder, model, engine="onnxruntime", example=x)
    assert checked.ok and checked.layers == 2, str(checked)
    if not CASES[name][1]:
        assert checked.agreement.difference < 1e-5


def test_codes_are_stored_in_their_width(tmp_path):
    folder = torchqat.export(
        _prepared("{dtype: int4, group_size: 32}"), tmp_path / "out", "onnx", example=torch.randn(2, 64)
    )
    graph = onnx.load(folder / "model.onnx")
    assert graph.opset_import[0].version == 21
    codes = next(tensor for tensor in graph.graph.initializer if tensor.name == "first.codes")
    assert codes.data_type == onnx.TensorProto.INT4 and list(codes.dims) == [64, 96]
    assert len(codes.raw_data) == 64 * 96 // 2
    node = next(node for node in graph.graph.node if node.op_type == "DequantizeLinear")
    assert {a.name: a.i for a in node.attribute} == {"axis": 0, "block_size": 32}


@pytest.mark.parametrize("name", ("int4 groups", "int8 per channel", "int8 and inputs"))
def test_onnxruntime_multiplies_the_codes(name, tmp_path):
    """Fused, so that weights stay packed: dequantized anew in every run, they would cost ten times a float product."""
    import onnxruntime

    folder = torchqat.export(_prepared(*CASES[name]), tmp_path / "out", "onnx", example=torch.randn(2, 64))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert kinds.count("MatMulIntegerToFloat" if "inputs" in name else "MatMulNBits") == 2
    assert "DequantizeLinear" not in kinds


@pytest.mark.parametrize("name", CASES)
def test_what_onnxruntime_would_round_by_itself_is_told(name, tmp_path):
    """Its products of floats with codes, which then are those of 8-bit integers."""
    import onnxruntime

    model, x, heard = _prepared(*CASES[name]).eval(), torch.randn(4, 64), []
    folder = torchqat.export(model, tmp_path / "out", "onnx", example=x, say=heard.append)
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    differs = (torch.from_numpy(found) - model(x)).abs().max().item() > 1e-4
    assert differs == (not CASES[name][1])
    assert [said(note, "export.onnxruntime-rounds", layers="first and 1 more") for note in heard] == [True] * differs


class TwoOutputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(64, 8), nn.Linear(64, 8)

    def forward(self, x):
        return self.first(x), {"second": self.second(x), "places": x.argmax(-1)}


def test_all_outputs_are_compared(tmp_path):
    recipe = torchqat.parse_recipe("version: 1\nlayers: [{match: '*', weight: {dtype: int4}}]\n")
    model, x = torchqat.prepare(TwoOutputs(), recipe), torch.randn(3, 64)
    folder = torchqat.export(model, tmp_path / "out", "onnx", example=x)
    checked = torchqat.verify(folder, model, engine="onnxruntime", example=x)
    assert checked.ok and checked.agreement.difference < 1e-5
    model.second.bias.data += 1.0
    agreement = run_onnx(folder, model, x)[0]
    assert not agreement.ok and agreement.difference == pytest.approx(1.0, abs=1e-4)


def test_the_batch_is_free(tmp_path):
    model = _prepared("{dtype: int4, group_size: 32}")
    folder = torchqat.export(model, tmp_path / "out", "onnx", example=torch.randn(2, 64))
    x = torch.randn(7, 64)
    (found,), _ = serve_onnx(folder, (x,))
    assert torch.allclose(torch.from_numpy(found), model(x), atol=1e-5)


def test_inputs_beyond_the_narrow_grid_are_clipped_as_in_training(tmp_path):
    """QuantizeLinear alone would go one level further down than the grid has."""
    model = _prepared("{dtype: int8}", "{dtype: int8, granularity: tensor}")
    x = torch.full((2, 64), -1.0)
    x[:, 0] = 63.0  # after the norm, far beyond what was calibrated
    folder = torchqat.export(model, tmp_path / "out", "onnx", example=x)
    for sign in (1, -1):
        (found,), _ = serve_onnx(folder, (sign * x,))
        assert torch.allclose(torch.from_numpy(found), model(sign * x), atol=1e-5)


def test_it_can_be_timed(tmp_path):
    model, x = _prepared("{dtype: int4, group_size: 32}"), torch.randn(2, 64)
    folder = torchqat.export(model, tmp_path / "out", "onnx", example=x)
    speed = torchqat.verify(folder, model, engine="onnxruntime", bench=True, example=x).speed
    assert speed.runs > 0 and speed.peak_bytes > 1e7


def test_an_encoder_of_transformers(tmp_path):
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=100, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96
    )
    encoder = BertModel(config, add_pooling_layer=False).eval()
    recipe = recipe_for("{dtype: int4, group_size: 32, grid: full}")
    model = torchqat.prepare(encoder, recipe).eval()
    tokens = torch.randint(0, 100, (2, 12))
    folder = torchqat.export(model, tmp_path / "out", "onnx", example=tokens)
    checked = torchqat.verify(folder, model, engine="onnxruntime", example=tokens)
    assert checked.ok and checked.layers == 12, str(checked)


@pytest.mark.parametrize("leaf", ("scale", "zero_point", "codes"))
def test_damage_is_found(leaf, tmp_path):
    model = _prepared("{dtype: int4, group_size: 32, symmetric: false}")
    folder = torchqat.export(model, tmp_path / "out", "onnx", example=torch.randn(2, 64))
    graph = onnx.load(folder / "model.onnx")
    tensor = next(tensor for tensor in graph.graph.initializer if tensor.name == f"second.{leaf}")
    changed = bytearray(tensor.raw_data)
    changed[3 if leaf == "scale" else 0] ^= 0x80 if leaf == "scale" else 1
    tensor.raw_data = bytes(changed)
    onnx.save(graph, folder / "model.onnx")
    assert list(torchqat.verify(folder, model, engine="reader").differing) == ["second"]


def test_a_missing_tensor_is_named(tmp_path):
    model = _prepared("{dtype: int4, group_size: 32}")
    folder = torchqat.export(model, tmp_path / "out", "onnx", example=torch.randn(2, 64))
    graph = onnx.load(folder / "model.onnx")
    kept = [tensor for tensor in graph.graph.initializer if tensor.name != "first.scale"]
    del graph.graph.initializer[:]
    graph.graph.initializer.extend(kept)
    onnx.save(graph, folder / "model.onnx")
    refusal = matches("checkpoints.onnx-does-not-load", file=folder / "model.onnx")
    with pytest.raises(torchqat.UserError, match=refusal) as refused:
        torchqat.verify(folder, model, engine="reader")
    assert "first.scale" in str(refused.value)


def test_what_a_graph_needs_is_said(tmp_path):
    model = _prepared("{dtype: int4, group_size: 32}")
    with pytest.raises(torchqat.UserError, match=matches("export.no-example")):
        torchqat.export(model, tmp_path / "out", "onnx")
    dynamic = _prepared("{dtype: int8}", "{dtype: int8}")
    with pytest.raises(torchqat.UserError, match=matches("export.because-inputs-not-fixed")):
        torchqat.export(dynamic, tmp_path / "out", "onnx", example=torch.randn(2, 64))
    assert not (tmp_path / "out").exists()


def _without(graph, kind):
    """Nothing takes the first quantized input any more, or the first layer's weight, which stay where they are."""
    nodes = graph.node
    gives = {name: node for node in nodes for name in node.output}
    if kind == "input":
        end = next(n for n in nodes if n.op_type == "DequantizeLinear" and n.input[0] in gives)
        by = gives[end.input[0]].input[0]
    else:
        end = next(n for n in nodes if n.op_type == "DequantizeLinear" and n.input[0] == "first.codes")
        by = "dense"
        graph.initializer.append(onnx.numpy_helper.from_array(torch.zeros(64, 96).numpy(), "dense"))
    for node in nodes:
        node.input[:] = [by if name == end.output[0] else name for name in node.input]


@pytest.mark.parametrize("kind, missing", [("input", "first.input_scale"), ("weight", "first.weight")])
def test_what_no_output_is_computed_from_is_not_there(kind, missing, tmp_path):
    """An initializer may lie beside a graph that computes without it."""
    model = _prepared("{dtype: int8}", "{dtype: int8, granularity: tensor}")
    folder = torchqat.export(model, tmp_path / "out", "onnx", example=torch.randn(2, 64))
    graph = onnx.load(folder / "model.onnx")
    _without(graph.graph, kind)
    onnx.save(graph, folder / "model.onnx")
    assert missing in torchqat.verify(folder, model, engine="reader").missing


def test_what_a_model_does_not_use_is_not_asked_for(tmp_path):
    class Idle(Classifier):
        def __init__(self):
            super().__init__()
            self.idle, self.number = nn.Linear(64, 8), nn.Parameter(torch.ones(3))

    rule = '  - {match: "re:first|second", weight: {dtype: int4, group_size: 32}}\n'
    model = torchqat.prepare(Idle(), torchqat.parse_recipe(f"version: 1\nlayers:\n{rule}")).eval()
    folder = torchqat.export(model, tmp_path / "out", "onnx", example=torch.randn(2, 64))
    assert torchqat.verify(folder, model, engine="reader").ok
