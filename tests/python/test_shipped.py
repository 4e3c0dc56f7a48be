"""Recipes by name, settings in place of what they say, and what commands tell about both."""

import json
import re
from pathlib import Path

import pytest
import torchqat
from command import call
from conftest import RECIPE
from sentences import matches, said, sentence
from torchqat.recipes.shipped import find_shipped, shipped, summary
from torchqat.runs.flow import run_of


def test_names_are_those_of_the_files():
    files = shipped()
    assert {"int4", "int4-gptq", "int4-gguf", "nvfp4", "mxfp4", "fp8", "w8a8", "kv-cache", "quickstart"} <= set(files)
    for name, file in files.items():
        assert find_shipped(name) == find_shipped(file.stem) == find_shipped(file.name) == name
        text, line = file.read_text(), summary(file)
        assert text.startswith(f"# {line}\n") and line.endswith(".") and 20 < len(line) < 135
        assert name == "quickstart" or re.search(rf"^# torchqat (run|ptq) {name} --model ", text, re.M)


def test_recipes_lists_prints_and_says_what_there_is(capsys):
    code, out, _ = call(capsys, "recipes")
    assert code == 0 and [line.split()[0] for line in out.splitlines()] == list(shipped())
    assert out.splitlines()[0].endswith(summary(shipped()["auto"]))
    assert json.loads(call(capsys, "recipes", "--json")[1]) == {name: summary(file) for name, file in shipped().items()}
    for name in ("int4", "int4_qat", "int4_qat.yaml"):
        assert call(capsys, "recipes", name)[1] == shipped()["int4"].read_text()
    assert json.loads(call(capsys, "recipes", "--schema")[1])["required"] == ["version", "layers"]
    code, _, err = call(capsys, "recipes", "int5")
    assert code == 2 and said(err, "recipes.unknown", known=", ".join(shipped()), name="int5")
    assert said(call(capsys, "recipes", "int4", "--schema")[2], "recipes.name-and-schema")


def test_a_name_is_a_recipe_that_ships_and_a_file_is_a_file(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = shipped()["int4"].read_text()
    assert torchqat.load_recipe("int4").text == torchqat.load_recipe("int4_qat.yaml").text == text
    assert torchqat.load_recipe("int4_qat.yaml").file == "int4"
    for name in ("int4_qat.yaml", "int4", "mine"):
        (tmp_path / name).write_text(RECIPE)
    assert torchqat.load_recipe("int4_qat.yaml").text == RECIPE
    assert torchqat.load_recipe("int4").text == text
    assert torchqat.load_recipe("mine").text == torchqat.load_recipe(tmp_path / "mine").text == RECIPE
    code, _, err = call(capsys, "check", "int4-gtpq")
    values = {"known": ", ".join(shipped()), "name": "int4-gtpq", "near": "int4-gptq"}
    assert code == 2 and said(err, "recipe.no-such-name", **values)
    with pytest.raises(torchqat.RecipeError, match=matches("recipe.not-readable", file="none.yaml")):
        torchqat.load_recipe("none.yaml")
    Path("latin.yaml").write_bytes("# Gewichte für alle\n".encode("latin-1"))
    with pytest.raises(torchqat.UserError, match=matches("recipe.not-utf-8", name="latin.yaml")):
        torchqat.load_recipe("latin.yaml")
    Path("two.yaml").write_text(f"{RECIPE}\n---\ntrain: {{steps: 3}}\n")
    with pytest.raises(torchqat.RecipeError, match=matches("recipe.second-document", file="two.yaml")):
        torchqat.load_recipe("two.yaml")


def plan_of(recipe):
    from torchqat.runs.scratch import new_model

    settings = torchqat.load_recipe("quickstart").model.scratch
    return str(torchqat.make_plan(new_model(settings, settings.vocabulary, 0), recipe))


def test_settings_hold_in_place_of_the_recipe():
    settings = {
        "train.steps": 300,
        "layers.0.weight.dtype": "int3",
        "initialize": None,
        "evaluate.accept": {"kl": 5e-5},
    }
    words = ["train.steps=300", "layers[0].weight.dtype=int3", "initialize=", "evaluate.accept={kl: 0.00005}"]
    for given in (settings, words):
        recipe = torchqat.load_recipe("int4", given)
        assert recipe.train.steps == 300 and recipe.evaluate.accept_kl == 5e-5 and "int3" in plan_of(recipe)
        again = torchqat.parse_recipe(recipe.text, "again")
        assert again.train.steps == 300 and again.evaluate.accept_kl == 5e-5 and plan_of(again) == plan_of(recipe)


def test_wrong_settings_have_the_sentence_of_a_file(capsys):
    def refused(setting):
        code, _, err = call(capsys, "check", "int4", "--set", setting)
        assert code == 2 and err.count("\n") == 1, err
        return err

    values = {"setting": "train.steps=many", "key": "train.steps", "value": "many"}
    assert said(refused("train.steps=many"), "recipe.set-whole-number", **values)
    values = {"setting": "train.stesp=3", "key": "train.stesp", "near": "train.steps"}
    assert said(refused("train.stesp=3"), "recipe.set-unknown-key", **values)
    assert said(refused("train.steps"), "recipe.set-no-value", setting="train.steps")


def test_what_is_said_twice_is_refused(capsys):
    """The last of two used to hold, and of the other nothing was said."""
    twice = ["train.steps=3", "train.seed=1", "train.steps=4"]
    code, _, err = call(capsys, "check", "int4", *(word for one in twice for word in ("--set", one)))
    assert code == 2 and said(err, "recipe.set-twice", setting="train.steps=4", before="train.steps=3")
    others = {"model.path=a": "model", "data.train=a": "data", "device=cuda": "device", "train.epochs=1": "steps"}
    for setting, option in others.items():
        value = 5 if option == "steps" else "cpu"
        given = matches("runs.set-beside-option", setting=setting, option=option, value=value)
        with pytest.raises(torchqat.UserError, match=given):
            run_of("int4", **{option: value}, settings=[setting])


def test_steps_are_in_place_of_epochs(tmp_path):
    (tmp_path / "r.yaml").write_text(RECIPE.replace("steps: 8", "epochs: 2"))
    run = run_of(tmp_path / "r.yaml", steps=5, settings=["train.seed=3"])
    assert (run.recipe.train.steps, run.recipe.train.epochs, run.recipe.train.seed) == (5, None, 3)
    assert run_of("int4", steps=7).recipe.train.steps == 7
    with pytest.raises(torchqat.UserError, match=matches("runs.settings-of-a-loaded-recipe")):
        run_of(torchqat.load_recipe("int4"), steps=7)


def test_a_run_by_name_keeps_what_was_set(capsys, tmp_path, model_folder, data_folder, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = ["train.batch_size=2", "train.sequence_length=32", "layers.0.weight.group_size=32", "initialize="]
    small += [
        "data={evaluation: {samples: 4, sequence_length: 32}}",
        "evaluate={compare: [int4]}",
        "export=[safetensors]",
    ]
    places = ["--model", model_folder, "--data", data_folder]
    arguments = [*places, *(word for one in small for word in ("--set", one))]
    code, _, err = call(capsys, "run", "int4", *arguments, "--steps", 2)
    assert code == 0, err
    folder = tmp_path / "runs" / "model-int4"
    kept = torchqat.load_recipe(folder / "recipe.yaml")
    assert (kept.train.steps, kept.train.batch_size, kept.exports) == (2, 2, ["safetensors"])
    code, out, err = call(capsys, "verify", folder / "exports" / "safetensors")  # of the plan that was set
    assert code == 0 and said(out, "verify.equal", layers=14), err
    code, _, err = call(capsys, "run", "int4", *arguments, "--steps", 3, "--resume")
    assert code == 2 and "train.steps" in err


@pytest.mark.parametrize("name", [name for name in shipped() if name != "quickstart"])
def test_without_a_model_a_recipe_is_refused(name, capsys, tmp_path):
    code, _, err = call(capsys, "run", name, "--data", tmp_path, "--output", tmp_path / "out")
    assert code == 2 and err == sentence("cli.refused", sentence=sentence("model.not-given")) + "\n"
    assert not (tmp_path / "out").exists()


def test_check_without_a_model_says_what_would_show_more(capsys):
    assert call(capsys, "check", "int4")[1] == sentence("plan.valid-for-any", recipe="int4") + "\n"


COMMANDS = (
    "check",
    "run",
    "ptq",
    "train",
    "report",
    "recipes",
    "sensitivity",
    "export",
    "verify",
    "evaluate",
    "doctor",
)


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    code, out, _ = call(capsys, command, "--help")
    words = " ".join(re.sub(r"[│╭╮╰╯─]", " ", out).split())
    assert code == 0 and f" {command} [OPTIONS]" in words and "--json" in words
    recipe = command in ("check", "run", "ptq", "train", "sensitivity")
    assert ("--set" in words) == ("A recipe that ships" in words) == recipe
    assert ("--steps" in words) == (command in ("run", "train"))
    if command == "export":
        from torchqat.checkpoints.export import FORMATS

        assert all(name in words for name in FORMATS)


def test_help_of_torchqat_lists_each_command(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    _, out, _ = call(capsys, "--help")
    assert set(COMMANDS) <= set(re.findall(r"^│ (\w+) ", out, re.M))
