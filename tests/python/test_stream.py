"""Quantization of a folder into a folder, block by block."""

import json

import architectures
import pytest
import torch
import torchqat
import transformers
from architectures import recipe, tokens
from command import call
from safetensors.torch import load_file, save_file
from sentences import said
from streaming import GPTQ, WEIGHT, WEIGHT_OF_GGUF, forward, whole
from torchqat.checkpoints.readers.reading import read_tensors
from torchqat.model.outline import CheckpointReader, empty, skeleton
from torchqat.runs.stream import quantize_folder
from torchqat.verification.engines.transformers import load_in_transformers


@pytest.mark.parametrize("name", ["Llama", "Qwen2", "Qwen3", "Gemma", "Gemma3Text"])
@pytest.mark.parametrize(
    "initialize",
    [GPTQ, "{method: awq+gptq, correction: 0}", "{method: gptq, objective: layer, block_training: {steps: 4}}"],
)
def test_it_writes_what_the_whole_model_would_be(name, initialize, tmp_path):
    architectures.build(name).save_pretrained(tmp_path / "model")
    settings = recipe(initialize, WEIGHT)
    streamed = quantize_folder(tmp_path / "model", tmp_path / "out", settings, tokens())
    prepared, found = whole(tmp_path / "model", settings)
    expected = torchqat.export(prepared, tmp_path / "expected")
    ours, theirs = read_tensors(tmp_path / "out"), read_tensors(expected)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    configs = [json.loads((path / "config.json").read_text()) for path in (tmp_path / "out", expected)]
    assert configs[0] == configs[1]
    assert streamed.calibration.losses == found.losses and streamed.calibration.warnings == found.warnings
    assert streamed.layers == 14 and streamed.bits_per_weight == pytest.approx(4.5, abs=0.6)


@pytest.mark.parametrize("format", ("gptq", "gptq_v2", "awq", "modelopt", "safetensors"))
def test_other_formats_are_written_as_the_whole_model_would_be(format, llama_folder, tmp_path):
    settings = recipe(GPTQ, WEIGHT)
    settings.exports = [format]
    quantize_folder(llama_folder, tmp_path / "out", settings, tokens())
    prepared, _ = whole(llama_folder, settings)
    expected = torchqat.export(prepared, tmp_path / "expected", format)
    ours, theirs = read_tensors(tmp_path / "out"), read_tensors(expected)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert torchqat.verify(tmp_path / "out", prepared, engine="reader").ok


def test_inputs_and_caches_are_calibrated_on_the_way(llama_folder, tmp_path):
    text = architectures.RECIPE.format(
        weight="{dtype: int8}", input="input: {dtype: int8, granularity: tensor}", initialize="{method: mse}"
    )
    settings = torchqat.parse_recipe(text + "kv_cache: {dtype: fp8_e4m3}\n", "recipe")
    streamed = quantize_folder(llama_folder, tmp_path / "out", settings, tokens())
    stored = read_tensors(tmp_path / "out")
    assert stored["model.layers.1.self_attn.k_scale"] > 0
    # Block by block each sees what the rounded blocks before it give, so the ranges are near those of the whole model.
    _, found = whole(llama_folder, settings)
    assert streamed.calibration.ranges.keys() == found.ranges.keys()
    first = "model.layers.0.self_attn.q_proj"
    assert streamed.calibration.ranges[first] == found.ranges[first]
    for name, (low, high) in found.ranges.items():
        assert streamed.calibration.ranges[name] == pytest.approx((low, high), rel=0.2)
        assert stored[f"{name}.input_scale"].item() > 0


def test_transformers_loads_the_shards(llama_folder, tmp_path):
    settings = recipe(GPTQ, WEIGHT)
    quantize_folder(llama_folder, tmp_path / "out", settings, tokens())
    prepared, _ = whole(llama_folder, settings)
    served = load_in_transformers(tmp_path / "out")
    with torch.no_grad():
        torch.testing.assert_close(
            served(input_ids=tokens()[0]).logits, forward(prepared, tokens()[0]).logits, rtol=1e-4, atol=1e-4
        )
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert {path.name for path in (tmp_path / "out").glob("*.safetensors")} == set(index["weight_map"].values())


@pytest.mark.parametrize("format", ("compressed-tensors", "gguf"))
def test_weights_are_held_only_while_their_block_is_at_work(format, llama_folder, tmp_path, monkeypatch):
    from torchqat.runs.stream_gguf import GgufStreamWriter
    from torchqat.runs.stream_writer import StreamWriter

    held, writer_class = [], GgufStreamWriter if format == "gguf" else StreamWriter
    add_block = writer_class.add_block

    def count(writer, block):
        held.append([n for n, p in writer.model.named_parameters() if not p.is_meta])
        add_block(writer, block)

    monkeypatch.setattr(writer_class, "add_block", count)
    settings = recipe(GPTQ, WEIGHT_OF_GGUF if format == "gguf" else WEIGHT)
    settings.exports = [format]
    quantize_folder(llama_folder, tmp_path / "out", settings, tokens())
    for index, names in enumerate(held):
        assert names and all(name.startswith(f"model.layers.{index}.") for name in names)


def test_a_skeleton_has_real_buffers_and_no_weights(llama_folder):
    model = skeleton(llama_folder)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert not any(buffer.is_meta for buffer in model.buffers())
    CheckpointReader(llama_folder).fill(model, "")
    expected = architectures.build("Llama")
    with torch.no_grad():
        assert torch.equal(forward(model, tokens()[0]).logits, forward(expected, tokens()[0]).logits)
    empty(model)
    assert all(parameter.is_meta for parameter in model.parameters())


def test_a_folder_in_shards_is_read(llama_folder, tmp_path):
    tensors = load_file(llama_folder / "model.safetensors")
    names = sorted(tensors)
    for number, part in enumerate((names[::2], names[1::2])):
        save_file({name: tensors[name] for name in part}, tmp_path / f"{number}.safetensors")
    reader = CheckpointReader(tmp_path)
    assert all(torch.equal(reader[name], tensors[name]) for name in names)
    assert reader.shape_of(names[0]) == tuple(tensors[names[0]].shape)


def test_blocks_that_give_more_than_hidden_states_are_streamed(tmp_path):
    shape = {"hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 100, "attention_hidden_size": 64}
    torch.manual_seed(0)
    transformers.RwkvForCausalLM(transformers.RwkvConfig(**shape)).save_pretrained(tmp_path / "model")
    text = recipe(GPTQ, WEIGHT).text.replace("model.layers.*", "rwkv.blocks.*.key")
    settings = torchqat.parse_recipe(text, "recipe")
    quantize_folder(tmp_path / "model", tmp_path / "out", settings, tokens())
    prepared, _ = whole(tmp_path / "model", settings)
    ours, theirs = read_tensors(tmp_path / "out"), read_tensors(torchqat.export(prepared, tmp_path / "expected"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_the_command_streams(arguments, recipe_file, tmp_path, capsys):
    recipe_file.write_text(recipe_file.read_text().replace("schedule:", "initialize: {method: gptq}\nschedule:"))
    code, out, err = call(capsys, "ptq", *arguments, "--stream")
    assert code == 0, err
    assert said(out, "stream.written", layers=14, bits="5.000")
    assert load_in_transformers(tmp_path / "run" / "exports" / "compressed-tensors").config.vocab_size
