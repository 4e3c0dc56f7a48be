"""Quantized experts in checkpoints: each expert's matrices are linear layers that other people's readers find."""

import copy
import json

import gguf
import pytest
import torch
import torchqat
import transformers
from safetensors.torch import load_file
from sentences import matches
from test_experts import build, experts_of, logits, recipe_of
from torchqat.checkpoints.export import check_exports
from torchqat.checkpoints.readers.reading import read_tensors
from torchqat.layers.prepared import quant_layers
from torchqat.model.prepare import make_plan
from torchqat.runs.stream import quantize_folder
from torchqat.verification.engines.transformers import load_in_transformers

INT4 = "{dtype: int4, group_size: 16, grid: full, scale: mse, scale_dtype: float32}"
HALF = "{dtype: int4, group_size: 32, grid: full, scale: mse, scale_dtype: float16}"
SIZES = {"vocab_size": 128, "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4}

# As what is streamed is rounded.
LAYER = "initialize: {method: gptq, objective: layer}\n"


def _mixtral():
    config = transformers.MixtralConfig(**SIZES, num_key_value_heads=2, num_hidden_layers=2, num_local_experts=4)
    return transformers.MixtralForCausalLM(config)


def _deepseek():
    config = transformers.DeepseekV3Config(
        **SIZES, num_hidden_layers=2, num_key_value_heads=4, moe_intermediate_size=32, n_routed_experts=4,
        num_experts_per_tok=2, n_group=1, topk_group=1, q_lora_rank=32, kv_lora_rank=16, qk_rope_head_dim=8,
        qk_nope_head_dim=16, v_head_dim=16, first_k_dense_replace=1, n_shared_experts=1,
    )  # fmt: skip
    return transformers.DeepseekV3ForCausalLM(config)


def model_of(name):
    if name in ("qwen3_moe", "gpt_oss"):
        return build(name)
    torch.manual_seed(0)
    model = {"mixtral": _mixtral, "deepseek_v3": _deepseek}[name]().eval()
    for parameter in model.parameters():
        if parameter.dim() == 3:
            parameter.data.normal_(std=0.1)
    return model


# By model, what experts are called on disk.
FAMILIES = {
    "qwen3_moe": "model.layers.0.mlp.experts.3.gate_proj",
    "mixtral": "model.layers.0.block_sparse_moe.experts.3.w1",
    "deepseek_v3": "model.layers.1.mlp.experts.3.gate_proj",
}


@pytest.mark.parametrize("weight", [INT4, "{dtype: int8}", "{dtype: fp8_e4m3}"])
@pytest.mark.parametrize("name", FAMILIES)
def test_transformers_puts_them_together_bit_for_bit(name, weight, tmp_path):
    prepared = torchqat.prepare(model_of(name), recipe_of(weight))
    folder = torchqat.export(prepared, tmp_path / "out")
    leaf = "weight" if "fp8" in weight else "weight_packed"
    assert f"{FAMILIES[name]}.{leaf}" in read_tensors(folder)
    loaded = load_in_transformers(folder)
    parameters = dict(loaded.named_parameters())
    for layer_name, layer in experts_of(prepared):
        assert torch.equal(parameters[layer_name], layer()), layer_name
    torch.testing.assert_close(logits(loaded), logits(prepared), rtol=0, atol=1e-5)
    checked = torchqat.verify(folder, prepared)
    assert checked.ok and checked.layers == len(quant_layers(prepared)), str(checked)


def test_a_scheme_of_their_own_is_named_by_a_pattern(tmp_path):
    rest = '  - {match: "*.experts.*", weight: {dtype: int4, group_size: 16, scale_dtype: float32}}\n'
    prepared = torchqat.prepare(model_of("qwen3_moe"), recipe_of("{dtype: int8, scale_dtype: float32}", rest))
    folder = torchqat.export(prepared, tmp_path / "out")
    groups = json.loads((folder / "config.json").read_text())["quantization_config"]["config_groups"].values()
    bits = {group["weights"]["num_bits"]: group["targets"] for group in groups}
    assert bits[4] == [r"re:.*\.experts\..*"] and "model.layers.0.self_attn.q_proj" in bits[8]
    assert torchqat.verify(folder, prepared).ok
    torch.testing.assert_close(logits(load_in_transformers(folder)), logits(prepared), rtol=0, atol=1e-5)


@pytest.mark.parametrize("rule", ["{dtype: int8}", "float"])
def test_experts_of_two_schemes_are_refused_before_training(rule):
    model = model_of("qwen3_moe")
    rest = f'  - {{match: "model.layers.1.mlp.experts.*", weight: {rule}}}\n'
    prepared = torchqat.prepare(copy.deepcopy(model), recipe_of(INT4, rest))
    with pytest.raises(torchqat.UserError, match=matches("export.experts-differ")):
        torchqat.export(prepared, "out")
    from torchqat.checkpoints.export import check_exports

    plan = torchqat.make_plan(model, recipe_of(INT4, rest))
    with pytest.raises(torchqat.UserError, match=matches("export.experts-differ")):
        check_exports(model, plan, ["compressed-tensors"], True)


@pytest.mark.parametrize(
    ("weight", "why"), [("{dtype: int3, group_size: 16}", "int"), (INT4[:-1] + ", symmetric: false}", "")]
)
def test_what_no_engine_reads_is_refused(weight, why, tmp_path):
    prepared = torchqat.prepare(model_of("mixtral"), recipe_of(weight.replace("grid: full, ", "")))
    with pytest.raises(torchqat.UserError, match=matches("export.cannot-hold", format="compressed-tensors")):
        torchqat.export(prepared, tmp_path / "out")


@pytest.mark.parametrize("format", ["gptq", "awq"])
def test_kernels_of_gptq_and_awq_get_each_expert(format, tmp_path):
    weight = HALF if format == "gptq" else HALF.replace("grid: full", "symmetric: false")
    prepared = torchqat.prepare(model_of("mixtral").half(), recipe_of(weight))
    folder = torchqat.export(prepared, tmp_path / "out", format)
    found = read_tensors(folder)
    assert f"{FAMILIES['mixtral']}.qweight" in found and found[f"{FAMILIES['mixtral']}.scales"].shape == (2, 96)
    assert torchqat.verify(folder, prepared).ok


def test_experts_that_are_one_tensor_on_disk_have_no_place_in_codes_that_engines_read(tmp_path):
    model = model_of("gpt_oss")
    prepared = torchqat.prepare(copy.deepcopy(model), recipe_of(INT4))
    refusal = {"format": "compressed-tensors", "name": "model.layers.0.mlp.experts.gate_up_proj"}
    with pytest.raises(torchqat.UserError, match=matches("export.experts-in-one", **refusal)):
        torchqat.export(prepared, tmp_path / "ct")
    folder = torchqat.export(prepared, tmp_path / "own", "safetensors")
    assert torchqat.verify(folder, prepared).ok
    assert torch.equal(logits(torchqat.load(model, folder)), logits(prepared))


@pytest.mark.parametrize("name", FAMILIES)
def test_our_own_folder_is_loaded(name, tmp_path):
    model = model_of(name)
    prepared = torchqat.prepare(copy.deepcopy(model), recipe_of("{dtype: int3, group_size: 16, scale_dtype: float32}"))
    folder = torchqat.export(prepared, tmp_path / "out", "safetensors")
    assert torchqat.verify(folder, prepared).ok
    assert torch.equal(logits(torchqat.load(model, folder)), logits(prepared))


@pytest.mark.parametrize("change", ["codes", "scale"])
def test_a_changed_expert_is_noticed(change, tmp_path):
    prepared = torchqat.prepare(model_of("qwen3_moe"), recipe_of(INT4))
    folder = torchqat.export(prepared, tmp_path / "out")
    path = folder / "model.safetensors"
    tensors = load_file(path)
    key = f"{FAMILIES['qwen3_moe']}.{'weight_packed' if change == 'codes' else 'weight_scale'}"
    tensors[key].view(-1)[5] += 1
    from safetensors.torch import save_file

    save_file(tensors, path, {"format": "pt"})
    checked = torchqat.verify(folder, prepared)
    assert not checked.ok and list(checked.differing) == ["model.layers.0.mlp.experts.gate_up_proj"]


@pytest.mark.parametrize("name", FAMILIES)
def test_streamed_experts_are_those_of_the_whole_model(name, tmp_path):
    model = model_of(name)
    model.save_pretrained(tmp_path / "model")
    batches = [torch.randint(0, 128, (2, 32), generator=torch.Generator().manual_seed(i)) for i in range(4)]
    recipe = recipe_of("{dtype: int4, group_size: 16, grid: full, scale: mse}", LAYER, match="model.layers.*")
    streamed = quantize_folder(tmp_path / "model", tmp_path / "streamed", recipe, batches)
    prepared = torchqat.prepare(model, recipe)
    torchqat.calibrate(prepared, batches, logits)
    folder = torchqat.export(prepared, tmp_path / "whole")
    one, other = read_tensors(folder), read_tensors(tmp_path / "streamed")
    assert one.keys() == other.keys()
    assert all(torch.equal(tensor, other[key]) for key, tensor in one.items())
    assert streamed.layers == len(quant_layers(prepared))


@pytest.mark.parametrize("weight", ["Q4_0", "Q8_0"])
@pytest.mark.parametrize("name", ["qwen3_moe", "mixtral"])
def test_llama_cpp_gets_three_tensors_a_block(name, weight, tmp_path):
    spec = "{dtype: int4, group_size: 32, grid: signed" if weight == "Q4_0" else "{dtype: int8, group_size: 32"
    prepared = torchqat.prepare(model_of(name), recipe_of(f"{spec}, scale_dtype: float16}}"))
    folder = torchqat.export(prepared, tmp_path / "out", "gguf")
    reader = gguf.GGUFReader(next(folder.glob("*.gguf")))
    found = {tensor.name: tensor for tensor in reader.tensors}
    assert found["blk.1.ffn_up_exps.weight"].tensor_type.name == weight
    assert found["blk.1.ffn_gate_inp.weight"].tensor_type.name == "F32"
    gates, ups = (
        gguf.dequantize(found[f"blk.0.ffn_{part}_exps.weight"].data, found[f"blk.0.ffn_{part}_exps.weight"].tensor_type)
        for part in ("gate", "up")
    )
    together = torch.cat([torch.from_numpy(gates), torch.from_numpy(ups)], dim=1)
    assert torch.equal(together, prepared.model.layers[0].mlp.experts.quantized["gate_up_proj"]())
    assert torchqat.verify(folder, prepared).ok


def test_experts_left_in_floating_point_are_there_too(tmp_path):
    prepared = torchqat.prepare(
        model_of("qwen3_moe"), recipe_of("{dtype: int8, group_size: 32, scale_dtype: float16}", match="*self_attn*")
    )
    folder = torchqat.export(prepared, tmp_path / "out", "gguf")
    assert torchqat.verify(folder, prepared).ok


def test_routing_that_llama_cpp_does_not_know_is_refused(tmp_path):
    config = copy.deepcopy(build("qwen3_moe").config)
    config.norm_topk_prob = False
    prepared = torchqat.prepare(
        transformers.Qwen3MoeForCausalLM(config), recipe_of("{dtype: int8, group_size: 32, scale_dtype: float16}")
    )
    refusal = {"kind": "qwen3_moe", "key": "norm_topk_prob", "value": False}
    with pytest.raises(torchqat.UserError, match=matches("export.gguf-fixed", **refusal)):
        torchqat.export(prepared, tmp_path / "out", "gguf")


def test_experts_that_transformers_replaces_by_others_are_refused_before_training():
    """Also where they stay in floating point: it would make them up."""
    model = build("llama4")
    plan = make_plan(model, recipe_of(INT4, match="*.self_attn.*"))
    refusal = {"model": "Llama4ForCausalLM", "name": "model.layers.0.feed_forward.experts"}
    with pytest.raises(torchqat.UserError, match=matches("export.experts-replaced", **refusal)):
        check_exports(model, plan, ["compressed-tensors"], True)
    check_exports(model, plan, ["safetensors", "dense"], True)
