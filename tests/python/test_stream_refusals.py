"""What cannot be streamed is refused, by name and before any block is rounded."""

import copy

import pytest
import torchqat
import transformers
from architectures import recipe, tokens
from safetensors.torch import load_file, save_file
from sentences import matches
from streaming import GPTQ, WEIGHT
from torchqat.model.outline import CheckpointReader, skeleton
from torchqat.runs.stream import quantize_folder


def test_a_format_that_needs_the_whole_model_is_refused(llama_folder, tmp_path):
    settings = recipe(GPTQ, WEIGHT)
    settings.exports = ["onnx"]
    with pytest.raises(torchqat.UserError, match=matches("stream.format", format="onnx")):
        quantize_folder(llama_folder, tmp_path / "out", settings, tokens())


def test_what_needs_the_whole_model_is_refused(llama_folder, tmp_path):
    with pytest.raises(torchqat.UserError, match=matches("stream.rotates")):
        quantize_folder(llama_folder, tmp_path / "out", recipe("{method: hadamard+gptq}", WEIGHT), tokens())
    assert not (tmp_path / "out").exists()


def test_a_folder_around_a_gguf_file_names_the_file(tmp_path):
    """That is what an export in gguf is; a configuration that transformers does not know is a sentence, too."""
    file = tmp_path / "model" / "model.gguf"
    file.parent.mkdir()
    file.write_bytes(b"GGUF")
    said = matches("model.no-configuration", path=file.parent, hint=f"; give the file in it, {file}")
    with pytest.raises(torchqat.UserError, match=said):
        quantize_folder(file.parent, tmp_path / "out", recipe(GPTQ, WEIGHT), tokens())
    (file.parent / "config.json").write_text("{}")
    with pytest.raises(torchqat.UserError, match=matches("model.does-not-load", path=file.parent)):
        quantize_folder(file.parent, tmp_path / "out", recipe(GPTQ, WEIGHT), tokens())
    assert not (tmp_path / "out").exists()


def test_blocks_that_are_no_row_are_refused(tmp_path):
    config = transformers.XLMConfig(emb_dim=64, n_layers=2, n_heads=4, n_words=100, vocab_size=100)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "model")
    settings = recipe(GPTQ, WEIGHT)
    settings = torchqat.parse_recipe(settings.text.replace("model.layers.*", "transformer.*"), "recipe")
    with pytest.raises(torchqat.UserError, match=matches("stream.no-row", block="transformer.attentions.1")):
        quantize_folder(tmp_path / "model", tmp_path / "out", settings, tokens())
    assert not (tmp_path / "out").exists()


def test_a_layer_of_two_blocks_is_refused(llama_folder, tmp_path, monkeypatch):
    def sharing(*args):
        model = skeleton(*args)
        model.model.layers[1].mlp.up_proj = model.model.layers[0].mlp.up_proj
        return model

    monkeypatch.setattr("torchqat.runs.stream.skeleton", sharing)
    shared = matches("stream.in-several-blocks", layer="model.layers.0.mlp.up_proj")
    with pytest.raises(torchqat.UserError, match=shared):
        quantize_folder(llama_folder, tmp_path / "out", recipe(GPTQ, WEIGHT), tokens())
    assert not (tmp_path / "out").exists()


def test_a_head_is_refused(llama_folder, tmp_path):
    text = recipe(GPTQ, WEIGHT).text.replace("initialize:", f"  - match: lm_head\n    weight: {WEIGHT}\ninitialize:")
    with pytest.raises(torchqat.UserError, match=matches("stream.layer-outside-blocks", layer="lm_head")):
        quantize_folder(llama_folder, tmp_path / "out", torchqat.parse_recipe(text, "recipe"), tokens())


def test_a_missing_tensor_is_named_and_nothing_is_left(llama_folder, tmp_path):
    tensors = load_file(llama_folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    broken = tmp_path / "model"
    broken.mkdir()
    save_file(tensors, broken / "model.safetensors")
    (broken / "config.json").write_text((llama_folder / "config.json").read_text())
    lacking = matches("checkpoints.lacks-tensor", folder=broken, name="model.layers.1.mlp.up_proj.weight")
    with pytest.raises(torchqat.UserError, match=lacking):
        quantize_folder(broken, tmp_path / "out", recipe(GPTQ, WEIGHT), tokens())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]
    with pytest.raises(torchqat.UserError, match=matches("checkpoints.no-safetensors-in-folder", folder=tmp_path)):
        CheckpointReader(tmp_path)


def test_a_wrong_shape_is_named(llama_folder, tmp_path):
    model = skeleton(llama_folder)
    with pytest.raises(torchqat.UserError, match=matches("checkpoints.other-shape", shape=(64, 64), found=(32, 64))):
        CheckpointReader(llama_folder).fill(
            copy.copy(model.model.layers[0].self_attn.q_proj), "model.layers.0.self_attn.k_proj"
        )


def test_no_batches_have_their_sentence(llama_folder, tmp_path):
    with pytest.raises(torchqat.UserError, match=matches("ptq.no-batches-for-method", method="gptq")):
        quantize_folder(llama_folder, tmp_path / "out", recipe(GPTQ, WEIGHT), [])


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


def test_a_layer_that_a_block_never_calls_is_refused_before_any_is_rounded(llama_folder, tmp_path, monkeypatch):
    class Passes(transformers.models.llama.modeling_llama.LlamaMLP):
        def forward(self, x):
            return self.down_proj(self.act_fn(self.gate_proj(x)))

    monkeypatch.setattr("transformers.models.llama.modeling_llama.LlamaMLP", Passes)
    monkeypatch.setattr("torchqat.runs.stream.replace_layers", None)
    with pytest.raises(torchqat.UserError, match=matches("calls.never", layer="model.layers.0.mlp.up_proj")):
        quantize_folder(llama_folder, tmp_path / "out", recipe(GPTQ, WEIGHT), tokens())


def test_only_language_models_are_streamed(llama_folder, tmp_path):
    settings = recipe(GPTQ, WEIGHT)
    settings.model.kind = "seq2seq"
    with pytest.raises(torchqat.UserError, match=matches("stream.of-kind", kind="seq2seq")):
        quantize_folder(llama_folder, tmp_path / "out", settings, tokens())


def test_blocks_without_linear_layers_are_refused(tmp_path):
    """GPT-2's are of another class, which is not streamed."""
    config = transformers.GPT2Config(vocab_size=100, n_embd=64, n_layer=2, n_head=4)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "model")
    settings = torchqat.parse_recipe(recipe(GPTQ, WEIGHT).text.replace("model.layers.*", "transformer.h.*"), "recipe")
    with pytest.raises(torchqat.UserError, match=matches("stream.no-blocks", model="GPT2LMHeadModel")):
        quantize_folder(tmp_path / "model", tmp_path / "out", settings, tokens())
