"""Formats that Python alone writes: gpt-oss' own MXFP4, and plain folders of rounded numbers, both read by transformers."""

import copy
import json

import pytest
import torch
import torchqat
import transformers
from command import call
from model_zoo.inputs import batches
from model_zoo.models import Entry, build
from safetensors.torch import load_file, save_file
from sentences import matches, said
from torchqat.checkpoints.export import check_exports
from torchqat.layers.prepared import quant_layers
from torchqat.model.prepare import make_plan
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

MXFP4 = "{dtype: mxfp4}"
INT4 = "{dtype: int4, granularity: channel}"


def recipe(match, weight, rest=""):
    return torchqat.parse_recipe(f"version: 1\nlayers:\n  - match: '{match}'\n    weight: {weight}\n{rest}", "recipe")


@pytest.fixture
def gpt_oss():
    return build(Entry("gpt_oss"))


def trained(model, settings):
    """Two steps, which move weights and scales."""
    model = torchqat.prepare(copy.deepcopy(model), settings)
    tokens = torch.randint(5, 200, (2, 24))
    optimizer = torch.optim.AdamW(torchqat.parameter_groups(model, settings.train))
    for _ in range(2):
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


@pytest.mark.parametrize("scale", ["", ", scale: learned", ", scale: mse, scale_dtype: e8m0_even"])
def test_transformers_reads_a_gpt_oss_in_its_own_format_as_it_was_trained(scale, gpt_oss, tmp_path):
    model = trained(gpt_oss, recipe("type:Experts", MXFP4.replace("}", scale + "}")))
    folder = torchqat.export(model, tmp_path / "out", "mxfp4")
    tensors = load_file(folder / "model.safetensors")
    experts, name = model.model.layers[1].mlp.experts, "model.layers.1.mlp.experts"
    layers = {layer.leaf: layer for _, layer in quant_layers(experts)}
    assert tensors[f"{name}.gate_up_proj_blocks"].shape == (4, 192, 2, 16)
    assert tensors[f"{name}.gate_up_proj_scales"].shape == (4, 192, 2)
    for leaf, layer in layers.items():
        blocks, scales = (tensors[f"{name}.{leaf}_{part}"] for part in ("blocks", "scales"))
        assert blocks.dtype == scales.dtype == torch.uint8
        assert torch.equal(convert_moe_packed_tensors(blocks, scales, dtype=torch.float32), layer())
    found = transformers.GptOssForCausalLM.from_pretrained(folder)
    for leaf, layer in layers.items():
        assert torch.equal(getattr(found.model.layers[1].mlp.experts, leaf), layer())
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert config["quant_method"] == "mxfp4" and "model.layers.*.self_attn" in config["modules_to_not_convert"]
    checked = torchqat.verify(folder, model)
    assert checked.ok and checked.layers == 4 and checked.agreement.engine == "transformers", str(checked)


def test_what_was_read_in_mxfp4_is_written_with_the_same_blocks(gpt_oss, tmp_path):
    from torchqat.kinds import find_kind

    settings = recipe("type:Experts", MXFP4)
    first = torchqat.export(trained(gpt_oss, settings), tmp_path / "first", "mxfp4")
    again = torchqat.prepare(find_kind("causal_lm").load(str(first), "bfloat16"), settings)
    second = torchqat.export(again, tmp_path / "second", "mxfp4")
    there, here = (load_file(folder / "model.safetensors") for folder in (first, second))
    packed = [name for name in there if name.endswith(("_blocks", "_scales"))]
    assert len(packed) == 8 and all(torch.equal(there[name], here[name]) for name in packed)


def test_a_changed_or_lost_block_is_seen(gpt_oss, tmp_path):
    model = torchqat.prepare(gpt_oss, recipe("type:Experts", MXFP4))
    folder = torchqat.export(model, tmp_path / "out", "mxfp4")
    file = folder / "model.safetensors"
    tensors, name = load_file(file), "model.layers.0.mlp.experts.down_proj"
    changed = {**tensors, f"{name}_blocks": tensors[f"{name}_blocks"] ^ 1}
    save_file(changed, file, metadata={"format": "pt"})
    assert name in torchqat.verify(folder, model).differing
    del changed[f"{name}_scales"]
    save_file(changed, file, metadata={"format": "pt"})
    assert f"{name}_scales" in torchqat.verify(folder, model).missing


def test_what_has_no_place_in_mxfp4_is_refused_before_training(gpt_oss):
    def refusal(model, match, weight, rest=""):
        plan = make_plan(model, recipe(match, weight, rest))
        with pytest.raises(torchqat.UserError) as error:
            check_exports(model, plan, ["mxfp4"], True)
        return str(error.value)

    found = refusal(gpt_oss, "*", MXFP4)
    assert said(found, "export.mxfp4-of-another-type", type="Linear"), found
    found = refusal(gpt_oss, "type:Experts", "{dtype: int4, group_size: 32}")
    assert said(found, "export.mxfp4-of-another-dtype"), found
    found = refusal(gpt_oss, "model.layers.1.mlp.experts.*", MXFP4)
    assert said(found, "export.mxfp4-in-part", name="model.layers.0.mlp.experts.gate_up_proj"), found
    in_part = torchqat.prepare(copy.deepcopy(gpt_oss), recipe("model.layers.1.mlp.experts.*", MXFP4))
    with pytest.raises(torchqat.UserError, match=matches("export.mxfp4-in-part")):
        torchqat.live_weights(in_part, "mxfp4")
    found = refusal(gpt_oss, "type:Experts", MXFP4, "kv_cache: {dtype: int8}\n")
    assert said(found, "export.no-cache", format="mxfp4"), found
    found = refusal(build(Entry("llama4_text")), "type:Experts", MXFP4)
    assert said(found, "export.mxfp4-architecture", architecture="llama4_text"), found


# A model, and how many layers of it are quantized.
DENSE = {
    "gpt_oss": 12,
    "granitemoe": 12,
    "llama4_text": 16,
    "qwen3_moe": 12,
    "gpt2": 8,
    "gemma": 14,
    "bert, text classes": 13,
    "convnext, image classes": 58,
    "t5, text to text": 32,
}


@pytest.mark.parametrize("name", DENSE)
def test_any_model_loads_with_its_rounded_numbers(name, tmp_path):
    kind, _, purpose = name.partition(", ")
    entry = Entry(kind, purpose or "text")
    plain = build(entry)
    model = torchqat.prepare(copy.deepcopy(plain), recipe("*", INT4)).eval()
    example = batches(entry, plain, 1)[0]
    folder = torchqat.export(model, tmp_path / "out", "dense")
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    found = type(plain).from_pretrained(folder)
    weights = dict(found.named_parameters())
    for place, layer in quant_layers(model):
        weight = weights[place if layer.kind == "Experts" else f"{place}.weight"]
        assert torch.equal(weight, layer.shaped(layer.quantized_weight())), place
    checked = torchqat.verify(folder, model, example=example)
    assert checked.ok and checked.layers == len(quant_layers(model)) == DENSE[name], str(checked)
    assert checked.agreement is not None


def test_a_dense_folder_of_other_numbers_is_seen(tiny_llama, tmp_path):
    model = torchqat.prepare(copy.deepcopy(tiny_llama), recipe("blocks", INT4))
    tiny_llama.save_pretrained(tmp_path / "plain")
    checked = torchqat.verify(tmp_path / "plain", model)
    assert not checked.ok and len(checked.differing) == 14


def test_what_a_dense_folder_cannot_say_is_refused(tiny_llama, tmp_path):
    inputs = "{dtype: int8, granularity: channel}\n    input: {dtype: int8, granularity: token}"
    model = torchqat.prepare(copy.deepcopy(tiny_llama), recipe("blocks", inputs))
    with pytest.raises(torchqat.UserError, match=matches("export.inputs-have-no-place", format="dense")):
        torchqat.export(model, tmp_path / "out", "dense")
    plan = make_plan(tiny_llama, recipe("blocks", INT4, "kv_cache: {dtype: int8}\n"))
    with pytest.raises(torchqat.UserError, match=matches("export.no-cache", format="dense")):
        check_exports(tiny_llama, plan, ["dense"], True)


def test_a_run_is_exported_in_both_and_verified(gpt_oss, tmp_path, tokenizer, data_folder, capsys):
    gpt_oss.resize_token_embeddings(400)
    gpt_oss.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    samples = "{samples: 4, sequence_length: 32}"
    rest = f"data: {{evaluation: {samples}, calibration: {samples}}}\nexport: [safetensors]\n"
    train = "train: {steps: 2, batch_size: 2, sequence_length: 32}\n"
    settings = recipe("type:Experts", MXFP4, rest + train)
    torchqat.run(settings, model=tmp_path / "model", data=data_folder, output=tmp_path / "run")
    for format in ("mxfp4", "dense"):
        code, out, err = call(capsys, "export", tmp_path / "run", "--format", format)
        assert code == 0 and said(out, "verify.equal", layers=4), err
        code, out, err = call(capsys, "verify", tmp_path / "run" / "exports" / format)
        assert code == 0 and said(out, "verify.equal", layers=4) and "in transformers KL" in out, err
