"""Models that are quantized already: dense with their scales, number by number, or refused in a sentence."""

import copy
import importlib
import json

import pytest
import torch
import torchqat
from command import call
from safetensors.torch import load_file, save_file
from sentences import matches, said, sentence
from test_sources import SHAPE, loaded, refused, saved
from torchqat.layers.prepared import quant_layers
from torchqat.model.loading import load_model
from torchqat.verification.engines.transformers import load_in_transformers

INT4 = "{dtype: int4, group_size: 32, grid: full, scale: mse, scale_dtype: float16}"
HIGH = "{dtype: int8, group_size: 32, grid: full, scale: mse, scale_dtype: float16}"
FP8 = "{dtype: fp8_e4m3, granularity: channel}"


def recipe(*rules):
    text = "version: 1\nlayers:\n" + "".join(f"  - {{match: '{match}', {how}}}\n" for match, how in rules)
    return torchqat.parse_recipe(text, "recipe.yaml")


def exported(model, folder, format, *rules):
    """A checkpoint of ``model``, and the weights that its training forward had."""
    prepared = torchqat.prepare(copy.deepcopy(model), recipe(*rules))
    batch = torch.arange(32)[None]
    torchqat.calibrate(prepared, [batch, batch + 40])
    torchqat.export(prepared, folder, format)
    weights = {f"{n}.weight": layer.quantized_weight().detach() for n, layer in quant_layers(prepared)}
    return {name: weight for name, weight in weights.items() if name != "lm_head.weight"}


SCHEMES = {
    "int4": [("model.layers.*", f"weight: {INT4}")],
    "mixed": [("model.layers.*", f"weight: {INT4}"), ("*.down_proj", f"weight: {HIGH}")],
    "asymmetric": [("model.layers.*", f"weight: {INT4.replace('grid: full', 'symmetric: false')}")],
    "fp8": [("model.layers.*", f"weight: {FP8}, input: {{dtype: fp8_e4m3, granularity: token}}")],
    "w8a8": [("model.layers.*", "weight: {dtype: int8}, input: {dtype: int8, granularity: tensor, dynamic: false}")],
}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_compressed_tensors_are_what_training_had(scheme, tiny_llama, tmp_path):
    expected = exported(tiny_llama, tmp_path, "compressed-tensors", *SCHEMES[scheme])
    model, notes = loaded(tmp_path)
    state = model.state_dict()
    assert len(expected) == 14 and all(torch.equal(state[name], weight) for name, weight in expected.items())
    assert sentence("model.made-dense", path=tmp_path, method="compressed-tensors") in notes
    assert all(type(module) is torch.nn.Linear for module in model.modules() if isinstance(module, torch.nn.Linear))
    assert not hasattr(model.config, "quantization_config") and model.generation_config is not None
    assert any(said(note, "model.left-to-the-recipe") for note in notes) == (scheme == "w8a8")


def test_a_source_that_was_quantized_is_quantized_again(tiny_llama, tmp_path):
    exported(tiny_llama, tmp_path / "a", "compressed-tensors", *SCHEMES["mixed"])
    model = load_model(str(tmp_path / "a"), "bfloat16")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    again = torchqat.prepare(model, recipe(("model.layers.*", "weight: {dtype: int4, group_size: 16}")))
    assert torchqat.verify(torchqat.export(again, tmp_path / "b"), again).ok


def in_blocks(weight, size=32):
    """Codes, scales and values of FP8 blocks, as DeepSeek-V3 and Qwen publish them."""
    rows, columns = weight.shape
    blocks = weight.view(rows // size, size, columns // size, size)
    scale = blocks.abs().amax((1, 3)) / 448.0
    codes = (blocks / scale[:, None, :, None]).to(torch.float8_e4m3fn)
    return codes.view(rows, columns), scale, (codes.float() * scale[:, None, :, None]).view(rows, columns)


def rewritten(folder, state, quantization):
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": quantization}))


@pytest.fixture
def fp8_folder(tmp_path):
    saved(tmp_path / "fp8", "LlamaForCausalLM", **SHAPE)
    state, expected = load_file(tmp_path / "fp8/model.safetensors"), {}
    for name in [name for name in state if name.endswith("_proj.weight")]:
        state[name], state[f"{name}_scale_inv"], expected[name] = in_blocks(state[name])
    quantization = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [32, 32]}
    rewritten(tmp_path / "fp8", state, quantization)
    return tmp_path / "fp8", expected


def test_fp8_blocks_have_their_scales(fp8_folder):
    folder, expected = fp8_folder
    model, notes = loaded(folder)
    assert len(expected) == 14
    assert all(torch.equal(model.state_dict()[name], weight) for name, weight in expected.items())
    assert notes == [sentence("model.made-dense", path=folder, method="fp8")]


def test_codes_without_a_scale_are_no_weights(fp8_folder):
    folder, _ = fp8_folder
    state, name = load_file(folder / "model.safetensors"), "model.layers.1.mlp.up_proj.weight"
    del state[f"{name}_scale_inv"]
    save_file(state, folder / "model.safetensors")
    assert refused(folder) == sentence("model.no-scale", path=folder, method="fp8", names=name)


def test_codes_of_a_configuration_that_says_nothing_are_no_weights(fp8_folder):
    folder, _ = fp8_folder
    config = json.loads((folder / "config.json").read_text())
    del config["quantization_config"]
    (folder / "config.json").write_text(json.dumps(config))
    assert said(refused(folder), "model.not-taken", path=folder)


def test_blocks_that_do_not_divide_a_weight_are_refused(fp8_folder):
    folder, _ = fp8_folder
    state, name = load_file(folder / "model.safetensors"), "model.layers.1.mlp.up_proj.weight_scale_inv"
    state[name] = torch.ones(5, 2)
    save_file(state, folder / "model.safetensors")
    assert refused(folder) == sentence("model.not-made-dense", path=folder, method="fp8")


def test_mxfp4_experts_have_their_scales(tmp_path):
    """gpt-oss: two codes a byte, the first in its low half, powers of two for 32 of them, and the weights transposed."""
    saved(tmp_path, "GptOssForCausalLM", **SHAPE, num_local_experts=4, num_experts_per_tok=2,
          layer_types=["sliding_attention", "full_attention"])  # fmt: skip
    levels = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
    levels = torch.cat([levels, -levels])
    state, expected = load_file(tmp_path / "model.safetensors"), {}
    for name in [name for name in state if name.endswith(("experts.gate_up_proj", "experts.down_proj"))]:
        experts, inputs, outputs = state.pop(name).shape
        codes = torch.randint(0, 256, (experts, outputs, inputs // 32, 16), dtype=torch.uint8)
        exponents = torch.randint(118, 124, (experts, outputs, inputs // 32), dtype=torch.uint8)
        state[f"{name}_blocks"], state[f"{name}_scales"] = codes, exponents
        values = torch.stack([levels[(codes & 15).long()], levels[(codes >> 4).long()]], -1).flatten(-2)
        scaled = values * torch.exp2(exponents.float() - 127)[..., None]
        expected[name] = scaled.reshape(experts, outputs, inputs).transpose(1, 2)
    rewritten(tmp_path, state, {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]})
    model, notes = loaded(tmp_path)
    assert len(expected) == 4
    assert all(torch.equal(model.state_dict()[name], weight) for name, weight in expected.items())
    assert notes == [sentence("model.made-dense", path=tmp_path, method="mxfp4")]
    del state["model.layers.0.mlp.experts.down_proj_scales"]
    save_file(state, tmp_path / "model.safetensors")
    assert said(refused(tmp_path), "model.no-scale", names="model.layers.0.mlp.experts.down_proj_blocks")


@pytest.mark.parametrize(("format", "method"), [("gptq", "gptq"), ("awq", "awq")])
def test_what_transformers_cannot_make_dense_is_refused(format, method, tiny_llama, tmp_path):
    weight = INT4.replace("grid: full", "symmetric: false") if format == "awq" else INT4
    exported(tiny_llama, tmp_path, format, ("model.layers.*", f"weight: {weight}"))
    assert refused(tmp_path) == sentence("model.not-made-dense", path=tmp_path, method=method)


def test_a_method_that_nobody_knows_is_refused(model_folder):
    rewritten(model_folder, load_file(model_folder / "model.safetensors"), {"quant_method": "mine"})
    assert refused(model_folder) == sentence("model.not-made-dense", path=model_folder, method="mine")


def test_bitsandbytes_needs_its_library(model_folder, monkeypatch):
    settings = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    rewritten(model_folder, load_file(model_folder / "model.safetensors"), settings)
    quantizer = importlib.import_module("transformers.quantizers.quantizer_bnb_4bit")
    monkeypatch.setattr(quantizer, "is_bitsandbytes_available", lambda: False)
    assert "bitsandbytes" in refused(model_folder)


def test_our_own_format_is_no_source(tiny_llama, tmp_path):
    exported(tiny_llama, tmp_path, "safetensors", ("model.layers.*", f"weight: {INT4}"))
    assert refused(tmp_path) == sentence("model.own-export", path=tmp_path)


def test_commands_say_so(tiny_llama, tmp_path, data_folder, tokenizer, capsys):
    """`check` and a run note what was made dense; what streams reads weights, and refuses codes."""
    source, out = tmp_path / "source", tmp_path / "run"
    exported(tiny_llama, source, "compressed-tensors", *SCHEMES["int4"])
    tokenizer.save_pretrained(source)
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "version: 1\ndata: {evaluation: {samples: 4, sequence_length: 32}, calibration: {samples: 4, sequence_length: 32}}\n"
        "layers: [{match: 'model.layers.*', weight: {dtype: int4, group_size: 16}}]\n"
        "initialize: {method: gptq}\nevaluate: {compare: []}\n"
    )
    note = "Note: " + sentence("model.made-dense", path=source, method="compressed-tensors")
    code, text, err = call(capsys, "check", path, "--model", source)
    assert code == 0 and note in text, err
    given = [path, "--model", source, "--data", data_folder, "--output", out]
    code, _, err = call(capsys, "ptq", *given, "--stream")
    assert code == 2 and said(err, "stream.quantized-already", path=source, method="compressed-tensors")
    assert not out.exists()
    code, text, err = call(capsys, "ptq", *given)
    assert code == 0 and note in err and note in text, err
    code, text, err = call(capsys, "evaluate", source, "--data", data_folder, "--samples", "2")
    assert code == 0 and note in text, err


def test_what_is_evaluated_is_not_made_up(tiny_llama, tmp_path, data_folder, tokenizer, capsys):
    """A checkpoint whose packed weight lacks, which transformers would load with random numbers in its place."""
    source = tmp_path / "source"
    exported(tiny_llama, source, "compressed-tensors", *SCHEMES["int4"])
    tokenizer.save_pretrained(source)
    state = load_file(source / "model.safetensors")
    lacking = [name for name in state if name.startswith("model.layers.1.mlp.up_proj.")]
    save_file({name: t for name, t in state.items() if name not in lacking}, source / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    code, _, err = call(capsys, "evaluate", source, "--data", data_folder)
    assert code == 2 and said(err, "model.lacks", path=source, names=name)
    with pytest.raises(torchqat.UserError, match=matches("verify.would-be-made-up", folder=source, name=name)):
        load_in_transformers(source)
