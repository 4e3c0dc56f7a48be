"""Mode auto: it stops at the first candidate that is good and small enough, says why, and keeps what it measured."""

import json
import math

import pytest
import torchqat
from command import call
from conftest import RECIPE
from sentences import matches, said, sentence
from torchqat.reports.report import Report, Variant
from torchqat.reports.wording import sentences

AUTO = RECIPE.split("evaluate:")[0] + "mode: auto\n"


@pytest.fixture
def decide(tmp_path, model_folder, data_folder, capsys):
    """Runs mode auto with some limits; returns the report and what was said on the way."""

    def run(limits, *options, recipe=AUTO, command="run"):
        path = tmp_path / "recipe.yaml"
        path.write_text(recipe + limits)
        places = ["--model", model_folder, "--data", data_folder, "--output", tmp_path / "run"]
        code, out, err = call(capsys, command, path, *places, *options)
        assert code == 0, err
        return json.loads((tmp_path / "run" / "report.json").read_text()), out + err

    return run


def over_all(bits):
    """Bits a weight of the tiny model whose blocks take ``bits``: 61440 weights, beside a float32 head of 25600."""
    return math.ceil((bits * 61440 + 32 * 25600) / 87040 * 1e4) / 1e4


def size(bits):
    return f"size: {{bits_per_weight: {over_all(bits)}}}\n"


def names(report):
    return [variant["name"] for variant in report["variants"]]


def test_the_first_that_meets_the_limits_ends_it(decide, tmp_path):
    report, printed = decide("evaluate: {accept: {kl: 100.0}}\n" + size(9.0))
    assert names(report) == ["int8"] and report["chosen"] == "int8" and report["accepted"] is True
    assert said(printed, "decide.meets-limits", method="INT8") and said(printed, "decide.chosen", method="INT8")
    mixed = [sentence("decide.mixed-method", width="INT4", bits=bits, last="QAT") for bits in ("7.00", "9.00")]
    left = "; ".join(["INT4 GPTQ", "INT4 AWQ", "INT4 QAT", *mixed])
    assert said(printed, "decide.not-tried", methods=left)
    assert (tmp_path / "run" / "exports" / "compressed-tensors" / "model.safetensors").is_file()


def test_a_format_that_cannot_hold_the_chosen_one_is_noted(decide, tmp_path):
    recipe = AUTO.replace("scale: learned", "scale: learned, scale_dtype: float16")
    limits = "evaluate: {accept: {kl: 100.0}}\n" + size(9.0) + "export: [awq, safetensors]\n"
    report, _ = decide(limits, recipe=recipe)
    assert report["chosen"] == "int8" and said(report["notes"][-1], "export.cannot-hold", format="awq")
    exported = {path.name for path in (tmp_path / "run" / "exports").iterdir()}
    assert "safetensors" in exported and "awq" not in exported


def test_a_model_that_is_too_large_is_not_taken(decide):
    report, printed = decide("evaluate: {accept: {kl: 100.0}}\n" + size(5.2))
    assert names(report) == ["int8", "int4-gptq"] and report["chosen"] == "int4-gptq"
    assert said(printed, "decide.too-large", method="INT8", bits=f"{over_all(9.0):.2f}", budget=over_all(5.2))


def test_where_none_is_small_enough_the_smallest_is_taken_and_no_limit_is_said_to_hold(decide):
    report, printed = decide("evaluate: {accept: {kl: 100.0}}\nsize: {bits_per_weight: 2.0}\n")
    smallest = min(report["variants"], key=lambda variant: (variant["bits_over_all"], variant["kl"]))
    assert report["chosen"] == smallest["name"]
    assert said(printed, "decide.chosen-smallest", budget="2")


def test_where_none_is_good_enough_the_nearest_small_one_is_taken(decide):
    report, printed = decide("evaluate: {accept: {kl: 0.0}}\n" + size(6.0))
    tried = names(report)
    assert tried[:4] == ["int8", "int4-gptq", "int4-awq", "int4-qat"] and len(tried) == 6
    small = [variant for variant in report["variants"] if variant["bits_per_weight"] <= 6.0]
    assert report["chosen"] == min(small, key=lambda variant: variant["kl"])["name"]
    assert report["accepted"] is False and said(printed, "decide.chosen-nearest")
    # Backed off layers are at 8 bits, as many as the budget holds.
    bits = {variant["name"]: variant["bits_per_weight"] for variant in report["variants"]}
    assert bits["int4-qat"] < bits[tried[4]] < bits[tried[5]] <= 6.0


def test_what_was_measured_is_kept_when_limits_change(decide, tmp_path, capsys):
    first, _ = decide("evaluate: {accept: {kl: 0.0}}\n" + size(5.2))
    kept = {variant["name"]: variant for variant in first["variants"]}
    second, printed = decide("evaluate: {accept: {kl: 100.0}}\n" + size(5.2), "--resume")
    assert second["chosen"] == "int4-gptq" and second["accepted"] is True
    assert {variant["name"]: variant for variant in second["variants"]} == kept
    assert "Trying" not in printed and "Measuring the full-precision" not in printed
    exported = tmp_path / "run" / "exports"
    files = [exported / name / "model.safetensors" for name in ("compressed-tensors", "compressed-tensors-int4-gptq")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_the_chosen_one_is_what_the_other_commands_find(decide, tmp_path, capsys):
    report, _ = decide("evaluate: {accept: {kl: 0.0}}\n" + size(5.2))
    run = tmp_path / "run"
    for folder in ("compressed-tensors", "compressed-tensors-int8", "compressed-tensors-int4-qat"):
        code, out, err = call(capsys, "verify", run / "exports" / folder)
        assert code == 0 and said(out, "verify.equal", layers=14), err
    code, out, err = call(capsys, "export", run, "--format", "safetensors")
    assert code == 0 and said(out, "verify.equal", layers=14), err


def test_the_users_task_decides(decide, tmp_path):
    lines = [{"prompt": f"def function_{i}(argument):", "expected": "\n"} for i in range(20)]
    (tmp_path / "task.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    limits = f"{{task: {tmp_path / 'task.jsonl'}, accept: {{task_drop: 0.0}}}}"
    report, printed = decide(f"evaluate: {limits}\n" + size(9.0))
    assert len(report["baseline"]["task_scores"]) == 20
    assert report["variants"][0]["task"] == pytest.approx(report["baseline"]["task"])
    assert report["variants"][0]["intervals"]["task_drop"] == [0.0, 0.0, 0.0]
    assert said(printed, "reports.within-noise", figure="task")


def test_without_training_the_steps_are_left_out(decide):
    report, _ = decide("evaluate: {accept: {kl: 0.0}}\n" + size(6.0), command="ptq")
    assert "int4-qat" not in names(report) and len(names(report)) == 5


def test_the_limit_that_is_missed_is_named(decide):
    """And not the KL, whatever it is that was missed."""
    _, printed = decide("evaluate: {accept: {kl: 100.0, perplexity_ratio: 0.5}}\n" + size(9.0), command="ptq")
    assert said(printed, "decide.past-limits", method="INT8", limit="Perplexity") and "limits (KL" not in printed


def test_an_engine_that_is_missing_is_a_note(decide, monkeypatch):
    monkeypatch.delenv("TORCHQAT_VLLM", raising=False)
    report, printed = decide("evaluate: {accept: {kl: 100.0}}\n" + size(9.0) + "engine: vllm\n")
    note = report["engine"]["note"]
    assert said(note, "verify.engine-missing", engine="vllm", module="vllm") and said(printed, "decide.note", note=note)


def test_the_engine_is_measured(decide):
    report, _ = decide("evaluate: {accept: {kl: 100.0}}\n" + size(9.0) + "engine: transformers\n")
    assert (
        report["engine"]["ok"] and report["engine"]["export"]["decode"] > 0 and report["engine"]["float"]["prefill"] > 0
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", matches("recipe.mode-without-limits", key="mode")),
        (
            "evaluate: {accept: {task_drop: 0.1}}\n",
            matches("recipe.task-drop-without-task", key="evaluate.accept.task_drop"),
        ),
        (
            "evaluate: {accept: {kl: 1}}\nsize: {bits_per_weight: 1}\n",
            matches("recipe.no-number", key="size.bits_per_weight"),
        ),
        (
            "evaluate: {accept: {kl: 1}}\nengine: ollama\n",
            matches(
                "recipe.unknown-word",
                key="engine",
                known="transformers, vllm, llama.cpp, mlx, openvino, onnxruntime-genai or executorch",
            ),
        ),
    ],
)
def test_limits_that_are_none_are_refused(text, message):
    with pytest.raises(torchqat.RecipeError, match=message):
        torchqat.parse_recipe(AUTO + text)


def test_budgets_are_for_mode_auto_alone():
    with pytest.raises(torchqat.RecipeError, match=matches("recipe.mode-auto-alone", key="size")):
        torchqat.parse_recipe(RECIPE + "size: {bits_per_weight: 4}\n")


def test_the_engine_chooses_the_format():
    limits = "evaluate: {accept: {kl: 1}}\n"
    assert torchqat.parse_recipe(AUTO + limits + "engine: llama.cpp\n").exports == ["gguf"]
    assert torchqat.parse_recipe(AUTO + limits + "engine: vllm\n").exports == ["compressed-tensors"]


def test_words_for_noise():
    variant = Variant("a", "INT4", 4.5, 10.0, 0.01, 0.9, 100, intervals={"perplexity_ratio": [1.01, 0.99, 1.03]})
    assert sentences(Report(variants=[variant])) == [
        sentence(
            "reports.within-noise", method="INT4", figure="perplexity", change="+1.00%", low="-1.00%", high="+3.00%"
        )
    ]
    variant.intervals = {"perplexity_ratio": [1.02, 1.01, 1.03], "task_drop": [0.05, 0.01, 0.09]}
    assert sentences(Report(variants=[variant])) == [
        sentence(
            "reports.beyond-noise", method="INT4", figure="perplexity", change="+2.00%", low="+1.00%", high="+3.00%"
        ),
        sentence("reports.beyond-noise", method="INT4", figure="task", change="-5.00%", low="-9.00%", high="-1.00%"),
    ]


def test_scales_are_those_that_a_method_chose(decide):
    """Where a recipe leaves it open, scales are searched: found anew from ranges, they would undo what GPTQ did."""
    recipe = AUTO.replace(", scale: learned", "")
    spec = torchqat.parse_recipe(recipe + "evaluate: {accept: {kl: 1}}\n")
    report, _ = decide("evaluate: {accept: {kl: 0.0}}\n" + size(5.2), recipe=recipe, command="ptq")
    kl = {variant["name"]: variant["kl"] for variant in report["variants"]}
    assert kl["int4-gptq"] != kl["int4-awq"] and spec.mode == "auto"
    with pytest.raises(torchqat.RecipeError, match=matches("recipe.scales-that-stay", key="layers[0].weight.scale")):
        torchqat.parse_recipe(AUTO.replace("scale: learned", "scale: minmax") + "evaluate: {accept: {kl: 1}}\n")


def test_what_a_recipe_says_of_initialize_holds_for_each_method(model_folder, monkeypatch):
    """They were rounded by the defaults, whatever the recipe said."""
    found = []
    monkeypatch.setattr("torchqat.runs.run.Run.prepared", lambda run, plan, settings, kept: found.append(settings))
    text = "initialize: {damping: 0.5, objective: layer, block_training: {steps: 3}}\n"
    candidates = candidates_of(AUTO + text, model_folder)
    for name in ("int8", "int4-gptq", "int4-awq"):
        candidates.model(name)
    told = [(made.method, made.damping, made.objective, made.block_training.steps) for made in found]
    assert told == [("mse", 0.01, "auto", 0), ("gptq", 0.5, "layer", 3), ("awq", 0.5, "layer", 3)]


# -- types in blocks ---------------------------------------------------------------------------------------------------

NVFP4 = AUTO.replace("dtype: int4, group_size: 32, grid: full", "dtype: nvfp4")


def candidates_of(text, model_folder, device="cpu"):
    from types import SimpleNamespace

    from torchqat.runs.candidates import Candidates
    from torchqat.runs.flow import run_of

    recipe = torchqat.parse_recipe(text + "evaluate: {accept: {kl: 1.0}}\n" + size(6.0))
    run = run_of(recipe, str(model_folder), output=model_folder.with_name("run"))
    run.float_model.__dict__["device"] = SimpleNamespace(type=device)
    return Candidates(run)


def test_nvfp4_is_decided_about(decide):
    report, printed = decide("evaluate: {accept: {kl: 0.0}}\n" + size(6.0), recipe=NVFP4)
    tried = names(report)
    assert (
        tried[:4] == ["int8", "nvfp4-gptq", "nvfp4-awq", "nvfp4-qat"]
        and len(tried) == 6
        and all("nvfp4-int8" in n for n in tried[4:])
    )
    bits = {variant["name"]: variant["bits_per_weight"] for variant in report["variants"]}
    assert bits["int8"] == pytest.approx(9.0) and bits["nvfp4-gptq"] == pytest.approx(4.5, abs=0.03)
    assert bits["nvfp4-qat"] < bits[tried[4]] < bits[tried[5]] <= 6.0
    assert report["sensitivity"] and set(next(iter(report["sensitivity"].values()))) == {"nvfp4", "8"}
    again, printed = decide("evaluate: {accept: {kl: 100.0}}\n" + size(5.0), "--resume", recipe=NVFP4)
    assert again["chosen"] == "nvfp4-gptq" and "Trying" not in printed


@pytest.mark.parametrize(
    ("engine", "device", "found"),
    [
        ("", "cpu", []),
        ("transformers", "cpu", ["nvfp4-gptq", "mxfp4-gptq"]),
        ("llama.cpp", "cpu", ["mxfp4-gptq"]),  # whose blocks of nvfp4 have 64 columns, and a layer of this model 96
        ("vllm", "cpu", []),  # its CPU build has no linear layer for them
        ("vllm", "cuda", ["nvfp4-gptq", "mxfp4-gptq"]),
    ],
)
def test_4_bit_floats_are_tried_where_the_engine_runs_them(engine, device, found, model_folder, monkeypatch):
    monkeypatch.setattr("torchqat.runs.candidates.runs_float8", lambda device: False)
    text = AUTO + (f"engine: {engine}\n" if engine else "")
    text = text.replace("scale: learned", "scale: learned, scale_dtype: float16") if engine == "llama.cpp" else text
    tried = [candidate.name for candidate in candidates_of(text, model_folder, device).all()]
    assert [name for name in tried if name in ("nvfp4-gptq", "mxfp4-gptq")] == found
    assert tried.index("int4-awq") < tried.index("int4-qat")


def test_inputs_in_blocks_are_backed_off_to_mxfp8(model_folder):
    text = NVFP4.replace("scale: learned}", "scale: learned}\n    input: {dtype: nvfp4}")
    found = candidates_of(text, model_folder)
    assert found.wide == "mxfp8_e4m3"
    plan = found._typed({layer.name: "mxfp8_e4m3" for layer in found.run.plan.layers})
    assert {layer.input.type_name for layer in plan.layers} == {"mxfp8_e4m3"}
