"""Quantization of a folder into a folder, block by block."""

import copy
import json

import architectures
import pytest
import torch
import torchqat
import transformers
from architectures import recipe, tokens
from command import call
from safetensors.torch import load_file, save_file
from sentences import matches, said
from torchqat.checkpoints.readers.reading import read_tensors
from torchqat.model.outline import CheckpointReader, empty, skeleton
from torchqat.runs.stream import quantize_folder
from torchqat.verification.engines.transformers import load_in_transformers

# What a streamed model is rounded for, to be compared with the whole one.
GPTQ = "{method: gptq, objective: layer}"
WEIGHT = "{dtype: int4, group_size: 32, grid: full, scale: mse}"
WEIGHT_OF_GGUF = "{dtype: q4_0, scale: mse}"


def forward(model, batch):
    return model(input_ids=batch, use_cache=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "llama"
    architectures.build("Llama").save_pretrained(path)
    return path


def whole(folder, settings):
    """The same with the whole model in memory."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    prepared = torchqat.prepare(model, settings)
    return prepared, torchqat.calibrate(prepared, tokens(), forward)


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
def test_other_formats_are_written_as_the_whole_model_would_be(format, folder, tmp_path):
    settings = recipe(GPTQ, WEIGHT)
    settings.exports = [format]
    quantize_folder(folder, tmp_path / "out", settings, tokens())
    prepared, _ = whole(folder, settings)
    expected = torchqat.export(prepared, tmp_path / "expected", format)
    ours, theirs = read_tensors(tmp_path / "out"), read_tensors(expected)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert torchqat.verify(tmp_path / "out", prepared, engine="reader").ok


def gguf_bytes(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.gguf")}


FAMILIES = {
    "Llama": {},
    "Llama, tied": {"tie_word_embeddings": True},
    "Gemma3Text": {"query_pre_attn_scalar": 16},
    "Qwen3Moe": {"norm_topk_prob": True, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_gguf_file_is_byte_by_byte_that_of_the_whole_model(name, tokenizer, tmp_path):
    shape = {"vocab_size": len(tokenizer), **FAMILIES[name]}
    architectures.build(name.split(",")[0], **shape).save_pretrained(tmp_path / "model")
    settings = recipe(GPTQ, WEIGHT_OF_GGUF)
    settings.exports = ["gguf"]
    streamed = quantize_folder(tmp_path / "model", tmp_path / "out", settings, tokens(), tokenizer)
    prepared, _ = whole(tmp_path / "model", settings)
    expected = torchqat.export(prepared, tmp_path / "expected", "gguf", tokenizer)
    assert gguf_bytes(tmp_path / "out") == gguf_bytes(expected)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {path.name for path in expected.iterdir()}
    assert torchqat.verify(tmp_path / "out", prepared, engine="reader").ok
    assert streamed.bytes < sum(map(len, gguf_bytes(expected).values()))


def test_a_gguf_file_that_cannot_be_ended_is_not_there(folder, tmp_path, monkeypatch):
    from torchqat.runs.stream_gguf import GgufStreamWriter

    def fails(writer, blocks):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(GgufStreamWriter, "add_rest", fails)
    settings = recipe(GPTQ, WEIGHT_OF_GGUF)
    settings.exports = ["gguf"]
    with pytest.raises(torchqat.UserError):
        quantize_folder(folder, tmp_path / "out", settings, tokens())
    assert not list(tmp_path.iterdir())


def test_what_llama_cpp_does_not_know_is_refused_before_any_is_rounded(tmp_path, monkeypatch):
    architectures.build("StableLm").save_pretrained(tmp_path / "model")
    settings = recipe(GPTQ, WEIGHT_OF_GGUF)
    settings.exports = ["gguf"]
    monkeypatch.setattr("torchqat.runs.stream.initialize", lambda *_: pytest.fail("it began"))
    with pytest.raises(torchqat.UserError, match=matches("export.gguf-architecture", architecture="stablelm")):
        quantize_folder(tmp_path / "model", tmp_path / "out", settings, tokens())


def test_a_format_that_needs_the_whole_model_is_refused(folder, tmp_path):
    settings = recipe(GPTQ, WEIGHT)
    settings.exports = ["onnx"]
    with pytest.raises(torchqat.UserError, match=matches("stream.format", format="onnx")):
        quantize_folder(folder, tmp_path / "out", settings, tokens())


def test_inputs_and_caches_are_calibrated_on_the_way(folder, tmp_path):
    text = architectures.RECIPE.format(
        weight="{dtype: int8}", input="input: {dtype: int8, granularity: tensor}", initialize="{method: mse}"
    )
    settings = torchqat.parse_recipe(text + "kv_cache: {dtype: fp8_e4m3}\n", "recipe")
    streamed = quantize_folder(folder, tmp_path / "out", settings, tokens())
    stored = read_tensors(tmp_path / "out")
    assert stored["model.layers.1.self_attn.k_scale"] > 0
    # Block by block each sees what the rounded blocks before it give, so the ranges are near those of the whole model.
    _, found = whole(folder, settings)
    assert streamed.calibration.ranges.keys() == found.ranges.keys()
    first = "model.layers.0.self_attn.q_proj"
    assert streamed.calibration.ranges[first] == found.ranges[first]
    for name, (low, high) in found.ranges.items():
        assert streamed.calibration.ranges[name] == pytest.approx((low, high), rel=0.2)
        assert stored[f"{name}.input_scale"].item() > 0


def test_transformers_loads_the_shards(folder, tmp_path):
    settings = recipe(GPTQ, WEIGHT)
    quantize_folder(folder, tmp_path / "out", settings, tokens())
    prepared, _ = whole(folder, settings)
    served = load_in_transformers(tmp_path / "out")
    with torch.no_grad():
        torch.testing.assert_close(
            served(input_ids=tokens()[0]).logits, forward(prepared, tokens()[0]).logits, rtol=1e-4, atol=1e-4
        )
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert {path.name for path in (tmp_path / "out").glob("*.safetensors")} == set(index["weight_map"].values())


@pytest.mark.parametrize("format", ("compressed-tensors", "gguf"))
def test_weights_are_held_only_while_their_block_is_at_work(format, folder, tmp_path, monkeypatch):
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
    quantize_folder(folder, tmp_path / "out", settings, tokens())
    for index, names in enumerate(held):
        assert names and all(name.startswith(f"model.layers.{index}.") for name in names)


def test_a_skeleton_has_real_buffers_and_no_weights(folder):
    model = skeleton(folder)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert not any(buffer.is_meta for buffer in model.buffers())
    CheckpointReader(folder).fill(model, "")
    expected = architectures.build("Llama")
    with torch.no_grad():
        assert torch.equal(forward(model, tokens()[0]).logits, forward(expected, tokens()[0]).logits)
    empty(model)
    assert all(parameter.is_meta for parameter in model.parameters())


def test_a_folder_in_shards_is_read(folder, tmp_path):
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    for number, part in enumerate((names[::2], names[1::2])):
        save_file({name: tensors[name] for name in part}, tmp_path / f"{number}.safetensors")
    reader = CheckpointReader(tmp_path)
    assert all(torch.equal(reader[name], tensors[name]) for name in names)
    assert reader.shape_of(names[0]) == tuple(tensors[names[0]].shape)


def test_what_needs_the_whole_model_is_refused(folder, tmp_path):
    with pytest.raises(torchqat.UserError, match=matches("stream.rotates")):
        quantize_folder(folder, tmp_path / "out", recipe("{method: hadamard+gptq}", WEIGHT), tokens())
    assert not (tmp_path / "out").exists()


def test_blocks_that_are_no_row_are_refused(tmp_path):
    config = transformers.XLMConfig(emb_dim=64, n_layers=2, n_heads=4, n_words=100, vocab_size=100)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "model")
    settings = recipe(GPTQ, WEIGHT)
    settings = torchqat.parse_recipe(settings.text.replace("model.layers.*", "transformer.*"), "recipe")
    with pytest.raises(torchqat.UserError, match=matches("stream.no-row", block="transformer.attentions.1")):
        quantize_folder(tmp_path / "model", tmp_path / "out", settings, tokens())
    assert not (tmp_path / "out").exists()


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


def test_a_head_is_refused(folder, tmp_path):
    text = recipe(GPTQ, WEIGHT).text.replace("initialize:", f"  - match: lm_head\n    weight: {WEIGHT}\ninitialize:")
    with pytest.raises(torchqat.UserError, match=matches("stream.layer-outside-blocks", layer="lm_head")):
        quantize_folder(folder, tmp_path / "out", torchqat.parse_recipe(text, "recipe"), tokens())


def test_a_missing_tensor_is_named_and_nothing_is_left(folder, tmp_path):
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    broken = tmp_path / "model"
    broken.mkdir()
    save_file(tensors, broken / "model.safetensors")
    (broken / "config.json").write_text((folder / "config.json").read_text())
    lacking = matches("checkpoints.lacks-tensor", folder=broken, name="model.layers.1.mlp.up_proj.weight")
    with pytest.raises(torchqat.UserError, match=lacking):
        quantize_folder(broken, tmp_path / "out", recipe(GPTQ, WEIGHT), tokens())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]
    with pytest.raises(torchqat.UserError, match=matches("checkpoints.no-safetensors-in-folder", folder=tmp_path)):
        CheckpointReader(tmp_path)


def test_a_wrong_shape_is_named(folder, tmp_path):
    model = skeleton(folder)
    with pytest.raises(torchqat.UserError, match=matches("checkpoints.other-shape", shape=(64, 64), found=(32, 64))):
        CheckpointReader(folder).fill(
            copy.copy(model.model.layers[0].self_attn.q_proj), "model.layers.0.self_attn.k_proj"
        )


def test_no_batches_have_their_sentence(folder, tmp_path):
    with pytest.raises(torchqat.UserError, match=matches("ptq.no-batches-for-method", method="gptq")):
        quantize_folder(folder, tmp_path / "out", recipe(GPTQ, WEIGHT), [])


def test_the_command_streams(arguments, recipe_file, tmp_path, capsys):
    recipe_file.write_text(recipe_file.read_text().replace("schedule:", "initialize: {method: gptq}\nschedule:"))
    code, out, err = call(capsys, "ptq", *arguments, "--stream")
    assert code == 0, err
    assert said(out, "stream.written", layers=14, bits="5.000")
    assert load_in_transformers(tmp_path / "run" / "exports" / "compressed-tensors").config.vocab_size


def test_a_weight_that_a_block_reads_past_its_layer_is_refused_before_any_is_rounded(tmp_path, monkeypatch):
    config = transformers.MambaConfig(vocab_size=400, hidden_size=32, num_hidden_layers=2, state_size=8)
    transformers.MambaForCausalLM(config).save_pretrained(tmp_path / "model")
    monkeypatch.setattr("torchqat.runs.stream.replace_layers", None)
    blocks = "layers:\n  - {match: blocks, weight: {dtype: int4, granularity: channel}}\n"
    text = f"version: 1\n{blocks}  - {{match: '*.conv1d', weight: float}}\ninitialize: {GPTQ}\n"
    parent = "MambaMixer (backbone.layers.0.mixer)"
    with pytest.raises(torchqat.UserError, match=matches("calls.read", parent=parent, mode="evaluation")):
        quantize_folder(tmp_path / "model", tmp_path / "out", torchqat.parse_recipe(text), tokens())
    assert not (tmp_path / "out").exists()


def test_a_layer_that_a_block_never_calls_is_refused_before_any_is_rounded(folder, tmp_path, monkeypatch):
    class Passes(transformers.models.llama.modeling_llama.LlamaMLP):
        def forward(self, x):
            return self.down_proj(self.act_fn(self.gate_proj(x)))

    monkeypatch.setattr("transformers.models.llama.modeling_llama.LlamaMLP", Passes)
    monkeypatch.setattr("torchqat.runs.stream.replace_layers", None)
    with pytest.raises(torchqat.UserError, match=matches("calls.never", layer="model.layers.0.mlp.up_proj")):
        quantize_folder(folder, tmp_path / "out", recipe(GPTQ, WEIGHT), tokens())


def test_only_language_models_are_streamed(folder, tmp_path):
    settings = recipe(GPTQ, WEIGHT)
    settings.model.kind = "seq2seq"
    with pytest.raises(torchqat.UserError, match=matches("stream.of-kind", kind="seq2seq")):
        quantize_folder(folder, tmp_path / "out", settings, tokens())
