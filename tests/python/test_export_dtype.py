"""What checkpoints are in beside their codes: what the model came in, or what was asked for, if it holds the scales."""

import json

import pytest
import torch
import torchqat
from command import call
from conftest import RECIPE
from safetensors.torch import load_file
from sentences import matches, said, sentence
from torchqat.model.loading import load_model
from torchqat.model.source import dtype_of
from torchqat.reports.report import read_report

SHORT = RECIPE.split("schedule:")[0] + (
    "train: {steps: 2, batch_size: 2, sequence_length: 32, learning_rate: 1.0e-2, validate_every: 0}\n"
    "evaluate: {compare: []}\n"
)
UNTRAINED = SHORT.replace("scale: learned", "scale: mse").replace("steps: 2", "steps: 0")


@pytest.fixture
def half_folder(model_folder, tokenizer):
    """Puts the model into another dtype."""

    def write(dtype):
        model = load_model(str(model_folder))
        model.to(dtype).save_pretrained(model_folder)
        return model_folder

    return write


@pytest.fixture
def start(tmp_path, model_folder, data_folder, recipe_file, capsys):
    """Runs a command on a recipe's text; returns the exit code and all that was said."""

    def run(command, text, *options):
        recipe_file.write_text(text)
        given = [] if command == "check" else ["--data", data_folder, "--output", tmp_path / "run"]
        code, out, err = call(capsys, command, recipe_file, "--model", model_folder, *given, *options)
        return code, out + err

    return run


def written(run):
    """The last checkpoint of a run."""
    return run / read_report(run).variants[-1].export


def dtypes(folder):
    """Of what is not codes, by the words of torch."""
    state = load_file(folder / "model.safetensors")
    floats = {t.dtype for t in state.values() if t.is_floating_point()}
    return floats, json.loads((folder / "config.json").read_text())["dtype"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_what_a_model_came_in_is_what_its_export_is_in(dtype, half_folder, start, tmp_path):
    """Llama-3.2-1B in bfloat16 would bring 1.05 GB of embeddings in float32. Scales are in bfloat16 either way."""
    folder = half_folder(dtype)
    assert dtype_of(str(folder)) == dtype
    code, text = start("run", UNTRAINED)
    assert code == 0, text
    exported = written(tmp_path / "run")
    assert dtypes(exported) == ({dtype}, str(dtype).removeprefix("torch."))
    source, found = load_file(folder / "model.safetensors"), load_file(exported / "model.safetensors")
    assert torch.equal(source["model.embed_tokens.weight"], found["model.embed_tokens.weight"])
    report = read_report(tmp_path / "run")
    assert report.baseline["bytes"] == sum(tensor.nbytes for tensor in source.values())
    assert report.notes == [], "nothing is another number"
    assert report.variants[-1].bits_per_weight == 4 + 16 / 32


def test_what_training_changed_is_rounded_and_said(half_folder, start, tmp_path, capsys):
    half_folder(torch.bfloat16)
    code, text = start("run", SHORT)
    assert code == 0, text
    run, values = tmp_path / "run", {"dtype": "bfloat16", "own": "float32"}
    assert dtypes(run / "exports/compressed-tensors") == ({torch.bfloat16}, "bfloat16")
    assert any(said(note, "export.rounded", **values) for note in read_report(run).notes)
    assert said(text, "export.rounded", **values)
    code, out, err = call(capsys, "verify", run / "exports/compressed-tensors")
    assert code == 0 and said(out, "verify.equal", layers=14), err
    code, out, err = call(capsys, "export", run, "--dtype", "float32", "--output", tmp_path / "wide")
    assert code == 0 and dtypes(tmp_path / "wide") == ({torch.float32}, "float32"), err
    code, out, err = call(capsys, "export", run, "--format", "gptq", "--dtype", "bfloat16")
    stored = {"format": "gptq", "stored": "torch.float16", "asked": "torch.bfloat16"}
    assert code == 2 and said(err, "export.other-dtype", **stored)


def test_a_model_in_float32_is_exported_in_it(start, tmp_path):
    assert start("run", UNTRAINED)[0] == 0
    assert dtypes(written(tmp_path / "run")) == ({torch.float32}, "float32")


def test_what_is_asked_for_is_written_and_kept(half_folder, start, tmp_path, capsys):
    half_folder(torch.bfloat16)
    code, text = start("run", UNTRAINED, "--dtype", "float32")
    assert code == 0, text
    run = tmp_path / "run"
    assert dtypes(written(run)) == ({torch.float32}, "float32")
    code, _, err = call(capsys, "export", run, "--format", "modelopt")
    assert code == 0 and dtypes(run / "exports/modelopt") == ({torch.float32}, "float32"), err
    assert start("run", UNTRAINED, "--resume")[0] == 0
    code, text = start("run", UNTRAINED, "--resume", "--dtype", "bfloat16")
    assert code == 2 and said(text, "runs.another-dtype", folder=run, there="dtype float32", asked="bfloat16")
    code, text = start("ptq", UNTRAINED, "--restart", "--stream", "--dtype", "bfloat16")
    assert code == 2 and said(text, "stream.no-dtype")
    code, text = start("run", UNTRAINED, "--restart", "--dtype", "int8")
    assert code == 2 and said(text, "export.unknown-dtype", dtype="int8")


def test_the_library_takes_it_as_well(half_folder, data_folder, tmp_path):
    recipe = torchqat.parse_recipe(UNTRAINED, "recipe.yaml")
    places = {"model": half_folder(torch.bfloat16), "data": data_folder, "output": tmp_path / "run"}
    torchqat.run(recipe, **places, dtype="float32")
    assert dtypes(written(tmp_path / "run")) == ({torch.float32}, "float32")


def test_what_cannot_hold_the_scales_is_not_chosen_and_said(half_folder, start, tmp_path):
    half_folder(torch.bfloat16)
    code, text = start("run", UNTRAINED.replace("scale: mse", "scale: mse, scale_dtype: float16"))
    assert code == 0, text
    assert dtypes(written(tmp_path / "run")) == ({torch.float32}, "float32")
    note = sentence("export.in-another-dtype", own="float32", source="bfloat16")
    assert note in text and read_report(tmp_path / "run").notes == [note]


@pytest.mark.parametrize(
    ("dtype", "scale", "options"),
    [("bfloat16", "float32", []), ("float16", "float32", []), ("bfloat16", "float16", []),
     ("float32", "float32", ["--dtype", "bfloat16"]), ("float32", "float16", ["--dtype", "bfloat16"])],
)  # fmt: skip
def test_scales_that_do_not_fit_are_refused_before_training(dtype, scale, options, start, tmp_path):
    text = SHORT.replace("scale: learned", f"scale: learned, scale_dtype: {scale}")
    text = text.replace("version: 1\n", f"version: 1\nmodel: {{dtype: {dtype}}}\n")
    stored = options[-1] if options else dtype
    values = {"layer": "model.layers.0.self_attn.q_proj", "trained": scale, "dtype": stored}
    for command in ("run", *(() if options else ("check",))):
        code, found = start(command, text, *options)
        assert code == 2 and said(found, "export.scales-will-not-fit", **values), found
        assert said(
            found, "export.scales-will-not-fit", others="float32" if scale == "float32" else "float16 or float32"
        )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("format", ["gptq", "gguf"])
def test_formats_of_another_dtype_count_as_well(format, start, tmp_path):
    text = SHORT.replace("grid: full, scale: learned", "grid: signed, scale: learned, scale_dtype: float32")
    code, found = start("run", text + f"export: [{format}]\n")
    assert code == 2 and said(found, "export.scales-will-not-fit", trained="float32", dtype="float16"), found
    assert not (tmp_path / "run").exists()


def test_outputs_of_encoders_are_compared_in_what_they_are_stored_in(encoder_folder, tmp_path, capsys):
    import transformers

    transformers.BertModel.from_pretrained(
        encoder_folder, add_pooling_layer=False, dtype=torch.bfloat16
    ).save_pretrained(encoder_folder)
    data, recipe, run = tmp_path / "data.jsonl", tmp_path / "recipe.yaml", tmp_path / "run"
    data.write_text("".join(json.dumps({"text": f"return {i} and nothing more"}) + "\n" for i in range(48)))
    recipe.write_text(
        "version: 1\nmodel: {kind: sentence_encoder}\ndata: {evaluation: {samples: 4, sequence_length: 16}}\n"
        "layers: [{match: '*.layer.*', weight: {dtype: int8}}]\n"
        "train: {steps: 2, batch_size: 2, sequence_length: 16}\nevaluate: {compare: []}\n"
    )
    code, _, err = call(capsys, "run", recipe, "--model", encoder_folder, "--data", data, "--output", run)
    assert code == 0, err
    assert dtypes(run / "exports/compressed-tensors") == ({torch.bfloat16}, "bfloat16")


def test_a_prepared_model_is_exported_in_its_own_dtype(tiny_llama, tmp_path):
    """In Python nobody knows what it came in: `dtype=` says."""
    recipe = torchqat.parse_recipe("version: 1\nlayers: [{match: 'model.layers.*', weight: {dtype: int4}}]\n", "recipe")
    model = torchqat.prepare(tiny_llama, recipe)
    assert dtypes(torchqat.export(model, tmp_path / "own")) == ({torch.float32}, "float32")
    assert dtypes(torchqat.export(model, tmp_path / "half", dtype=torch.bfloat16)) == ({torch.bfloat16}, "bfloat16")
    with pytest.raises(torchqat.UserError, match=matches("export.other-dtype", format="gptq")):
        torchqat.export(model, tmp_path / "gptq", "gptq", dtype=torch.bfloat16)
