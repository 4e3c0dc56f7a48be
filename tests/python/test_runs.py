"""The folder of a run: no command deletes it unasked, none goes on with another's, and it stands by itself."""

import json
import re
import shutil

import pytest
import torch
import torchqat
from command import call
from conftest import RECIPE
from torchqat.files import digest_of
from torchqat.runs.flow import run_of
from torchqat.runs.identity import key_of, meaning, model_content
from torchqat.runs.progress import Progress
from torchqat.runs.restore import open_run

LONG = RECIPE.replace("train: {steps: 8,", "train: {steps: 200, validate_every: 0, monitor: false,").split("evaluate:")[
    0
]
PTQ = RECIPE.split("schedule:")[0] + "initialize: {method: gptq}\n"


@pytest.fixture
def begin(tmp_path, model_folder, data_folder):
    """Does a run of a recipe's text by the library, into ``run``."""

    def begin(text=RECIPE, progress=None, **options):
        recipe = torchqat.parse_recipe(text, "recipe.yaml")
        places = {"model": model_folder, "data": data_folder, "output": tmp_path / "run"}
        return torchqat.run(recipe, **{**places, **options}, progress=progress or Progress(quiet=True))

    return begin


class Interrupting(Progress):
    """Stops as a user does, once ``step`` steps are taken."""

    def __init__(self, step):
        super().__init__(quiet=True)
        self.step = step

    def steps(self, what, total):
        def show(step, _figures):
            if step == self.step:
                raise KeyboardInterrupt

        return show


# -- what is deleted, and what is refused -----------------------------------------------------------------------------


def test_a_run_that_was_interrupted_is_not_touched_by_the_same_command(begin, tmp_path, arguments, recipe_file, capsys):
    recipe_file.write_text(LONG)
    with pytest.raises(KeyboardInterrupt):
        begin(LONG, Interrupting(151))
    before = digest_of(tmp_path / "run")
    code, _, err = call(capsys, "run", *arguments)
    assert code == 2 and "run has a run at step 150 of 200: --resume goes on with it, --restart deletes it" in err
    assert digest_of(tmp_path / "run") == before
    for command in ("train", "ptq"):
        assert call(capsys, command, *arguments)[0] == 2
    assert digest_of(tmp_path / "run") == before


def test_a_run_that_trained_nothing_yet_is_told_by_what_it_has(begin):
    begin(PTQ + "train: {steps: 0}\n")
    with pytest.raises(torchqat.UserError, match="has a run that has measured 1 variant: --resume"):
        begin(PTQ + "train: {steps: 0}\n")


def test_resume_needs_a_run(begin, tmp_path):
    with pytest.raises(torchqat.UserError, match=f"--resume goes on with a run, but {tmp_path / 'run'} has none"):
        begin(resume=True)
    assert not (tmp_path / "run").exists()
    with pytest.raises(torchqat.UserError, match="Either --resume or --restart must be given, but both are"):
        begin(resume=True, restart=True)


def test_restart_deletes_what_a_run_made_and_nothing_else(begin, tmp_path):
    begin(PTQ + "train: {steps: 0}\nexport: [compressed-tensors, gptq]\n")
    (tmp_path / "run" / "notes.txt").write_text("mine")
    report = begin(PTQ + "train: {steps: 0}\n", restart=True)
    assert [variant.name for variant in report.variants] == ["int4-gptq"]
    assert [path.name for path in (tmp_path / "run" / "exports").iterdir()] == ["compressed-tensors-int4-gptq"]
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"
    begin(PTQ + "train: {steps: 0}\n", restart=True, output=tmp_path / "new")  # where there is nothing, too


def test_the_folder_is_named_after_model_and_recipe(monkeypatch, tmp_path, recipe_file, model_folder):
    assert str(run_of(recipe_file, str(model_folder)).folder) == "runs/model-recipe"
    assert str(run_of(recipe_file, "org/Model-7B").folder) == "runs/Model-7B-recipe"
    assert str(run_of(recipe_file, "mine:build").folder) == "runs/build-recipe"


def test_torchrun_is_for_training_alone(begin, monkeypatch, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(torchqat.UserError, match="A run must be one process, but torchrun started 2; torchqat train"):
        begin()
    assert not (tmp_path / "run").exists()


# -- what a run is made of --------------------------------------------------------------------------------------------


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


OTHERS = {
    "data.calibration.samples": "data: {calibration: {samples: 3}}",
    "data.evaluation.sequence_length": "data: {evaluation: {sequence_length: 64}}",
    "initialize.method": "initialize: {method: awq}",
    "initialize.damping": "initialize: {damping: 0.02}",
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
BARE = 'version: 1\nlayers: [{match: "*", weight: {dtype: int4, group_size: 32}}]\n'


@pytest.mark.parametrize("key", OTHERS)
def test_settings_count(key):
    text = BARE + OTHERS[key] + "\n"
    if key == "mode":
        text += "evaluate: {accept: {kl: 1}}\n"
    there, here = identity(BARE), identity(text)
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


def test_the_content_of_a_model_counts_and_not_its_place(model_folder, tmp_path, tiny_llama):
    first = model_content(str(model_folder))
    moved = shutil.copytree(model_folder, tmp_path / "moved")
    assert model_content(str(moved)) == first
    with torch.no_grad():
        tiny_llama.model.layers[1].mlp.up_proj.weight[0, 0] += 1
    tiny_llama.save_pretrained(moved)
    assert model_content(str(moved)) != first
    assert model_content("module:function") == "" != model_content("module:function", tiny_llama)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: text.replace("steps: 8", "steps: 9"), "train.steps is 8 there and 9 here"),
        (lambda text: text.replace("25%", "30%"), "layers or schedule mean something else"),
        (
            lambda text: text.replace("batch_size: 2", "batch_size: 1, seed: 3"),
            "train.batch_size is 2 there and 1 here",
        ),
    ],
)
def test_another_recipe_is_not_gone_on_with(begin, tmp_path, change, said):
    with pytest.raises(KeyboardInterrupt):
        begin(progress=Interrupting(4))
    before = digest_of(tmp_path / "run")
    with pytest.raises(torchqat.UserError, match=f"must be made of the same recipe, model and data, but .*{said}"):
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
    with pytest.raises(torchqat.UserError, match="the model has other weights; the data are others"):
        begin(resume=True)


def test_a_model_that_moved_and_another_version_are_gone_on_with(begin, model_folder, tmp_path, capsys):
    with pytest.raises(KeyboardInterrupt):
        begin(progress=Interrupting(4))
    report = tmp_path / "run" / "report.json"
    report.write_text(report.read_text().replace(f'"torch": "{torch.__version__}"', '"torch": "2.11.0"'))
    begin(resume=True, model=model_folder.rename(tmp_path / "elsewhere"), progress=Progress())
    assert "Note: The run was begun with torch 2.11.0, and goes on with others." in capsys.readouterr().err


def test_arithmetic_of_another_version_is_not_gone_on_with(begin, monkeypatch):
    with pytest.raises(KeyboardInterrupt):
        begin(progress=Interrupting(4))
    monkeypatch.setattr("torchqat.runs.identity.NUMERICS", 2)
    with pytest.raises(torchqat.UserError, match="it was begun by a torchqat whose arithmetic gives other bits"):
        begin(resume=True)


def test_settings_made_in_python_are_kept(tmp_path, model_folder, data_folder):
    recipe = torchqat.parse_recipe(RECIPE, "recipe.yaml")
    recipe.train.steps, recipe.train.warmup, recipe.initialize.damping = 4, torchqat._library.Bound(1, False), 0.03
    torchqat.run(recipe, model_folder, data_folder, tmp_path / "run", progress=Progress(quiet=True))
    again = open_run(tmp_path / "run").recipe
    assert (again.train.steps, again.initialize.damping) == (4, 0.03)
    assert (again.train.warmup.value, again.train.warmup.is_percent) == (1, False)
    assert meaning(again) == meaning(recipe)


# -- what stands by itself --------------------------------------------------------------------------------------------

STATIC = "    input: {dtype: int8, granularity: tensor, dynamic: false}\n"


@pytest.mark.parametrize(
    "text",
    [
        RECIPE,
        PTQ + "train: {steps: 0}\n",
        RECIPE.replace("schedule:", STATIC + "schedule:") + "export: [safetensors]\n",
    ],
)
def test_export_verify_and_report_do_without_the_data_and_from_anywhere(
    text, tmp_path, model_folder, data_folder, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text(text)
    code, _, err = call(capsys, "run", "recipe.yaml", "--model", "model", "--data", "data", "--output", "run")
    assert code == 0, err
    shutil.rmtree(data_folder)
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    for folder in sorted((tmp_path / "run" / "exports").iterdir()):
        code, out, err = call(capsys, "verify", folder)
        assert code == 0 and "equal bit for bit" in out, err
    code, _, err = call(capsys, "export", "../run", "--format", "safetensors", "--output", "again")
    assert code == 0, err
    assert call(capsys, "report", "../run")[0] == 0
    code, out, _ = call(capsys, "verify", "again", "--run", "../run")  # which lies elsewhere
    assert code == 0 and "equal bit for bit" in out


def test_a_checkpoint_is_known_by_what_it_holds(begin, tmp_path, capsys):
    """Not by the name of its folder, which may be another's."""
    begin()
    exports = tmp_path / "run" / "exports"
    shutil.copytree(exports / "compressed-tensors-int8-naive", tmp_path / "run" / "mine-int4-naive")
    code, out, _ = call(capsys, "verify", tmp_path / "run" / "mine-int4-naive")
    assert code == 0 and "14 layers equal bit for bit" in out
    (tmp_path / "run" / "mine-int4-naive" / "extra.txt").write_text("changed")
    code, _, err = call(capsys, "verify", tmp_path / "run" / "mine-int4-naive")
    assert code == 2 and "--variant can say of which model it is: int4-naive, int4-qat, int8-naive" in err
    code, out, _ = call(capsys, "verify", tmp_path / "run" / "mine-int4-naive", "--variant", "int8-naive")
    assert code == 0 and "14 layers equal bit for bit" in out
    code, _, err = call(capsys, "verify", exports / "compressed-tensors", "--variant", "int5")
    assert code == 2 and "variant must be one of the run" in err


def test_a_model_that_changed_since_is_named(begin, tmp_path, model_folder, tiny_llama, capsys):
    begin(PTQ + "train: {steps: 0}\n")
    with torch.no_grad():
        tiny_llama.lm_head.weight.mul_(2)
    tiny_llama.save_pretrained(model_folder)
    code, _, err = call(capsys, "export", tmp_path / "run")
    assert code == 2 and "must hold the model that the run in" in err and "changed since" in err


def test_candidates_are_not_solved_twice(begin, tmp_path, monkeypatch, capsys):
    """Export and verification read what mode auto kept; so does a run that goes on."""
    auto = RECIPE.split("evaluate:")[0].replace("steps: 8", "steps: 4") + "mode: auto\nsize: {bits_per_weight: 6.0}\n"
    report = begin(auto + "evaluate: {accept: {kl: 0.0}}\n")
    assert len(report.variants) == 6
    for function in (
        "torchqat.runs.run.calibrate",
        "torchqat.runs.auto.fine_tune",
        "torchqat.runs.auto.measure_sensitivity",
    ):
        monkeypatch.setattr(function, lambda model, batches, *rest: pytest.fail("solved again") if batches else Nothing)
    for variant in report.variants:
        code, out, err = call(capsys, "verify", tmp_path / "run" / variant.export)
        assert code == 0 and "equal bit for bit" in out, err
    begin(auto + "evaluate: {accept: {kl: 0.0}}\n", resume=True)


class Nothing:
    warnings: list = []


def test_check_reads_no_weights(tmp_path, model_folder, recipe_file, capsys):
    for file in model_folder.glob("*.safetensors"):
        file.unlink()
    code, out, err = call(capsys, "check", recipe_file, "--model", model_folder)
    assert code == 0 and "14 layers quantized" in out, err


def test_check_of_a_model_of_70_billion_weights_takes_seconds(tmp_path, recipe_file, capsys):
    import time

    from transformers import LlamaConfig

    shape = {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64}
    LlamaConfig(**shape, num_key_value_heads=8, vocab_size=128256).save_pretrained(tmp_path / "large")
    begun = time.process_time()
    code, out, err = call(capsys, "check", recipe_file, "--model", tmp_path / "large")
    assert code == 0 and "560 layers quantized" in out, err
    assert time.process_time() - begun < 30  # minutes and 280 GB, if it made them


# -- runs that are streamed -------------------------------------------------------------------------------------------


def test_a_streamed_run_is_a_run(arguments, recipe_file, tmp_path, capsys, monkeypatch):
    recipe_file.write_text(PTQ)
    code, out, err = call(capsys, "ptq", *arguments, "--stream")
    assert code == 0, err
    run = tmp_path / "run"
    assert {"run.json", "report.json", "recipe.yaml", "plan.txt"} <= {path.name for path in run.iterdir()}
    report = json.loads((run / "report.json").read_text())
    variant = report["variants"][0]
    assert (variant["name"], variant["kl"], variant["export"]) == ("int4-gptq", None, "exports/compressed-tensors")
    assert variant["bits_per_weight"] == pytest.approx(5.0) and report["baseline"]["bytes"] > variant["bytes"]
    code, out, _ = call(capsys, "report", run)
    assert code == 0 and "INT4 gptq, streamed" in out
    code, _, err = call(capsys, "ptq", *arguments, "--stream")
    assert code == 2 and "has a run that has measured 1 variant" in err
    export = run / "exports" / "compressed-tensors"
    code, out, _ = call(capsys, "verify", export)
    assert code == 0 and "14 layers equal bit for bit" in out
    code, _, err = call(capsys, "verify", export, "--engine", "transformers")
    assert code == 2 and "was streamed, so that its checkpoint can be read, but not compared in engines" in err
    code, out, _ = call(capsys, "ptq", *arguments, "--stream", "--restart")
    assert code == 0


@pytest.mark.parametrize("leaf", ["self_attn.q_proj.weight_packed", "input_layernorm.weight"])
def test_damage_to_a_streamed_checkpoint_is_found(leaf, arguments, recipe_file, tmp_path, capsys):
    from safetensors.torch import load_file, save_file

    recipe_file.write_text(PTQ)
    assert call(capsys, "ptq", *arguments, "--stream")[0] == 0
    export = tmp_path / "run" / "exports" / "compressed-tensors"
    name = f"model.layers.1.{leaf}"
    file = next(file for file in export.glob("*.safetensors") if name in load_file(file))
    tensors = load_file(file)
    tensors[name].view(torch.uint8).flatten()[3] ^= 1
    save_file(tensors, file, {"format": "pt"})
    code, out, _ = call(capsys, "verify", export)
    assert code == 1 and "1 tensor differs, the first model.layers.1." in out
    del tensors[name]
    save_file(tensors, file, {"format": "pt"})
    code, out, err = call(capsys, "verify", export)
    assert code != 0 and ("missing" in out or "must be" in err)


# -- what a stranger tried --------------------------------------------------------------------------------------------

NOTHING = PTQ + "train: {steps: 0}\n"


def test_a_restart_that_is_killed_leaves_nothing_that_counts(begin, tmp_path, monkeypatch):
    first = begin()
    with monkeypatch.context() as patch:
        patch.setattr("torchqat.runs.folder.shutil.rmtree", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            begin(restart=True)
    assert not list((tmp_path / "run").glob("report.json"))
    again = begin(resume=True)
    assert [variant.kl for variant in again.variants] == [variant.kl for variant in first.variants]
    assert all((tmp_path / "run" / variant.export).is_dir() for variant in again.variants)
    assert not list((tmp_path / "run").glob(".*old*"))


def test_what_lies_behind_a_link_is_let_go(begin, tmp_path):
    begin()
    (tmp_path / "run" / "checkpoints").rename(tmp_path / "disk")
    (tmp_path / "run" / "checkpoints").symlink_to(tmp_path / "disk")
    begin(restart=True)
    assert not (tmp_path / "run" / "checkpoints").is_symlink() and (tmp_path / "disk" / "train.pt").is_file()


def test_settings_of_initialize_made_in_python_are_kept(tmp_path, model_folder, data_folder):
    recipe = torchqat.parse_recipe(NOTHING.replace("gptq", "mse"), "recipe.yaml")
    recipe.initialize = torchqat._library.Initialize("awq")
    recipe.initialize.block_training.steps = 2
    torchqat.run(recipe, model_folder, data_folder, tmp_path / "run", progress=Progress(quiet=True))
    again = open_run(tmp_path / "run").recipe.initialize
    assert (again.method, again.block_training.steps) == ("awq", 2)


def test_candidates_train_as_settings_made_in_python_say(tmp_path, model_folder, data_folder, monkeypatch):
    from torchqat.runs import auto

    seen = []
    monkeypatch.setattr(auto, "fine_tune", lambda run: seen.append(run.recipe.distill.temperature) or pytest.skip())
    text = RECIPE.split("evaluate:")[0] + "mode: auto\nsize: {bits_per_weight: 5.2}\nevaluate: {accept: {kl: 0.0}}\n"
    recipe = torchqat.parse_recipe(text, "recipe.yaml")
    recipe.distill.temperature = 3.0
    with pytest.raises(pytest.skip.Exception):
        torchqat.run(recipe, model_folder, data_folder, tmp_path / "run", progress=Progress(quiet=True))
    assert seen == [3.0]


def test_candidates_of_other_limits_stay_what_they_were(begin, tmp_path, capsys):
    auto = RECIPE.split("evaluate:")[0].split("train:")[0] + "train: {steps: 0}\nmode: auto\n"
    limits = "evaluate: {accept: {kl: 0.0}}\nsize: {bits_per_weight: SIZE}\n"
    first = begin(auto + limits.replace("SIZE", "6.0"))
    begin(auto + limits.replace("SIZE", "6.5"), resume=True)
    for variant in first.variants:
        code, out, err = call(capsys, "verify", tmp_path / "run" / variant.export)
        assert code == 0 and "equal bit for bit" in out, err


def test_streamed_and_whole_runs_do_not_mix(begin, arguments, recipe_file, tmp_path, capsys):
    recipe_file.write_text(PTQ)
    assert call(capsys, "ptq", *arguments, "--stream")[0] == 0
    code, _, err = call(capsys, "ptq", *arguments, "--resume")
    assert code == 2 and "one of them is streamed" in err
    code, _, err = call(capsys, "export", tmp_path / "run", "--format", "gptq")
    assert code == 2 and "was streamed and kept no model" in err
    assert call(capsys, "ptq", *arguments, "--restart")[0] == 0
    code, _, err = call(capsys, "ptq", *arguments, "--stream", "--resume")
    assert code == 2 and "one of them is streamed" in err


@pytest.mark.parametrize("rest", ["export: [gguf]\n", "initialize: {method: hadamard+gptq}\n"])
def test_what_cannot_be_streamed_is_said_before_there_is_a_run(
    rest, arguments, recipe_file, tmp_path, capsys, monkeypatch
):
    recipe_file.write_text(PTQ.replace("initialize: {method: gptq}\n", "") + rest)
    assert call(capsys, "ptq", *arguments, "--stream")[0] == 2
    assert not (tmp_path / "run").exists()
    monkeypatch.setenv("WORLD_SIZE", "2")
    recipe_file.write_text(PTQ)
    assert call(capsys, "ptq", *arguments, "--stream")[0] == 2


def test_content_of_large_tensors_and_of_odd_states():
    class Odd(torch.nn.Linear):
        def get_extra_state(self):
            return {"a": 1}

    large = Odd(1, 1 << 25, bias=False)
    first = model_content("module:function", large)
    with torch.no_grad():
        large.weight[-1] += 1
    assert model_content("module:function", large) != first


def test_what_is_kept_is_of_the_same_settings(begin, tmp_path):
    begin(NOTHING)
    run = open_run(tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    gptq = torchqat._library.Initialize("gptq")
    first = run.prepared(run.plan, gptq, tmp_path / "kept.pt").state_dict()
    gptq.damping, gptq.correction = 50.0, 0.0
    second = run.prepared(run.plan, gptq, tmp_path / "kept.pt").state_dict()
    assert any(not torch.equal(a, b) for a, b in zip(first.values(), second.values(), strict=True))


def test_limits_that_changed_are_held_against_what_was_measured(begin):
    assert begin(NOTHING + "evaluate: {accept: {kl: 100}}\n").accepted is True
    assert begin(NOTHING + "evaluate: {accept: {kl: 1.0e-9}}\n", resume=True).accepted is False


def test_the_content_of_a_task_counts(begin, tmp_path):
    task = tmp_path / "task.jsonl"
    task.write_text(json.dumps({"prompt": "def ", "expected": "function"}) + "\n")
    text = NOTHING + f"evaluate: {{task: {task}}}\n"
    begin(text)
    moved = task.rename(tmp_path / "moved.jsonl")
    begin(text.replace(str(task), str(moved)), resume=True)
    moved.write_text(json.dumps({"prompt": "def ", "expected": "other"}) + "\n")
    with pytest.raises(torchqat.UserError, match="the task is another"):
        begin(text.replace(str(task), str(moved)), resume=True)


def test_files_beside_a_model_count(encoder_folder):
    from torchqat.kinds import find_kind

    def content():
        return model_content(
            str(encoder_folder), None, sorted(find_kind("sentence_encoder").companions(encoder_folder).values())
        )

    first = content()
    pooling = encoder_folder / "1_Pooling" / "config.json"
    pooling.write_text(pooling.read_text().replace('cls_token": false', 'cls_token": true'))
    assert content() != first


def test_reports_are_changed_by_one_at_a_time(tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    from torchqat.reports.report import read_report
    from torchqat.runs.folder import changed_report

    def note(number):
        with changed_report(tmp_path) as report:
            report.notes.append(str(number))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(note, range(40)))
    assert sorted(map(int, read_report(tmp_path).notes)) == list(range(40))


def test_what_another_process_is_writing_is_no_leftover(tmp_path):
    import os

    from torchqat.runs.locking import others_in, remove_leftovers

    (tmp_path / f".out.pending-{os.getppid()}").mkdir()
    (tmp_path / ".out.pending-999999999").mkdir()
    (tmp_path / "poetry.lock").write_text("mine")
    remove_leftovers(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {f".out.pending-{os.getppid()}", "poetry.lock"}
    assert [path.name for path in others_in(tmp_path)] == ["poetry.lock"]
