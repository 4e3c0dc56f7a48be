"""``verify`` without an engine: tensors are not all that decides what a checkpoint computes."""

import json

import gguf
import pytest
import torch
import torchqat
from gguf_models import BLOCKS
from gguf_models import build as gguf_model
from safetensors.torch import load_file, save_file
from sentences import matches, said
from test_experts import build, recipe_of
from torchqat.verification.settings import differing_settings

HALF = "{dtype: int4, group_size: 32, grid: signed, scale: mse, scale_dtype: float16}"


@pytest.fixture
def moe():
    model = build("qwen3_moe")
    model.config.norm_topk_prob = True
    return torchqat.prepare(model, recipe_of(HALF))


def changed(folder, **values):
    """``config.json`` with other values, or without those that are ``None``."""
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **values}
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


@pytest.mark.parametrize("format", ["gptq", "awq", "safetensors", "dense"])
def test_a_setting_that_the_configuration_lost_is_seen_without_an_engine(format, moe, tmp_path):
    moe.config.num_experts_per_tok = 3  # no default
    folder = torchqat.export(moe, tmp_path / "out", format)
    assert torchqat.verify(folder, moe, engine="reader").ok
    changed(folder, num_experts_per_tok=None)
    checked = torchqat.verify(folder, moe, engine="reader")
    assert not checked.ok and checked.settings == ["num_experts_per_tok"]
    assert said(str(checked), "verify.settings", count=1, verb="differs", key="num_experts_per_tok")


def test_nested_settings_are_named_by_their_place_and_those_of_storage_are_none(tiny_llama, tmp_path):
    model = torchqat.prepare(tiny_llama, recipe_of(HALF))
    folder = torchqat.export(model, tmp_path / "out", "gptq")
    changed(folder, dtype="float32", use_cache=False, transformers_version="4.0.0", architectures=None)
    assert torchqat.verify(folder, model, engine="reader").settings == []
    rope = json.loads((folder / "config.json").read_text())["rope_parameters"]
    changed(folder, rope_parameters={**rope, "rope_theta": 5.0}, rms_norm_eps=0.5)
    assert torchqat.verify(folder, model, engine="reader").settings == ["rms_norm_eps", "rope_parameters.rope_theta"]


@pytest.mark.parametrize(
    "values, named",
    [
        ({"model_type": "mistral"}, ["model_type"]),
        ({"model_type": None}, ["model_type"]),
        ({"architectures": ["MistralForCausalLM"]}, ["architectures"]),
        ({"dtype": "bfloat16"}, ["dtype"]),
        ({"rope_theta": 5.0}, ["rope_theta"]),
    ],
)
def test_what_engines_choose_their_model_by_is_compared(values, named, tiny_llama, tmp_path):
    model = torchqat.prepare(tiny_llama, recipe_of(HALF))
    folder = torchqat.export(model, tmp_path / "out", "gptq")
    changed(folder, **values)
    assert torchqat.verify(folder, model, engine="reader").settings == named


@pytest.mark.parametrize("key, value", [("rope_theta", 5.0), ("rope_theta", None), ("rope_scaling", {"factor": 2.0})])
def test_what_mlx_rotates_by_is_compared(key, value, tiny_llama, tmp_path):
    """mlx-lm reads keys that transformers has not, and has frequencies of its own where they are not there."""
    model = torchqat.prepare(tiny_llama, recipe_of(HALF))
    folder = torchqat.export(model, tmp_path / "out", "mlx")
    assert torchqat.verify(folder, model, engine="reader").settings == []
    changed(folder, **{key: value})
    assert key in torchqat.verify(folder, model, engine="reader").settings


def test_frequencies_of_another_kind_are_what_mlx_is_told(tiny_llama, tmp_path):
    tiny_llama.config.rope_parameters = {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5}
    model = torchqat.prepare(tiny_llama, recipe_of(HALF))
    folder = torchqat.export(model, tmp_path / "out", "mlx")
    assert torchqat.verify(folder, model, engine="reader").settings == []
    changed(folder, rope_scaling={"rope_type": "linear", "factor": 4.0})
    assert "rope_scaling" in torchqat.verify(folder, model, engine="reader").settings


def test_the_layout_of_awq_is_compared(tiny_llama, tmp_path):
    """AutoAWQ calls it a version."""
    model = torchqat.prepare(tiny_llama, recipe_of(HALF.replace("grid: signed", "symmetric: false")))
    folder = torchqat.export(model, tmp_path / "out", "awq")
    assert torchqat.verify(folder, model, engine="reader").ok
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    changed(folder, quantization_config={**config, "version": "gemv"})
    assert torchqat.verify(folder, model, engine="reader").settings == ["quantization_config.version"]


def test_our_own_folders_of_another_version_are_refused(tiny_llama, tmp_path):
    model = torchqat.prepare(tiny_llama, recipe_of(HALF))
    folder = torchqat.export(model, tmp_path / "out", "safetensors")
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    changed(folder, quantization_config={**config, "version": 3})
    with pytest.raises(torchqat.UserError, match=matches("checkpoints.plain-version", found=3)):
        torchqat.verify(folder, model, engine="reader")


@pytest.mark.parametrize("place", [0, 1])
def test_the_shape_of_packed_codes_is_that_which_the_file_says(place, tiny_llama, tmp_path):
    """Engines make the matrix by it; the library that reads it back cuts columns off and takes what is there."""
    model = torchqat.prepare(tiny_llama, recipe_of(HALF))
    folder = torchqat.export(model, tmp_path / "out")
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight_shape"
    tensors[name][place] += 1
    found = tensors[name].tolist()
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(torchqat.UserError, match=matches("checkpoints.shape-of-codes", name=name, found=found)):
        torchqat.verify(folder, model, engine="reader")


def test_keys_of_a_gguf_file_are_compared(moe, tmp_path, monkeypatch):
    monkeypatch.setattr(gguf.GGUFWriter, "add_expert_used_count", lambda *_: None)
    folder = torchqat.export(moe, tmp_path / "lost", "gguf")
    assert differing_settings(folder, "gguf", moe) == ["num_experts_per_tok"]
    monkeypatch.undo()
    folder = torchqat.export(moe, tmp_path / "whole", "gguf")
    checked = torchqat.verify(folder, moe, engine="reader")
    assert checked.ok and checked.settings == []
    moe.config.num_hidden_layers += 1
    assert differing_settings(folder, "gguf", moe) == ["num_hidden_layers"]


@pytest.mark.parametrize(
    "name, key, setting",
    [
        ("llama", "llama.attention.key_length", "head_dim"),
        ("llama", "llama.attention.value_length", "head_dim"),
        ("llama", "llama.rope.dimension_count", "partial_rotary_factor"),
        ("llama", "llama.context_length", "max_position_embeddings"),
        ("llama", "llama.vocab_size", "vocab_size"),
        ("gemma3_text", "gemma3.attention.sliding_window", "sliding_window"),
        ("gemma3_text", "gemma3.attention.sliding_window_pattern", "layer_types"),
        ("phi3 longrope", "phi3.rope.freq_base", "rope_parameters.rope_theta"),
        ("phi3 longrope", "phi3.rope.scaling.attn_factor", "rope_parameters.attention_factor"),
        (
            "phi3 longrope",
            "phi3.rope.scaling.original_context_length",
            "rope_parameters.original_max_position_embeddings",
        ),
        ("gpt2", "gpt2.attention.layer_norm_epsilon", "layer_norm_epsilon"),
    ],
)
def test_what_llama_cpp_builds_its_graph_of_is_compared(name, key, setting, tmp_path):
    blocks = BLOCKS.get(name.split()[0], "model.layers.*")
    recipe = torchqat.parse_recipe(f'version: 1\nlayers: [{{match: "{blocks}", weight: {HALF}, allow_float: true}}]\n')
    model = torchqat.prepare(gguf_model(name), recipe)
    folder = torchqat.export(model, tmp_path / "out", "gguf")
    assert differing_settings(folder, "gguf", model) == []
    reader = gguf.GGUFReader(folder / "model.gguf", "r+")
    field = reader.fields[key]
    value = field.parts[field.data[0]]
    value[0] = not value[0] if field.types[-1] == gguf.GGUFValueType.BOOL else value[0] * 2
    reader.data.flush()
    assert differing_settings(folder, "gguf", model) == [setting]


@pytest.mark.parametrize(
    "format, path, value",
    [
        (
            "compressed-tensors",
            ("quantization_config", "config_groups", "group_0", "input_activations", "dynamic"),
            True,
        ),
        ("compressed-tensors", ("quantization_config", "config_groups", "group_0", "weights", "symmetric"), False),
        ("compressed-tensors", ("tie_word_embeddings",), False),
        ("safetensors", ("quantization_config", "layers", "model.layers.0.mlp.up_proj", "input", "grid"), "full"),
    ],
)
def test_what_engines_decode_by_is_compared(format, path, value, tiny_llama, tmp_path):
    """How inputs are rounded is in the configuration alone: no tensor tells of it."""
    spec = "weight: {dtype: int8}, input: {dtype: int8, granularity: tensor}"
    recipe = torchqat.parse_recipe(f"version: 1\nlayers: [{{match: blocks, {spec}}}]\n")
    model = torchqat.prepare(tiny_llama, recipe)
    torchqat.calibrate(model, [torch.arange(32).view(2, 16)])
    folder = torchqat.export(model, tmp_path / "out", format)
    assert torchqat.verify(folder, model, engine="reader").ok
    holder = config = json.loads((folder / "config.json").read_text())
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = value
    (folder / "config.json").write_text(json.dumps(config))
    checked = torchqat.verify(folder, model, engine="reader")
    assert not checked.ok and checked.settings == [".".join(path)]


@pytest.mark.parametrize("values", [{"eos_token_id": 7}, {"eos_token_id": [0, 7]}, {"pad_token_id": 3}, None])
def test_the_tokens_that_end_texts_are_compared(values, tiny_llama, tmp_path):
    """Of generation_config.json, which engines read before config.json; how to sample is up to who serves."""
    tiny_llama.generation_config.eos_token_id = 5
    model = torchqat.prepare(tiny_llama, recipe_of(HALF))
    folder = torchqat.export(model, tmp_path / "out", "gptq")
    file = folder / "generation_config.json"
    written = json.loads(file.read_text())
    file.write_text(json.dumps({**written, "temperature": 0.3, "do_sample": True}))
    assert torchqat.verify(folder, model, engine="reader").ok
    file.write_text(json.dumps({**written, **values})) if values else file.unlink()
    found = torchqat.verify(folder, model, engine="reader").settings
    assert f"generation_config.{next(iter(values or {'eos_token_id': 0}))}" in found
