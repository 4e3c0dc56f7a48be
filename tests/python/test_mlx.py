"""The format of mlx-lm. What MLX itself reads is asked in tests/engines/test_mlx.py."""

import copy
import json

import pytest
import torch
import torchqat
from sentences import matches, sentence
from small_net import recipe_for
from torchqat._library import load_safetensors
from torchqat.checkpoints.export import check_exports
from torchqat.checkpoints.formats.mlx import ARCHITECTURES
from torchqat.checkpoints.readers import format_of

GROUPS = "{dtype: int4, group_size: 32, grid: full}"
EXPONENTS = "{dtype: int4, group_size: 32, scale_dtype: e8m0_even}"
NVFP4 = "{dtype: fp4_e2m1, group_size: 16, scale_dtype: e4m3}"
LAYER = "model.layers.1.self_attn.q_proj"


def _config(folder):
    return json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize(
    ("weight", "mode", "bits", "group"),
    [
        (GROUPS, "affine", 4, 32),
        ("{dtype: int3, group_size: 32, symmetric: false}", "affine", 3, 32),
        ("{dtype: int7, group_size: 32}", "affine", 8, 32),
        ("{dtype: mxfp4}", "mxfp4", 4, 32),
        ("{dtype: mxfp8_e4m3}", "mxfp8", 8, 32),
        (NVFP4, "nvfp4", 4, 16),
    ],
)
def test_each_mode_reads_back_bit_for_bit(weight, mode, bits, group, tiny_llama, tmp_path):
    model = torchqat.prepare(tiny_llama, recipe_for(weight))
    folder = torchqat.export(model, tmp_path / "out", "mlx")
    assert format_of(folder) == "mlx"
    assert str(torchqat.verify(folder, model)) == sentence("verify.equal", layers=14)
    config = _config(folder)
    assert config["quantization"] == config["quantization_config"]
    entry = {"mode": mode, "bits": bits, "group_size": group}
    assert {key: config["quantization"][key] for key in entry} == entry
    assert config["quantization"][LAYER] == entry and config["quantization"]["lm_head"] is False
    tensors = load_safetensors(str(folder / "model.safetensors"))
    assert tensors[f"{LAYER}.weight"].dtype == torch.uint32
    assert (f"{LAYER}.biases" in tensors) == (mode == "affine")


def test_embedding_and_head_that_are_tied(tiny_llama, tmp_path):
    tiny_llama.tie_weights()
    tiny_llama.lm_head.weight = tiny_llama.model.embed_tokens.weight
    tiny_llama.config.tie_word_embeddings = True
    text = (
        f'version: 1\nlayers:\n  - {{match: "model.layers.*", weight: {GROUPS}}}\n'
        '  - {match: "model.embed_tokens", weight: {dtype: int8, group_size: 64}}\n'
        '  - {match: "lm_head", weight: {dtype: int8, group_size: 64}}\n'
    )
    model = torchqat.prepare(tiny_llama, torchqat.parse_recipe(text))
    folder = torchqat.export(model, tmp_path / "out", "mlx")
    config = _config(folder)
    assert config["quantization"]["model.embed_tokens"]["bits"] == config["quantization"]["lm_head"]["bits"] == 8
    tensors = load_safetensors(str(folder / "model.safetensors"))
    assert not config["tie_word_embeddings"] and "lm_head.scales" in tensors
    assert torchqat.verify(folder, model).ok


def test_products_that_mlx_would_round_are_refused_before_training(tiny_llama, tmp_path):
    recipe = recipe_for(GROUPS)
    plan = torchqat.make_plan(tiny_llama, recipe)
    values = {"dtype": "bfloat16", "scale": "bfloat16", "bits": 4}
    told = matches("mlx.inexact-products", **values)
    with pytest.raises(torchqat.UserError, match=told):
        check_exports(tiny_llama, plan, ["mlx"], True, torch.bfloat16)
    model = torchqat.prepare(copy.deepcopy(tiny_llama), recipe)
    with pytest.raises(torchqat.UserError, match=told):
        torchqat.export(model, tmp_path / "out", "mlx", dtype=torch.bfloat16)
    check_exports(tiny_llama, plan, ["mlx"], True, torch.float32)
    exponents = torchqat.make_plan(tiny_llama, recipe_for(EXPONENTS))
    check_exports(tiny_llama, exponents, ["mlx"], True, torch.bfloat16)
    with pytest.raises(torchqat.UserError, match=matches("mlx.inexact-products", dtype="float16", scale="e8m0_even")):
        check_exports(tiny_llama, exponents, ["mlx"], True, torch.float16)


def test_powers_of_two_are_exact_in_bfloat16(tiny_llama, tmp_path):
    model = torchqat.prepare(tiny_llama, recipe_for(EXPONENTS))
    folder = torchqat.export(model, tmp_path / "out", "mlx", dtype=torch.bfloat16)
    assert torchqat.verify(folder, model).ok
    assert load_safetensors(str(folder / "model.safetensors"))[f"{LAYER}.scales"].dtype == torch.bfloat16


def test_numbers_beyond_the_range_are_refused_when_they_are_there(tiny_llama, tmp_path):
    """Of three bits under bfloat16 scales float16 has the digits, but not the range."""
    weight = "{dtype: int3, group_size: 32, grid: full, scale: learned}"
    model = torchqat.prepare(tiny_llama, recipe_for(weight))
    with torch.no_grad():
        model.get_submodule(LAYER).weight_scale.fill_(32768.0)  # float16 has it, but not seven times it
    values = {"name": LAYER, "dtype": "float16"}
    with pytest.raises(torchqat.UserError, match=matches("mlx.inexact-numbers", **values)):
        torchqat.export(model, tmp_path / "out", "mlx", dtype=torch.float16)


def test_an_architecture_that_mlx_lm_names_otherwise_is_refused(tiny_llama):
    from transformers import OPTConfig, OPTForCausalLM

    sizes = {
        "hidden_size": 64,
        "ffn_dim": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "word_embed_proj_dim": 64,
    }
    model = OPTForCausalLM(OPTConfig(vocab_size=64, max_position_embeddings=32, **sizes))
    recipe = torchqat.parse_recipe(f"version: 1\nlayers: {{weight: {GROUPS}}}\n")
    told = matches("mlx.architecture", known=", ".join(ARCHITECTURES), kind="opt")
    with pytest.raises(torchqat.UserError, match=told):
        check_exports(model, torchqat.make_plan(model, recipe), ["mlx"], True)


def test_inputs_and_outer_scales_have_no_place(tiny_llama):
    for weight, input, words in [
        (GROUPS, "{dtype: int8}", "inputs are rounded"),
        ("{dtype: nvfp4}", "", "no outer scale"),
    ]:
        plan = torchqat.make_plan(tiny_llama, recipe_for(weight, input))
        with pytest.raises(torchqat.UserError, match=words):
            check_exports(tiny_llama, plan, ["mlx"], True)
