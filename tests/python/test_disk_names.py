"""Names and shapes on disk: as transformers saves them, and back."""

import copy
import json

import architectures
import pytest
import torch
import torchqat
import transformers
from architectures import tokens
from disk_models import PACKED, ROUTERS, SETTINGS, forward, of_language, settings, without_prefix
from safetensors.torch import load_file, save_file
from sentences import matches, sentence
from torchqat.checkpoints.readers.reading import read_tensors
from torchqat.layers.prepared import quant_layers
from torchqat.model.disk_names import DiskNames
from torchqat.model.disk_sources import DiskSources
from torchqat.model.outline import CheckpointReader, skeleton
from torchqat.runs.stream import quantize_folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Of a family, the folder of a float model, made when asked for."""
    made = {}

    def folder(family):
        if family not in made:
            made[family] = tmp_path_factory.mktemp("models") / family
            if family in SETTINGS:
                architectures.build(family, **SETTINGS[family]).save_pretrained(made[family])
            else:
                {"Gemma3": of_language, "base": without_prefix}[family](made[family])
        return made[family]

    return folder


@pytest.fixture(scope="module")
def prepared(folders):
    """Of a family, its folder and its model, quantized."""
    made = {}

    def model(family):
        if family not in made:
            found = transformers.AutoModelForCausalLM.from_pretrained(folders(family), dtype=torch.float32).eval()
            made[family] = torchqat.prepare(found, settings(family))
            torchqat.calibrate(made[family], tokens(), forward)
        return made[family]

    return model


def saved(model, folder):
    """What save_pretrained makes of ``model``."""
    model.save_pretrained(folder)
    return read_tensors(folder)


FAMILIES = [*SETTINGS, "Gemma3", "base"]


@pytest.mark.parametrize("family", FAMILIES)
def test_tensors_are_called_and_cut_as_transformers_saves_them(family, folders, tmp_path):
    model = transformers.AutoModelForCausalLM.from_pretrained(folders(family))
    expected = saved(model, tmp_path)
    untied = ((name, t) for name, t in model.state_dict().items() if name not in model.all_tied_weights_keys)
    ours = dict(DiskNames(model).on_disk(untied))
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[name], expected[name]) for name in expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_tensors_are_found_again_where_transformers_finds_them(family, folders):
    model = transformers.AutoModelForCausalLM.from_pretrained(folders(family))
    sources = DiskSources(model, CheckpointReader(folders(family))._files)
    stored = read_tensors(folders(family))
    found = {
        name: t for source in sources.sources.values() for name, t in source.load(model, stored.__getitem__).items()
    }
    assert sources.unexpected == []
    assert found.keys() == model.state_dict().keys() - model.all_tied_weights_keys.keys()
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in found.items())


@pytest.mark.parametrize("family", FAMILIES)
def test_an_export_has_the_names_of_save_pretrained_and_transformers_loads_it(family, prepared, folders, tmp_path):
    model = prepared(family)
    out = torchqat.export(model, tmp_path / "out")
    original = transformers.AutoModelForCausalLM.from_pretrained(folders(family))
    names = {next((name.removesuffix(end) for end in PACKED if name.endswith(end)), name) for name in read_tensors(out)}
    assert names == saved(original, tmp_path / "saved").keys()
    served, info = transformers.AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not any(info.values()), info
    with torch.no_grad():
        assert torch.equal(forward(served, tokens()[0]).logits, forward(model, tokens()[0]).logits)
    rounded = {f"{name}.weight": layer.quantized_weight() for name, layer in quant_layers(model)}
    float_names = model.state_dict().keys() & served.state_dict().keys()
    assert all(torch.equal(served.state_dict()[n], rounded.get(n, model.state_dict()[n])) for n in float_names)
    assert rounded.keys() <= float_names
    found = torchqat.verify(out, model, tokens()[0])
    assert found.ok and found.agreement is not None


@pytest.mark.parametrize("family", FAMILIES)
def test_a_streamed_folder_is_the_whole_models_and_loses_no_tensor(family, prepared, folders, tmp_path):
    streamed = quantize_folder(folders(family), tmp_path / "out", settings(family), tokens())
    expected = torchqat.export(prepared(family), tmp_path / "expected")
    ours, theirs = read_tensors(tmp_path / "out"), read_tensors(expected)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    configs = [json.loads((path / "config.json").read_text()) for path in (tmp_path / "out", expected)]
    assert configs[0] == configs[1]
    assert streamed.digests.keys() >= {name for name in theirs if not name.endswith(PACKED)}
    kept = read_tensors(folders(family))
    found = {next((name.removesuffix(end) for end in PACKED if name.endswith(end)), name) for name in ours}
    prefix = "model." if family == "base" else ""
    assert found == {prefix + name for name in kept}


@pytest.mark.parametrize("format", ["gptq", "awq", "modelopt", "safetensors"])
@pytest.mark.parametrize("family", ["Mixtral", "GPTNeoX"])
def test_other_formats_have_these_names_too(family, format, prepared, folders, tmp_path):
    quantize_folder(folders(family), tmp_path / "out", settings(family, format), tokens())
    expected = torchqat.export(prepared(family), tmp_path / "expected", format)
    ours, theirs = read_tensors(tmp_path / "out"), read_tensors(expected)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    float_names = {name for name in read_tensors(folders(family)) if "experts" in name or "embed_out" in name}
    assert float_names and float_names <= theirs.keys()
    assert torchqat.verify(expected, prepared(family), engine="reader").ok


@pytest.mark.parametrize("family", ROUTERS)
def test_routers_and_experts_are_ignored(family, prepared, tmp_path):
    out = torchqat.export(prepared(family), tmp_path / "out")
    ignored = json.loads((out / "config.json").read_text())["quantization_config"]["ignore"]
    assert {*ROUTERS[family], "lm_head", r"re:.*\.experts\..*"} <= set(ignored)


def test_other_formats_ignore_routers_and_experts_in_their_ways(prepared, tmp_path):
    def configuration(format):
        out = torchqat.export(prepared("Mixtral"), tmp_path / format, format)
        return json.loads((out / "config.json").read_text())["quantization_config"]

    names = ROUTERS["Mixtral"]
    assert {*names, ".experts"} <= set(configuration("awq")["modules_to_not_convert"])
    assert {*names, "*.experts*"} <= set(configuration("modelopt")["ignore"])
    excluded = configuration("gptq")["dynamic"]
    assert r"-:.*\.experts(\..*)?$" in excluded and f"-:^{names[0]}$".replace(".", r"\.") in excluded


def head_of(model):
    """The name of the output head in the model, which older versions of transformers have as it is on disk."""
    return next(name for name, module in model.named_modules() if module is model.get_output_embeddings())


def test_only_layers_whose_name_differs_are_named_twice(prepared, tmp_path):
    def ignored(family):
        out = torchqat.export(prepared(family), tmp_path / family)
        return json.loads((out / "config.json").read_text())["quantization_config"]["ignore"]

    assert set(ignored("GPTNeoX")) == {"embed_out", head_of(prepared("GPTNeoX"))}
    assert ignored("base") == ["lm_head"]


@pytest.mark.parametrize("family", ["Mixtral", "GPTNeoX", "Gemma3"])
def test_our_own_folder_is_loaded_into_the_model(family, prepared, folders, tmp_path):
    out = torchqat.export(prepared(family), tmp_path / "out", "safetensors")
    model = transformers.AutoModelForCausalLM.from_pretrained(folders(family)).eval()
    torchqat.load(model, out)
    with torch.no_grad():
        expected = forward(prepared(family), tokens()[0]).logits
        assert torch.equal(forward(model, tokens()[0]).logits, expected)
        torchqat.load(model, out, packed=True)
        torch.testing.assert_close(forward(model, tokens()[0]).logits, expected, rtol=1e-5, atol=1e-5)


def test_exchanged_experts_are_noticed(prepared, tmp_path):
    out = torchqat.export(prepared("Mixtral"), tmp_path / "out")
    stored = load_file(out / "model.safetensors")
    names = [f"model.layers.0.block_sparse_moe.experts.{index}.w2.weight" for index in (0, 3)]
    stored[names[0]], stored[names[1]] = stored[names[1]], stored[names[0]]
    save_file(stored, out / "model.safetensors")
    found = torchqat.verify(out, prepared("Mixtral"), engine="reader")
    assert list(found.differing) == ["model.layers.0.mlp.experts.down_proj"]
    del stored[names[0]]
    save_file(stored, out / "model.safetensors")
    assert not torchqat.verify(out, prepared("Mixtral"), engine="reader").ok


def changed(folder, out, change):
    """``folder`` copied to ``out`` with ``change`` made to its tensors."""
    stored = load_file(folder / "model.safetensors")
    change(stored)
    out.mkdir()
    save_file(stored, out / "model.safetensors")
    (out / "config.json").write_text((folder / "config.json").read_text())
    return out


def test_an_expert_that_is_missing_is_named(folders, tmp_path):
    name = "model.layers.1.block_sparse_moe.experts.2.w3.weight"
    broken = changed(folders("Mixtral"), tmp_path / "model", lambda stored: stored.pop(name))
    with pytest.raises(torchqat.UserError, match=matches("checkpoints.lacks-tensor", folder=broken, name=name)):
        quantize_folder(broken, tmp_path / "out", settings("Mixtral"), tokens())


def test_experts_that_do_not_fit_together_are_named(folders, tmp_path):
    name = "model.layers.1.block_sparse_moe.experts.2.w3.weight"
    broken = changed(folders("Mixtral"), tmp_path / "model", lambda stored: stored.update({name: torch.zeros(3, 64)}))
    where = "model.layers.1.mlp.experts.gate_up_proj"
    with pytest.raises(torchqat.UserError, match=matches("checkpoints.not-put-together", name=where)):
        quantize_folder(broken, tmp_path / "out", settings("Mixtral"), tokens())


def test_a_head_that_is_missing_is_named(folders, prepared, tmp_path):
    broken = changed(folders("GPTNeoX"), tmp_path / "model", lambda stored: stored.pop("embed_out.weight"))
    with pytest.raises(
        torchqat.UserError, match=matches("checkpoints.lacks-tensor", name=f"{head_of(prepared('GPTNeoX'))}.weight")
    ):
        quantize_folder(broken, tmp_path / "out", settings("Mixtral"), tokens())


def test_a_tensor_that_would_be_lost_is_named(folders, tmp_path):
    more = {"score.weight": torch.zeros(2, 64), "score.bias": torch.zeros(2)}
    other = changed(folders("Mixtral"), tmp_path / "model", lambda stored: stored.update(more))
    said = matches("checkpoints.has-more", model="MixtralForCausalLM", names="score.bias is none, and 1 more are not")
    with pytest.raises(torchqat.UserError, match=said):
        quantize_folder(other, tmp_path / "out", settings("Mixtral"), tokens())


def test_what_transformers_passes_over_is_copied(folders, tmp_path):
    extra = {"model.layers.61.eh_proj.weight": torch.randn(4, 8), "model.layers.61.norm.weight": torch.randn(4)}
    more = changed(folders("DeepseekV3"), tmp_path / "model", lambda stored: stored.update(extra))
    streamed = quantize_folder(more, tmp_path / "out", settings("DeepseekV3"), tokens())
    stored = read_tensors(tmp_path / "out")
    assert all(torch.equal(stored[name], tensor) for name, tensor in extra.items())
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert "model.layers.61.eh_proj" in config["ignore"]
    names = "model.layers.61.eh_proj.weight and 1 more"
    assert sentence("stream.passed-over", names=names) in streamed.calibration.warnings


def test_scales_of_caches_are_beside_their_attention_on_disk(folders, tmp_path):
    model = transformers.AutoModelForCausalLM.from_pretrained(folders("Gemma3")).eval()
    torchqat.prepare(model, settings("Gemma3", method="mse", more="kv_cache: {dtype: fp8_e4m3}\n"))
    torchqat.calibrate(model, tokens(), forward)
    out = torchqat.export(model, tmp_path / "out")
    assert read_tensors(out)["language_model.model.layers.1.self_attn.k_scale"] > 0
    assert torchqat.verify(out, model, engine="reader").ok


def test_a_skeleton_is_filled_from_experts_on_disk(folders):
    model = skeleton(folders("Qwen3Moe"))
    CheckpointReader(folders("Qwen3Moe"), model).fill(model, "")
    expected = transformers.AutoModelForCausalLM.from_pretrained(folders("Qwen3Moe"))
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in expected.state_dict().items())


def test_a_copied_model_keeps_its_names(folders):
    model = transformers.AutoModelForCausalLM.from_pretrained(folders("Gemma3"))
    name = "model.language_model.layers.0.self_attn.q_proj"
    assert DiskNames(copy.deepcopy(model)).layer(name) == "language_model.model.layers.0.self_attn.q_proj"
