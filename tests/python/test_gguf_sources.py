"""GGUF files as models: read as the gguf package reads them, or refused where transformers passes over a part of them."""

import copy
import shutil

import pytest
import torch
import torchqat
from command import call
from sentences import said, sentence
from test_sources import SHAPE, loaded, refused, saved
from torchqat.kinds import find_kind
from torchqat.layers.prepared import quant_layers
from torchqat.runs.identity import files_content

Q4_0 = "weight: {dtype: int4, group_size: 32, grid: signed, scale_dtype: float16}"


def written(model, folder, tokenizer=None):
    """The file of ``model``, and the model whose weights it has."""
    recipe = torchqat.parse_recipe(f"version: 1\nlayers: [{{match: 'model.layers.*', {Q4_0}}}]\n", "recipe.yaml")
    prepared = torchqat.prepare(copy.deepcopy(model), recipe).eval()
    return str(torchqat.export(prepared, folder, "gguf", tokenizer) / "model.gguf"), prepared


@torch.no_grad()
def test_the_weights_are_those_of_its_blocks(tiny_llama, tmp_path):
    path, prepared = written(tiny_llama, tmp_path)
    model, notes = loaded(path)
    for name, layer in quant_layers(prepared):
        assert torch.equal(model.get_submodule(name).weight, layer.quantized_weight())
    tokens = torch.randint(0, 400, (2, 32))
    difference = (model(input_ids=tokens).logits - prepared(input_ids=tokens).logits).abs().max()
    assert difference < 2e-3  # its embeddings are in float16
    assert notes == [sentence("model.of-gguf", path=path)]


def test_a_file_that_stretches_positions_is_refused(tmp_path):
    """transformers passes over `rope_freqs.weight`, and would rotate otherwise."""
    stretched = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0}
    stretched |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 16}
    model = saved(tmp_path / "float", "LlamaForCausalLM", **SHAPE, rope_parameters=stretched)
    path, _ = written(model, tmp_path / "out")
    assert refused(path) == sentence("model.gguf-stretches", path=path, name="rope_freqs.weight")


def test_a_file_of_more_than_the_model_takes_is_refused(tmp_path):
    """A bias, which the configuration that transformers makes of the file does not know."""
    import gguf
    import numpy as np

    model = saved(tmp_path / "float", "LlamaForCausalLM", **SHAPE)
    path, _ = written(model, tmp_path / "out")
    reader, more = gguf.GGUFReader(path), str(tmp_path / "more.gguf")
    writer = gguf.GGUFWriter(more, "llama")
    for field in reader.fields.values():
        if field.name.startswith("llama."):
            writer.add_key_value(field.name, field.contents(), field.types[0], field.types[-1])
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.add_tensor("blk.0.attn_q.bias", np.ones(64, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    taken = sum(parameter.numel() for parameter in model.parameters())
    assert refused(more) == sentence("model.gguf-has-more", taken=taken, held=taken + 64, path=more)


def test_other_kinds_and_other_files_are_refused(tiny_llama, tmp_path):
    path, _ = written(tiny_llama, tmp_path)
    assert refused(path, "classifier") == sentence("model.gguf-of-another-kind", path=path)
    (tmp_path / "b.gguf").write_bytes(b"no GGUF at all")
    assert said(refused(tmp_path / "b.gguf"), "checkpoints.gguf-does-not-load", file=tmp_path / "b.gguf")


def test_a_file_is_known_by_what_it_holds(tiny_llama, tmp_path):
    path, _ = written(tiny_llama, tmp_path / "a")
    other = shutil.copyfile(path, tmp_path / "copy.gguf")
    assert files_content(str(other), []) == files_content(path, []) != ""
    with torch.no_grad():
        tiny_llama.model.norm.weight[0] += 1.0
    changed, _ = written(tiny_llama, tmp_path / "b")
    assert files_content(changed, []) != files_content(path, [])


def test_a_run_starts_from_a_file(tiny_llama, tokenizer, data_folder, tmp_path, capsys):
    path, _ = written(tiny_llama, tmp_path / "source", tokenizer)
    assert find_kind("causal_lm").load_tokenizer(path)("def f(x)").input_ids == tokenizer("def f(x)").input_ids
    recipe, out = tmp_path / "recipe.yaml", tmp_path / "run"
    recipe.write_text(
        "version: 1\ndata: {evaluation: {samples: 4, sequence_length: 32}}\nevaluate: {compare: []}\n"
        f"layers: [{{match: 'model.layers.*', {Q4_0}}}]\ntrain: {{steps: 2, batch_size: 2, sequence_length: 32}}\n"
    )
    note = "Note: " + sentence("model.of-gguf", path=path)
    code, text, err = call(capsys, "check", recipe, "--model", path)
    assert code == 0 and note in text, err
    given = [recipe, "--model", path, "--data", data_folder, "--output", out]
    code, text, err = call(capsys, "run", *given)
    assert code == 0 and note in err and note in text, err
    code, _, err = call(capsys, "export", out, "--format", "gguf")
    assert code == 0, err
    code, _, err = call(capsys, "ptq", *given, "--restart", "--stream")
    assert code == 2 and said(err, "stream.of-gguf", path=path)


@pytest.mark.parametrize("name", ["Gemma", "Qwen3"])
def test_what_transformers_does_not_read_is_refused(name, tmp_path):
    """Gemma is unknown to it, and of Qwen3 it takes heads to be of 128 channels."""
    model = saved(tmp_path / "float", f"{name}ForCausalLM", **SHAPE)
    path, _ = written(model, tmp_path / "out")
    assert path in refused(path)
