"""Caches of keys and values in checkpoints."""

import copy

import architectures
import pytest
import torch
import torchqat
from safetensors.torch import load_file
from sentences import said
from test_kv_cache import FORMS, prepared
from torchqat.layers.kv_cache import caches


@pytest.fixture(scope="module")
def llama():
    return architectures.build("Llama")


@pytest.mark.parametrize("form", ["fp8", "fp8_e4m3 per head"])
def test_a_checkpoint_holds_fp8_scales(form, llama, tmp_path):
    import json

    cache = FORMS.get(form, "{dtype: fp8_e4m3, keys: head, values: head}")
    quantized = prepared(llama, cache)
    folder = torchqat.export(quantized, tmp_path / "out")
    scheme = json.loads((folder / "config.json").read_text())["quantization_config"]["kv_cache_scheme"]
    strategy = "tensor" if form == "fp8" else "attn_head"
    assert scheme == {"num_bits": 8, "type": "float", "symmetric": True, "dynamic": False, "strategy": strategy}
    stored = load_file(folder / "model.safetensors")
    for name, layer in caches(quantized):
        for leaf in ("k_scale", "v_scale"):
            assert torch.equal(stored[f"{name}.{leaf}"].flatten(), getattr(layer, leaf))
    assert stored["model.layers.0.self_attn.k_scale"].shape == ((1,) if form == "fp8" else (2, 1, 1))
    assert torchqat.verify(folder, quantized).ok
    caches(quantized)[1][1].v_scale.mul_(2)
    assert torchqat.verify(folder, quantized).differing == {
        "model.layers.1.self_attn.v_scale": 1 if form == "fp8" else 2
    }


@pytest.mark.parametrize("format", ["gptq", "awq", "mlx", "safetensors"])
def test_formats_that_do_not_tell_of_a_cache_hold_no_scales_of_it(format, llama, tmp_path):
    """Their readers refuse tensors that the model has no place for, or pass over them with a warning each."""
    symmetric = str(format != "awq").lower()
    weight = f"{{dtype: int4, group_size: 32, symmetric: {symmetric}, scale_dtype: float16}}"
    quantized = prepared(llama, FORMS["fp8"], weight=weight)
    folder = torchqat.export(quantized, tmp_path / "out", format)
    assert not [name for name in load_file(folder / "model.safetensors") if name.endswith(("k_scale", "v_scale"))]
    assert torchqat.verify(folder, quantized, engine="reader").ok
    if format == "safetensors":
        torchqat.load(copy.deepcopy(llama), folder)


def test_the_scheme_is_what_compressed_tensors_reads(llama, tmp_path):
    import json

    from compressed_tensors.quantization import QuantizationConfig

    folder = torchqat.export(prepared(llama, FORMS["fp8"]), tmp_path / "out")
    settings = json.loads((folder / "config.json").read_text())["quantization_config"]
    fields = QuantizationConfig.model_fields
    parsed = QuantizationConfig.model_validate({k: v for k, v in settings.items() if k in fields})
    assert parsed.kv_cache_scheme.num_bits == 8 and parsed.kv_cache_scheme.type == "float"


def test_other_caches_are_settings_of_the_engine(llama, tmp_path):
    import json

    folder = torchqat.export(prepared(llama, FORMS["int4"]), tmp_path / "out")
    config = json.loads((folder / "config.json").read_text())
    assert config["quantization_config"]["kv_cache_scheme"] is None
    assert "attn_implementation" not in config


@pytest.mark.parametrize(
    "form, format, held",
    [("fp8", "compressed-tensors", True), ("fp8", "safetensors", False), ("int4", "compressed-tensors", False)],
)
def test_export_says_what_a_format_does_not_hold(form, format, held, llama, tmp_path, caplog):
    quantized, told = prepared(llama, FORMS[form]), []
    torchqat.export(quantized, tmp_path / "out", format)
    assert [said(record.message, "kv-cache.not-in-checkpoint", format=format) for record in caplog.records] == (
        [] if held else [True]
    )
    caplog.clear()
    torchqat.export(quantized, tmp_path / "out", format, say=told.append)
    assert told == ([] if held else told[:1]) and not caplog.records


def test_a_run_keeps_exports_and_verifies_the_cache(model_folder, data_folder, recipe_file, tmp_path, capsys):
    import json

    from torchqat.cli import main

    def run(*arguments):
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
        return ended.value.code, capsys.readouterr()

    recipe_file.write_text(recipe_file.read_text() + "kv_cache: {dtype: fp8_e4m3}\n")
    folder = tmp_path / "run"
    arguments = [str(recipe_file), "--model", str(model_folder), "--data", str(data_folder), "--output", str(folder)]
    code, printed = run("run", *arguments)
    assert code == 0, printed.err
    plan = (folder / "plan.txt").read_text()
    assert said(plan, "plan.cache", cache="fp8_e4m3 tensor keys, fp8_e4m3 tensor values")
    export = folder / "exports" / "compressed-tensors"
    assert json.loads((export / "config.json").read_text())["quantization_config"]["kv_cache_scheme"]
    code, printed = run("verify", str(export))
    assert code == 0 and said(printed.out, "verify.equal", layers=14)
    code, printed = run(
        "evaluate", str(export), "--data", str(data_folder), "--samples", "2", "--sequence-length", "32"
    )
    assert code == 0, printed.err
    recipe_file.write_text(recipe_file.read_text().replace("fp8_e4m3", "int4"))
    code, printed = run("ptq", *arguments[:-1], str(tmp_path / "second"))
    assert code == 0, printed.err
    printed = printed.out + printed.err
    assert said(printed, "kv-cache.not-in-checkpoint") and printed.count("is a setting of the engine") == 1
