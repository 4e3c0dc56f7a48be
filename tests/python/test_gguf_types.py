"""llama.cpp's types: what the gguf package's decoder reads of the blocks is what the training forward used, bit for bit."""

import copy
import re

import gguf
import numpy as np
import pytest
import torch
import torchqat
from architectures import build
from gguf.quants import dequantize
from sentences import matches
from test_presets import spec_of, train
from torch import nn
from torchqat._library import LayerPlan, find_format, gguf_type, load_checkpoint
from torchqat.checkpoints.formats.llama_cpp.ternary import tq1_0_blocks
from torchqat.checkpoints.readers.gguf import gguf_files
from torchqat.checkpoints.readers.gguf_types import Reader

CASES = 1000
K_QUANTS = ("q2_k", "q3_k", "q4_k", "q5_k", "q6_k")
TYPES = (*K_QUANTS, "q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q2_0", "tq2_0", "iq4_nl", "iq4_xs")
SHAPE = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "head_dim": 64, "vocab_size": 400}


def random_layer(preset, seed):
    """A layer whose weights are of a random size, now and then with zeros, outliers, one sign, or learned scales."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns = 1 + seed % 3, 256 * (1 + seed % 2)
    weight = torch.randn(rows, columns, generator=generator) * 10 ** (torch.rand(1, generator=generator) * 7 - 5)
    if seed % 5 == 0:
        weight[0, : 16 * (1 + seed % 17)] = 0
    if seed % 7 == 0:
        weight[-1, :20] *= 300
    if seed % 11 == 0:
        weight = weight.abs() + 2 * weight.abs().mean()
    learned = seed % 2 == 1
    net = nn.Sequential(nn.Linear(columns, rows, bias=False))
    with torch.no_grad():
        net[0].weight.copy_(weight)
    rule = f'{{match: "*", weight: {{dtype: {preset}, scale: {"learned" if learned else "minmax"}}}}}'
    layer = torchqat.prepare(net, torchqat.parse_recipe(f"version: 1\nlayers: [{rule}]\n"), method="rtn")[0]
    if learned:
        with torch.no_grad():
            layer.weight_scale.mul_(torch.rand(layer.weight_scale.shape, generator=generator) * 1.5 + 0.2)
            if layer.weight_spec.has_offset:
                layer.weight_zero_point.add_(weight.std() * torch.randn(layer.weight_scale.shape, generator=generator))
    return layer, layer.convert("a", torch.float16)


def decoded_q2_0(blocks):
    """From ggml: 64 columns in 18 bytes, a float16 d and codes of 2 bits, four to a byte, that mean -1, 0, 1 and 2 d."""
    found = []
    for block in blocks.reshape(-1, 18):
        d = np.frombuffer(block[:2].tobytes(), np.float16).astype(np.float32)[0]
        found += [np.float32((int(block[2 + i // 4]) >> 2 * (i % 4) & 3) - 1) * d for i in range(64)]
    return np.array(found, np.float32).reshape(blocks.shape[0], -1)


def decoded(blocks, preset):
    return decoded_q2_0(blocks) if preset == "q2_0" else dequantize(blocks, gguf.GGMLQuantizationType[preset.upper()])


@pytest.mark.parametrize("preset", TYPES)
def test_ggufs_decoder_reads_what_the_forward_used(preset):
    for seed in range(CASES):
        layer, found = random_layer(preset, seed)
        blocks = find_format("gguf").tensors(found)["a.weight"].numpy()
        assert np.array_equal(decoded(blocks, preset), layer.quantized_weight().detach().numpy()), seed


@pytest.mark.parametrize("preset", TYPES)
def test_the_file_has_the_type_that_the_recipe_names(preset):
    assert gguf_type(spec_of(preset), 512) == preset.upper()


def int_spec(text):
    made = torchqat.parse_recipe(f'version: 1\nlayers: [{{match: "*", weight: {{{text}, scale_dtype: float16}}}}]\n')
    return torchqat.prepare(nn.Sequential(nn.Linear(512, 4)), made)[0].weight_spec


@pytest.mark.parametrize(
    "text, columns, expected",
    (
        ("dtype: int2, group_size: 64, grid: full", 512, "Q2_0"),
        ("dtype: int2, group_size: 128", 512, "Q2_0"),
        ("dtype: int2, group_size: 256", 512, "TQ2_0"),
        ("dtype: int2, granularity: channel, grid: signed", 512, "Q2_0"),
        ("dtype: int2, granularity: channel, grid: signed", 96, "Q4_0"),
        ("dtype: int2, group_size: 32", 512, "Q4_0"),
        ("dtype: int3, group_size: 64", 512, "Q4_0"),
        ("dtype: int5, group_size: 32", 512, "Q5_0"),
        ("dtype: int6, group_size: 32", 512, "Q8_0"),
        ("dtype: int4, group_size: 32, symmetric: false", 512, "Q4_1"),
    ),
)
def test_integers_take_the_smallest_type_that_holds_them(text, columns, expected):
    assert gguf_type(int_spec(text), columns) == expected


@pytest.mark.parametrize("scale", ("minmax", "mse", "learned"))
@pytest.mark.parametrize("preset", TYPES)
def test_a_trained_model_is_written_and_verified(preset, scale, tokenizer, tmp_path):
    rule = f"{{match: blocks, weight: {{dtype: {preset}, scale: {scale}}}}}"
    made = torchqat.parse_recipe(f"version: 1\nlayers: [{rule}]\n")
    model = train(torchqat.prepare(build("Llama", **SHAPE), made, method="mse"), steps=2)
    folder = torchqat.export(model, tmp_path / "out", "gguf", tokenizer)
    kinds = {tensor.name: tensor.tensor_type for tensor in Reader(gguf_files(folder)[0]).tensors}
    expected = 42 if preset == "q2_0" else gguf.GGMLQuantizationType[preset.upper()]
    assert kinds["blk.1.ffn_down.weight"] == kinds["blk.0.attn_q.weight"] == expected
    checked = torchqat.verify(folder, model)
    assert checked.ok and checked.layers == 14, str(checked)


@pytest.mark.parametrize("preset", TYPES)
def test_torchqats_own_format_has_all_of_it(preset, tmp_path):
    made = torchqat.parse_recipe(f"version: 1\nlayers: [{{match: blocks, weight: {{dtype: {preset}}}}}]\n")
    model = torchqat.prepare(build("Llama", **SHAPE), made)
    folder = torchqat.export(model, tmp_path / "out", "safetensors", dtype=torch.float16)
    for layer in load_checkpoint(folder).layers:
        again = find_format("gguf").tensors(layer)[f"{layer.name}.weight"]
        own = model.get_submodule(layer.name).convert(layer.name, torch.float16)
        assert torch.equal(again, find_format("gguf").tensors(own)[f"{layer.name}.weight"])


def test_damage_in_q2_0_is_found(tokenizer, tmp_path):
    made = torchqat.parse_recipe("version: 1\nlayers: [{match: blocks, weight: {dtype: q2_0}}]\n")
    model = torchqat.prepare(build("Llama", **SHAPE), made)
    folder = torchqat.export(model, tmp_path / "out", "gguf", tokenizer)
    tensor = next(t for t in Reader(gguf_files(folder)[0], "r+").tensors if t.name == "blk.1.ffn_up.weight")
    tensor.data[3, 7] ^= 1
    tensor.data.base.flush() if hasattr(tensor.data.base, "flush") else None
    assert not torchqat.verify(folder, model).ok


def test_experts_of_a_mixture_are_written(tokenizer, tmp_path):
    shape = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 256, "norm_topk_prob": True}
    for preset in ("q4_k", "q6_k", "q2_0"):
        made = torchqat.parse_recipe(f"version: 1\nlayers: [{{match: blocks, weight: {{dtype: {preset}}}}}]\n")
        model = train(torchqat.prepare(build("Qwen3Moe", **{**SHAPE, **shape}), made), steps=1)
        folder = torchqat.export(model, tmp_path / preset, "gguf", tokenizer)
        checked = torchqat.verify(folder, model)
        assert checked.ok, str(checked)


# -- TQ1_0 -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("group", (256, 512))
def test_ggufs_decoder_reads_tq1_0_as_the_forward_used_it(group):
    for seed in range(100):
        generator = torch.Generator().manual_seed(seed)
        weight = torch.randn(3, 1024, generator=generator) * 10 ** (torch.rand(1, generator=generator) * 4 - 3)
        if seed % 5 == 0:
            weight[0, : 16 * (1 + seed % 17)] = 0
        net = nn.Sequential(nn.Linear(1024, 3, bias=False))
        with torch.no_grad():
            net[0].weight.copy_(weight)
        spec = f"{{dtype: int2, grid: narrow, group_size: {group}, scale_dtype: float16, scale: mse}}"
        rule = f'{{match: "*", weight: {spec}}}'
        layer = torchqat.prepare(net, torchqat.parse_recipe(f"version: 1\nlayers: [{rule}]\n"), method="mse")[0]
        blocks = tq1_0_blocks(layer.convert("a", torch.float16)).numpy()
        assert blocks.shape == (3, 4 * 54)
        found = dequantize(blocks, gguf.GGMLQuantizationType.TQ1_0)
        assert np.array_equal(found, layer.quantized_weight().detach().numpy()), seed


def test_a_model_is_written_in_tq1_0_and_verified(tokenizer, tmp_path):
    made = torchqat.parse_recipe("version: 1\nlayers: [{match: blocks, weight: {dtype: tq2_0, scale: learned}}]\n")
    model = train(torchqat.prepare(build("Llama", **SHAPE), made), steps=2)
    sizes = []
    for ternary in ("tq2_0", "tq1_0"):
        folder = torchqat.export(model, tmp_path / ternary, "gguf", tokenizer, ternary=ternary)
        kinds = {t.name: t for t in Reader(gguf_files(folder)[0]).tensors}
        assert kinds["blk.1.ffn_down.weight"].tensor_type.name == ternary.upper()
        sizes.append(int(kinds["blk.1.ffn_down.weight"].n_bytes))
        checked = torchqat.verify(folder, model)
        assert checked.ok and checked.layers == 14, str(checked)
    assert sizes[1] * 66 == sizes[0] * 54


def test_tq1_0_is_of_ternary_layers(tokenizer, tmp_path):
    made = torchqat.parse_recipe("version: 1\nlayers: [{match: blocks, weight: {dtype: q4_k}}]\n")
    model = torchqat.prepare(build("Llama", **SHAPE), made, method="rtn")
    with pytest.raises(torchqat.UserError, match=matches("export.gguf-not-ternary")):
        torchqat.export(model, tmp_path / "out", "gguf", tokenizer, ternary="tq1_0")
    with pytest.raises(torchqat.UserError, match=matches("export.gguf-ternary", ternary="q2_0")):
        torchqat.export(model, tmp_path / "out", "gguf", tokenizer, ternary="q2_0")


# -- mixes -------------------------------------------------------------------------------------------------------------


def with_mix(mix, rest="", **shape):
    text = f"version: 1\nlayers:\n  - {{match: blocks, weight: {{mix: {mix}, scale: learned}}}}\n{rest}"
    return torchqat.prepare(build("Llama", **{**SHAPE, **shape}), torchqat.parse_recipe(text), method="mse")


@pytest.mark.parametrize("mix", ("q2_k", "q3_k_m", "q4_k_s", "q4_k_m", "q5_k_m", "q6_k"))
@pytest.mark.parametrize("hidden", (256, 192))
def test_a_mix_is_written_and_verified(mix, hidden, tokenizer, tmp_path):
    model = train(with_mix(mix, hidden_size=hidden, intermediate_size=2 * hidden), steps=2)
    folder = torchqat.export(model, tmp_path / "out", "gguf", tokenizer)
    checked = torchqat.verify(folder, model)
    assert checked.ok and checked.layers == 14, str(checked)


ENDS = '  - {match: "type:Embedding", weight: WEIGHT}\n  - {match: lm_head, weight: WEIGHT}\n'


def with_ends(weight, blocks="q4_k_m", **shape):
    return with_mix(blocks, ENDS.replace("WEIGHT", weight), **shape)


def test_embedding_and_head_by_the_same_rules(tokenizer, tmp_path):
    for tied, expected in ((False, "Q4_K"), (True, "Q6_K")):
        model = train(with_ends("{mix: q4_k_m}", tie_word_embeddings=tied), steps=2)
        folder = torchqat.export(model, tmp_path / str(tied), "gguf", tokenizer)
        kinds = {tensor.name: tensor.tensor_type.name for tensor in Reader(gguf_files(folder)[0]).tensors}
        assert kinds["token_embd.weight"] == expected
        assert kinds.get("output.weight") == (None if tied else "Q6_K")
        checked = torchqat.verify(folder, model)
        assert checked.ok and checked.layers == 16, str(checked)


@pytest.mark.parametrize("scale", ("minmax", "mse", "learned"))
def test_a_table_that_is_the_head_as_well_is_written_once(scale, tokenizer, tmp_path):
    model = train(with_ends(f"{{dtype: q6_k, scale: {scale}}}", tie_word_embeddings=True), steps=3)
    names = [name for name, _ in model.named_parameters() if name.endswith("weight_scale") and "layers" not in name]
    assert names == (["model.embed_tokens.weight_scale"] if scale == "learned" else [])
    folder = torchqat.export(model, tmp_path / "once", "gguf", tokenizer)
    found = {tensor.name: tensor for tensor in Reader(gguf_files(folder)[0], "r+").tensors}
    assert "output.weight" not in found and torchqat.verify(folder, model).ok
    found["token_embd.weight"].data[5, 40] ^= 1
    checked = torchqat.verify(folder, model)
    assert not checked.ok and checked.differing.keys() == {"model.embed_tokens", "lm_head"}


def test_a_head_that_differs_from_its_embedding_is_written_beside_it(tokenizer, tmp_path):
    model = with_ends("{dtype: q6_k, scale: mse}", tie_word_embeddings=True)
    with torch.no_grad():
        model.lm_head.weight_scale[7] = 0
    folder = torchqat.export(model, tmp_path / "twice", "gguf", tokenizer)
    assert "output.weight" in {tensor.name for tensor in Reader(gguf_files(folder)[0]).tensors}
    assert torchqat.verify(folder, model).ok


def test_scales_of_a_tied_table_are_kept_and_saved_once(tmp_path):
    model = train(with_ends("{dtype: q6_k, scale: learned}", tie_word_embeddings=True), steps=3)
    again = with_ends("{dtype: q6_k, scale: learned}", tie_word_embeddings=True)
    again.load_state_dict(model.state_dict())
    assert again.lm_head.weight_scale is again.model.embed_tokens.weight_scale
    for found in (again, copy.deepcopy(model)):
        for ends in zip(ends_of(found), ends_of(model), strict=True):
            assert torch.equal(*(layer.quantized_weight() for layer in ends))
    model.save_pretrained(tmp_path / "saved")  # refuses what is shared without saying so
    state = model.state_dict()
    state["lm_head.weight_scale"] = state["lm_head.weight_scale"] * 1.5
    with pytest.raises(RuntimeError, match=matches("tied.apart")):
        again.load_state_dict(state)


def ends_of(model):
    return model.model.embed_tokens, model.lm_head


def test_the_plan_says_which_type_stands_in():
    text = "version: 1\nlayers: [{match: blocks, weight: {mix: q4_k_m}}]\n"
    model = build("Llama", **{**SHAPE, "hidden_size": 192})
    plan = torchqat.make_plan(model, torchqat.parse_recipe(text))
    notes = {layer.name: layer.note for layer in plan.layers}
    assert notes["model.layers.0.mlp.up_proj"] == "q5_0 of q4_k_m, in place of q4_k, whose 256 do not divide 192"
    assert notes["model.layers.1.mlp.down_proj"] == "q6_k of q4_k_m"
    assert "(q5_0 of q4_k_m, in place of q4_k, whose 256 do not divide 192)" in str(plan)


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_inputs_of_k_quants_are_rounded_by_256():
    spec = torchqat.parse_recipe
    rule = '{match: "*", weight: {dtype: q4_k}, input: {dtype: int8, group_size: GROUP}}'
    for group, held in ((256, True), (32, False)):
        made = spec(f"version: 1\nlayers: [{rule.replace('GROUP', str(group))}]\n")
        layer = torchqat.prepare(nn.Sequential(nn.Linear(256, 8)), made)[0]
        refusal = find_format("gguf").refusal(LayerPlan("a", 256, 8, layer.weight_spec, layer.input_spec))
        assert (refusal == "") == held
    assert re.search("groups of 256", refusal)


@pytest.mark.parametrize("preset", ("q4_k", "q5_1"))
def test_other_formats_say_that_they_have_no_place(preset):
    layer = LayerPlan("layer", 256, 16, spec_of(preset), None)
    assert re.search(matches("export.because-coded"), find_format("gptq").refusal(layer))
