"""``torchqat export --format gguf`` of a run: the file of the whole model, byte by byte, in the memory of one block."""

import pytest
import torch
import torchqat
from command import call
from conftest import PTQ, RECIPE
from sentences import said
from streaming import gguf_bytes
from torchqat.runs.kept_state import kept_state
from torchqat.runs.restore import open_run, trained_model

HALF = RECIPE.replace("scale: learned}", "scale: learned, scale_dtype: float16}")
WITH_ENDS = HALF.replace('"model.layers.*"', '"*"')  # the embedding and the head, too
BEST = HALF.replace("checkpoint_every: 3", "checkpoint_every: 3, validate_every: 2")
INITIALIZED = PTQ.replace("scale: learned}", "scale: learned, scale_dtype: float16}")


@pytest.fixture
def finished(tmp_path, model_folder, data_folder, capsys):
    """A run of a recipe, to its end."""

    def run(text, command="train"):
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text(text)
        options = ["--model", model_folder, "--data", data_folder, "--output", tmp_path / "run"]
        code, _, err = call(capsys, command, recipe, *options)
        assert code == 0, err
        return tmp_path / "run"

    return run


@pytest.mark.parametrize(
    ("text", "command"),
    [(HALF, "train"), (WITH_ENDS, "train"), (BEST, "train"), (INITIALIZED, "ptq")],
    ids=["trained", "with-embedding-and-head", "best-state", "rounded"],
)
def test_it_is_the_file_of_the_whole_model(text, command, finished, tmp_path, capsys, monkeypatch):
    run = finished(text, command)
    opened = open_run(run)
    assert kept_state(opened) is not None
    expected = torchqat.export(trained_model(opened), tmp_path / "expected", "gguf", opened.tokenizer)
    monkeypatch.setattr("torchqat.runs.exported.trained_model", lambda run: pytest.fail("the model is whole"))
    monkeypatch.setattr("torchqat.runs.run.Run.original", property(lambda run: pytest.fail("the float model is read")))
    code, out, err = call(capsys, "export", run, "--format", "gguf")
    layers = len(opened.plan.layers)
    assert code == 0 and said(out, "verify.equal", layers=layers), err
    assert gguf_bytes(run / "exports" / "gguf") == gguf_bytes(expected)
    assert {"Modelfile", "README.md"} <= {path.name for path in (run / "exports" / "gguf").iterdir()}


def test_one_block_is_held_at_a_time(finished, capsys, monkeypatch):
    from torchqat.runs.stream_gguf import GgufStreamWriter

    run, held, add_block = finished(HALF), [], GgufStreamWriter.add_block

    def count(writer, block):
        held.append({name for name, tensor in writer.model.named_parameters() if not tensor.is_meta})
        add_block(writer, block)

    monkeypatch.setattr(GgufStreamWriter, "add_block", count)
    assert call(capsys, "export", run, "--format", "gguf")[0] == 0
    assert len(held) == 2
    for index, names in enumerate(held):
        assert names and all(name.startswith(f"model.layers.{index}.") for name in names)


def test_parts_and_types_are_as_asked(finished, tmp_path, capsys):
    run = finished(HALF)
    opened = open_run(run)
    options = {"max_shard_size": "40KB", "embeddings": "q8_0"}
    expected = torchqat.export(trained_model(opened), tmp_path / "expected", "gguf", opened.tokenizer, **options)
    code, _, err = call(capsys, "export", run, "--format", "gguf", "--max-shard-size", "40KB", "--embeddings", "q8_0")
    assert code == 0, err
    found = gguf_bytes(run / "exports" / "gguf")
    assert len(found) > 1 and found == gguf_bytes(expected)


def test_what_does_not_read_back_is_no_export(finished, capsys, monkeypatch):
    from torchqat.checkpoints.formats.gguf import GgufWriter

    run, add_float = finished(HALF), GgufWriter.add_float

    def damaged(writer, name, tensor):
        add_float(writer, name, tensor + 1 if name == "model.norm.weight" else tensor)

    monkeypatch.setattr(GgufWriter, "add_float", damaged)
    code, _, err = call(capsys, "export", run, "--format", "gguf")
    assert code == 2 and said(err, "stream.not-as-written", name="model.norm.weight")
    assert not (run / "exports" / "gguf").exists()


def test_other_runs_are_exported_whole(finished, capsys):
    lora = HALF.replace("checkpoint_every: 3", "checkpoint_every: 3, parameters: lora")
    run = finished(lora)
    assert kept_state(open_run(run)) is None
    code, out, err = call(capsys, "export", run, "--format", "gguf")
    assert code == 0 and said(out, "verify.equal", layers=14), err


def test_a_state_is_read_by_name(tmp_path):
    from torchqat.files import save_state
    from torchqat.runs.kept_state import KeptState

    save_state(
        tmp_path / "state.pt", {"step": 3, "model": {"a.b": torch.ones(2), "a.c": torch.zeros(1), "d": torch.ones(1)}}
    )
    state = KeptState(tmp_path / "state.pt")
    assert state.inside("a").keys() == {"b", "c"} and "d" in state and "b" not in state
    assert state.facts() == {"step": 3} and torch.equal(state["a.b"], torch.ones(2))
