"""``QuantEmbedding``: entries as rows, quantized where a batch asks for them."""

import copy

import architectures
import pytest
import torch
import torchqat
from sentences import matches
from torch import nn
from torchqat.layers.embedding import QuantEmbedding

SPECS = {
    "groups": "{dtype: int4, group_size: 32, grid: full, scale: SCALE}",
    "asymmetric": "{dtype: int4, group_size: 16, symmetric: false, scale: SCALE}",
    "entries": "{dtype: int8, granularity: channel, scale: SCALE}",
    "whole": "{dtype: int8, granularity: tensor, scale: SCALE}",
}


def recipe(weight, rest=""):
    text = f'version: 1\nlayers:\n  - {{match: "type:Embedding", weight: {weight}}}\n{rest}'
    return torchqat.parse_recipe(text, "recipe")


def table(padding=None):
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(50, 64, padding_idx=padding), nn.Linear(64, 8))


@pytest.mark.parametrize("scale", ["minmax", "mse", "learned"])
@pytest.mark.parametrize("name", SPECS)
def test_entries_are_those_of_the_whole_table_rounded(name, scale):
    model = torchqat.prepare(table(), recipe(SPECS[name].replace("SCALE", scale)))
    embedding = model[0]
    assert isinstance(embedding, QuantEmbedding) and isinstance(embedding, nn.Embedding)
    ids = torch.randint(50, (3, 7))
    assert torch.equal(embedding(ids), embedding.quantized_weight()[ids])


@pytest.mark.parametrize("scale", ["minmax", "learned"])
def test_gradients_are_those_of_the_whole_table(scale):
    model = torchqat.prepare(table(), recipe(SPECS["groups"].replace("SCALE", scale)))
    other = copy.deepcopy(model)
    ids, weights = torch.tensor([[1, 4, 4], [9, 1, 0]]), torch.randn(2, 3, 64)
    (model[0](ids) * weights).sum().backward()
    (other[0].quantized_weight()[ids] * weights).sum().backward()
    torch.testing.assert_close(model[0].weight.grad, other[0].weight.grad)
    assert model[0].weight.grad[2].abs().sum() == 0
    if scale == "learned":
        torch.testing.assert_close(model[0].weight_scale.grad, other[0].weight_scale.grad)


def test_padding_has_no_gradient():
    model = torchqat.prepare(table(padding=4), recipe(SPECS["groups"].replace("SCALE", "minmax")))
    model[0](torch.tensor([4, 5])).sum().backward()
    assert model[0].weight.grad[4].abs().sum() == 0 and model[0].weight.grad[5].abs().sum() > 0


def test_only_a_rule_that_asks_for_embeddings_reaches_them():
    everything = torchqat.parse_recipe('version: 1\nlayers: [{match: "*", weight: {dtype: int8}}]\n', "recipe")
    assert [layer.name for layer in torchqat.make_plan(table(), everything).layers] == ["1"]
    by_name = torchqat.parse_recipe('version: 1\nlayers: [{match: "0", weight: {dtype: int8}}]\n', "recipe")
    assert [layer.type for layer in torchqat.make_plan(table(), by_name).layers] == ["Embedding"]


def test_inputs_are_refused():
    text = 'version: 1\nlayers: [{match: "0", weight: {dtype: int8}, input: {dtype: int8}}]\n'
    with pytest.raises(torchqat.RecipeError, match=matches("recipe.input-of-embedding", match=0, layer=0)):
        torchqat.make_plan(table(), torchqat.parse_recipe(text, "recipe"))


def test_a_tied_head_goes_with_it():
    model = architectures.build("Llama", tie_word_embeddings=True)
    rule = "{dtype: int8, group_size: 32, grid: full, scale: mse}"
    layers = "model.embed_tokens and lm_head"
    with pytest.raises(torchqat.UserError, match=matches("model.tied-layers", layers=layers, left="lm_head")):
        torchqat.prepare(model, recipe(rule))
    both = torchqat.prepare(model, recipe(rule, f"  - {{match: lm_head, weight: {rule}}}\n"))
    assert both.lm_head.weight is both.model.embed_tokens.weight
    assert torch.equal(both.lm_head.quantized_weight(), both.model.embed_tokens.quantized_weight())


HEAD = "version: 1\nlayers: [{match: lm_head, weight: {dtype: int8}, input: {dtype: int8, granularity: tensor}}]\n"


def test_a_head_beside_an_embedding_in_floating_point_is_calibrated():
    """The embedding looks up the head's weight in its own way, which is no reading past the head."""
    model = architectures.build("Llama", tie_word_embeddings=True)
    torchqat.prepare(model, torchqat.parse_recipe(HEAD, "recipe"))
    assert type(model.model.embed_tokens).__name__ == "Embedding"
    ranges = torchqat.calibrate(model, [torch.arange(16).view(2, 8)]).ranges
    assert list(ranges) == ["lm_head"] and ranges["lm_head"][0] < 0 < ranges["lm_head"][1]


def test_a_method_that_rounds_a_head_would_round_the_embedding_that_it_is_tied_to():
    for method in ("gptq", "awq"):
        model = architectures.build("Llama", tie_word_embeddings=True)
        of = torchqat.parse_recipe(f"{HEAD}initialize: {{method: {method}}}\n", "recipe")
        values = {"head": "lm_head", "table": "model.embed_tokens", "method": method}
        with pytest.raises(torchqat.UserError, match=matches("model.tied-head", **values)):
            torchqat.prepare(model, of)
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
        table = model.model.embed_tokens.weight.clone()
        torchqat.calibrate(torchqat.prepare(model, of), [torch.arange(16).view(2, 8)])
        assert torch.equal(model.model.embed_tokens.weight, table)


def test_calibration_rounds_it_to_the_nearest():
    model = torchqat.prepare(table(), recipe(SPECS["groups"].replace("SCALE", "mse"), "initialize: {method: gptq}\n"))
    before = model[0].weight.clone()
    assert not torchqat.calibrate(model, [torch.randint(50, (4, 8))]).warnings
    assert torch.equal(model[0].weight, before)


def test_half_made_frequencies_are_written_or_refused(tmp_path):
    """``half()`` rounds them, too; llama.cpp divides by factors where the architecture is llama."""
    rule = "{dtype: int8, group_size: 32, grid: full}"
    for name, kind in (("Llama", "llama"), ("Qwen2", "qwen2")):
        model = torchqat.prepare(architectures.build(name).half(), recipe(rule))
        if kind == "llama":
            assert torchqat.verify(torchqat.export(model, tmp_path / kind, "gguf"), model).ok
            continue
        with pytest.raises(torchqat.UserError, match=matches("export.gguf-other-frequencies", kind=kind)):
            torchqat.export(model, tmp_path / kind, "gguf")


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("tied", [False, True])
def test_llama_cpp_gets_its_codes(bits, tied, tmp_path):
    """Q4_0 and Q8_0 embeddings, read back by the gguf package."""
    model = architectures.build("Llama", tie_word_embeddings=tied).half()
    weight = f"{{dtype: int{bits}, group_size: 32, grid: signed, scale: mse, scale_dtype: float16}}"
    layers = f'  - {{match: "model.layers.*", weight: {weight}}}\n' + (
        f"  - {{match: lm_head, weight: {weight}}}\n" if tied else ""
    )
    model = torchqat.prepare(model, recipe(weight, layers))
    folder = torchqat.export(model, tmp_path / "out", "gguf")
    checked = torchqat.verify(folder, model, engine="reader")
    assert checked.ok and checked.layers == 15 + tied, str(checked)


@pytest.mark.parametrize("name", ["groups", "entries", "whole"])
def test_a_graph_has_its_codes(name, tmp_path):
    model = torchqat.prepare(table(), recipe(SPECS[name].replace("SCALE", "mse"))).eval()
    ids = torch.randint(50, (3, 7))
    folder = torchqat.export(model, tmp_path / "out", "onnx", example=ids)
    checked = torchqat.verify(folder, model, engine="onnxruntime", example=ids)
    assert checked.ok and checked.layers == 1, str(checked)
    longer = torch.randint(50, (2, 11))
    assert torchqat.verify(folder, model, engine="onnxruntime", example=longer).ok


def test_formats_without_a_place_for_it_say_so(tmp_path):
    model = torchqat.prepare(table(), recipe("{dtype: int8}"))
    with pytest.raises(torchqat.UserError, match=matches("export.because-another-type", type="Embedding")):
        torchqat.export(model, tmp_path / "out", "compressed-tensors")
