"""What a run is made of: it is gone on with where recipe, model, data and task mean and hold the same, and nowhere else."""

import json
import re
import shutil

import pytest
import torch
import torchqat
from conftest import PTQ, RECIPE
from interrupting import Interrupting
from sentences import matches, said, sentence
from torchqat.files import digest_of
from torchqat.runs.identity import files_content, key_of, meaning, state_content
from torchqat.runs.progress import Progress
from torchqat.runs.restore import open_run

NOTHING = PTQ + "train: {steps: 0}\n"


# -- recipes ----------------------------------------------------------------------------------------------------------


def identity(text, model="model", **settings):
    recipe = torchqat.parse_recipe(text, "recipe.yaml")
    for key, value in settings.items():
        section, name = key.split("__")
        setattr(getattr(recipe, section), name, value)
    return meaning(recipe)


def test_comments_order_and_limits_do_not_count():
    first, *rest = RECIPE.splitlines()[:-1], "evaluate: {compare: [int8, int4], accept: {kl: 2}}\nmode: auto\n"
    version, data, *others = first
    text = "\n".join([version, data, *others, *rest])
    limits = rest[0].replace("kl: 2", "kl: 1") + "size: {bits_per_weight: 6}\n"
    other = "\n".join(["# a comment", version, *others, data, limits])
    assert identity(other) == identity(text)
    assert identity(RECIPE, train__steps=9) == identity(RECIPE.replace("steps: 8", "steps: 9"))


BARE = 'version: 1\nlayers: [{match: "*", weight: {dtype: int4, group_size: 32}}]\n'
OBSERVED = BARE.replace("}}]", "}, input: {dtype: int8, granularity: tensor}}]")
OTHERS = {
    "data.calibration.samples": "data: {calibration: {samples: 3}}",
    "data.evaluation.sequence_length": "data: {evaluation: {sequence_length: 64}}",
    "initialize.method": "initialize: {method: awq}",
    "initialize.damping": "initialize: {method: gptq, damping: 0.02}",
    "initialize.block_training.steps": "initialize: {method: gptq, block_training: {steps: 3}}",
    "distill.weight": "distill: {weight: 0.5}",
    "exports": "export: [gptq]",
    "mode": "mode: auto",
    "model.dtype": "model: {dtype: bfloat16}",
    "train.warmup": "train: {warmup: 3}",
    "train.freeze_observers": "train: {freeze_observers: 10%}",
    "train.lora.rank": "train: {parameters: lora, lora: {rank: 3}}",
    "train.seed": "train: {seed: 1}",
    "train.oscillation.method": "train: {oscillation: {method: freeze}}",
}


@pytest.mark.parametrize("key", OTHERS)
def test_settings_count(key):
    bare = OBSERVED if key == "train.freeze_observers" else BARE
    text = bare + OTHERS[key] + "\n"
    if key == "mode":
        text += "evaluate: {accept: {kl: 1}}\n"
    there, here = identity(bare), identity(text)
    assert there[key] != here[key] and key_of(there) != key_of(here)


def test_every_key_of_train_counts():
    """As many as the reader knows."""
    with pytest.raises(torchqat.RecipeError) as refused:
        torchqat.parse_recipe(BARE + "train: {nonsense: 1}\n")
    known = re.search(r"which are (.*)$", str(refused.value)).group(1)
    keys = re.split(r", | or ", known)
    sections = {key.split(".")[1] for key in identity(BARE) if key.startswith("train.")}
    assert len(keys) > 20 and set(keys) == sections


ONE = "layers: [{match: '*', weight: {dtype: int4, group_size: 32}}]"
RULES = [
    ONE,
    ONE.replace("32", "16"),
    ONE.replace("32", "32, scale: mse"),
    ONE.replace("32}", "32}, input: {dtype: int8, granularity: tensor, dynamic: false}"),
    ONE.replace("32}", "32}, input: {dtype: int8, granularity: tensor, dynamic: false, observer: mse}"),
    ONE.replace("'*'", "'*.layers.0.*'"),
    ONE + "\nschedule: [{until: 50%, weight: int8}, {until: 100%, weight: int4}]",
    ONE + "\nschedule: [{until: 60%, weight: int8}, {until: 100%, weight: int4}]",
    ONE + "\nkv_cache: {dtype: int8}",
    ONE + "\nkv_cache: {dtype: int4}",
]


def test_rules_and_schedules_count(tiny_llama):
    from torchqat.runs.identity import plan_content

    found = [
        plan_content(torchqat.make_plan(tiny_llama, torchqat.parse_recipe(f"version: 1\n{rules}\n"))) for rules in RULES
    ]
    assert len(set(found)) == len(RULES)
    spelled = "layers: [{match: 're:.*', weight: {group_size: 32, dtype: int4}}]"
    plans = [torchqat.make_plan(tiny_llama, torchqat.parse_recipe(text)) for text in (BARE, f"version: 1\n{spelled}\n")]
    assert plan_content(plans[0]) == plan_content(plans[1])


def test_settings_made_in_python_are_kept(tmp_path, model_folder, data_folder):
    recipe = torchqat.parse_recipe(RECIPE, "recipe.yaml")
    recipe.train.steps, recipe.train.warmup, recipe.initialize.damping = 4, torchqat._library.Bound(1, False), 0.03
    torchqat.run(recipe, model_folder, data_folder, tmp_path / "run", progress=Progress(quiet=True))
    again = open_run(tmp_path / "run").recipe
    assert (again.train.steps, again.initialize.damping) == (4, 0.03)
    assert (again.train.warmup.value, again.train.warmup.is_percent) == (1, False)
    assert meaning(again) == meaning(recipe)


def test_settings_of_initialize_made_in_python_are_kept(tmp_path, model_folder, data_folder):
    recipe = torchqat.parse_recipe(NOTHING.replace("gptq", "mse"), "recipe.yaml")
    recipe.initialize = torchqat._library.Initialize("awq")
    recipe.initialize.block_training.steps = 2
    torchqat.run(recipe, model_folder, data_folder, tmp_path / "run", progress=Progress(quiet=True))
    again = open_run(tmp_path / "run").recipe.initialize
    assert (again.method, again.block_training.steps) == ("awq", 2)


# -- models, data and tasks -------------------------------------------------------------------------------------------


def test_the_content_of_a_model_counts_and_not_its_place(model_folder, tmp_path, tiny_llama):
    first = files_content(str(model_folder), [])
    moved = shutil.copytree(model_folder, tmp_path / "moved")
    assert files_content(str(moved), []) == first
    with torch.no_grad():
        tiny_llama.model.layers[1].mlp.up_proj.weight[0, 0] += 1
    tiny_llama.save_pretrained(moved)
    assert files_content(str(moved), []) != first
    assert files_content("module:function", []) == "" != state_content(tiny_llama, [])


def test_content_of_large_tensors_and_of_odd_states():
    class Odd(torch.nn.Linear):
        def get_extra_state(self):
            return {"a": 1}

    large = Odd(1, 1 << 25, bias=False)
    first = state_content(large, [])
    with torch.no_grad():
        large.weight[-1] += 1
    assert state_content(large, []) != first


def test_files_beside_a_model_count(encoder_folder):
    from torchqat.kinds import find_kind

    def content():
        return files_content(str(encoder_folder), find_kind("sentence_encoder").companions(encoder_folder).values())

    first = content()
    pooling = encoder_folder / "1_Pooling" / "config.json"
    pooling.write_text(pooling.read_text().replace('cls_token": false', 'cls_token": true'))
    assert content() != first


def test_the_content_of_a_task_counts(begin, tmp_path):
    task = tmp_path / "task.jsonl"
    task.write_text(json.dumps({"prompt": "def ", "expected": "function"}) + "\n")
    text = NOTHING + f"evaluate: {{task: {task}}}\n"
    begin(text)
    moved = task.rename(tmp_path / "moved.jsonl")
    begin(text.replace(str(task), str(moved)), resume=True)
    moved.write_text(json.dumps({"prompt": "def ", "expected": "other"}) + "\n")
    with pytest.raises(torchqat.UserError, match=matches("runs.made-of-others", what=sentence("runs.other-task"))):
        begin(text.replace(str(task), str(moved)), resume=True)


# -- going on ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (
            lambda text: text.replace("steps: 8", "steps: 9"),
            [sentence("runs.other-setting", setting="train.steps", there=8, here=9)],
        ),
        (lambda text: text.replace("25%", "30%"), [sentence("runs.other-plan")]),
        (
            lambda text: text.replace("batch_size: 2", "batch_size: 1, seed: 3"),
            [
                sentence("runs.other-setting", setting="train.batch_size", there=2, here=1),
                sentence("runs.other-setting", setting="train.seed", there=0, here=3),
            ],
        ),
    ],
)
def test_another_recipe_is_not_gone_on_with(begin, tmp_path, change, what):
    with pytest.raises(KeyboardInterrupt):
        begin(progress=Interrupting(4))
    before = digest_of(tmp_path / "run")
    with pytest.raises(torchqat.UserError, match=matches("runs.made-of-others", what="; ".join(what))):
        begin(change(RECIPE), resume=True)
    assert digest_of(tmp_path / "run") == before
    begin(RECIPE + "# only a comment\n", resume=True)


def test_another_model_or_other_data_are_not_gone_on_with(begin, model_folder, data_folder, tmp_path, tiny_llama):
    with pytest.raises(KeyboardInterrupt):
        begin(progress=Interrupting(4))
    with torch.no_grad():
        tiny_llama.lm_head.weight.mul_(2)
    tiny_llama.save_pretrained(model_folder)
    (data_folder / "00.py").write_text("print('other')\n" * 40)
    what = f"{sentence('runs.other-model')}; {sentence('runs.other-data')}"
    with pytest.raises(torchqat.UserError, match=matches("runs.made-of-others", what=what)):
        begin(resume=True)


def test_a_model_that_moved_and_another_version_are_gone_on_with(begin, model_folder, tmp_path, capsys):
    with pytest.raises(KeyboardInterrupt):
        begin(progress=Interrupting(4))
    report = tmp_path / "run" / "report.json"
    report.write_text(report.read_text().replace(f'"torch": "{torch.__version__}"', '"torch": "2.11.0"'))
    begin(resume=True, model=model_folder.rename(tmp_path / "elsewhere"), progress=Progress())
    note = sentence("runs.begun-with", versions="torch 2.11.0")
    assert said(capsys.readouterr().err, "runs.note", note=note)


def test_arithmetic_of_another_version_is_not_gone_on_with(begin, monkeypatch):
    with pytest.raises(KeyboardInterrupt):
        begin(progress=Interrupting(4))
    monkeypatch.setattr("torchqat.runs.identity.NUMERICS", 2)
    with pytest.raises(
        torchqat.UserError, match=matches("runs.made-of-others", what=sentence("runs.other-arithmetic"))
    ):
        begin(resume=True)
