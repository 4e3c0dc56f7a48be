"""Exports take the place of exports alone: nothing of the user's goes with the folder that is replaced."""

import pytest
import torchqat
from command import call
from conftest import RECIPE
from sentences import matches, said
from small_net import recipe_for

INT4 = "{dtype: int4, group_size: 32, grid: full, scale: learned}"


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def model(tiny_llama):
    return torchqat.prepare(tiny_llama, recipe_for(INT4))


def refused(model, folder, name, **options):
    before = contents(folder)
    with pytest.raises(torchqat.UserError, match=matches("export.not-replaceable", folder=folder, name=name)):
        torchqat.export(model, folder, **options)
    assert contents(folder) == before
    assert not list(folder.parent.glob(".*pending*"))


def test_the_float_model_is_never_replaced(model, tiny_llama, tmp_path):
    tiny_llama.save_pretrained(tmp_path / "float")
    refused(model, tmp_path / "float", "config.json")


@pytest.mark.parametrize("name", ("notes.txt", "more/adapter.bin", ".git/HEAD"))
def test_what_lies_beside_an_export_is_not_deleted(model, tmp_path, name):
    folder = torchqat.export(model, tmp_path / "out")
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("mine")
    refused(model, folder, name)


def test_a_file_that_was_changed_since_is_not_overwritten(model, tmp_path):
    folder = torchqat.export(model, tmp_path / "out")
    (folder / "config.json").write_text((folder / "config.json").read_text() + "\n")
    refused(model, folder, "config.json", format="gptq")


@pytest.mark.parametrize("kind", ("folder", "link"))
def test_folders_and_links_count_as_files_do(model, tmp_path, kind):
    folder = torchqat.export(model, tmp_path / "out")
    (folder / "more").mkdir() if kind == "folder" else (folder / "more").symlink_to(tmp_path / "nowhere")
    refused(model, folder, "more")


def test_an_export_makes_room_for_another_and_the_users_card_stays(model, tmp_path):
    folder = torchqat.export(model, tmp_path / "out", max_shard_size="40KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    (folder / "README.md").write_text("my own words")
    for format in ("gptq", "compressed-tensors", "compressed-tensors"):
        torchqat.export(model, folder, format)
    assert len(list(folder.glob("*.safetensors"))) == 1
    assert (folder / "README.md").read_text() == "my own words"


def test_a_card_alone_or_nothing_is_an_empty_folder(model, tmp_path):
    for name in ("empty", "card"):
        (tmp_path / name).mkdir()
    (tmp_path / "card" / "README.md").write_text("what is to come")
    for name in ("empty", "card"):
        assert torchqat.verify(torchqat.export(model, tmp_path / name), model).ok
    assert (tmp_path / "card" / "README.md").read_text() == "what is to come"


def test_the_folder_that_the_command_runs_in_stays(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for here in (".", tmp_path, "out/.."):
        (tmp_path / "out").mkdir(exist_ok=True)
        with pytest.raises(torchqat.UserError, match=matches("export.runs-in", folder=here)):
            torchqat.export(model, here)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_runs_checkpoints_are_not_replaced_by_its_export(tmp_path, model_folder, data_folder, capsys):
    """Before anything is read, in a sentence, and the run goes on to be exported elsewhere."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE)
    run = tmp_path / "run"
    options = ["--model", model_folder, "--data", data_folder, "--output", run]
    code, _, err = call(capsys, "train", recipe, *options)
    assert code == 0, err
    for folder in (run / "checkpoints", run, model_folder):
        before = contents(folder)
        code, _, err = call(capsys, "export", run, "--output", folder)
        assert code == 2 and said(err, "export.not-replaceable", folder=folder), err
        assert contents(folder) == before
    assert call(capsys, "export", run, "--output", tmp_path / "out")[0] == 0
    assert call(capsys, "export", run, "--output", tmp_path / "out", "--format", "gguf")[0] == 0
    assert (tmp_path / "out" / "model.gguf").is_file()


@pytest.mark.parametrize("kind", ("file", "link to nowhere"))
def test_a_file_is_not_moved_away(model, tmp_path, kind):
    place = tmp_path / "out"
    place.write_text("mine") if kind == "file" else place.symlink_to(tmp_path / "nowhere")
    with pytest.raises(torchqat.UserError, match=matches("export.over-a-file", folder=place)):
        torchqat.export(model, place)
    assert [path.name for path in tmp_path.iterdir()] == ["out"] and (kind != "file" or place.read_text() == "mine")


@pytest.mark.parametrize("option", ({"embeddings": "q8_0"}, {"ternary": "tq1_0"}))
def test_what_gguf_alone_has_is_not_asked_of_others(model, tmp_path, option):
    ((name, value),) = option.items()
    said_of = matches("export.of-gguf", name=name, format="gptq", value=value)
    with pytest.raises(torchqat.UserError, match=said_of):
        torchqat.export(model, tmp_path / "out", "gptq", **option)
