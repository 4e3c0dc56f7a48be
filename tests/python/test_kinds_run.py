"""Models that are no language models, by the same recipes, from data to report; recipes and data that are refused."""

import json
import sys

import pytest
import torch
import torchqat
import transformers
from command import call
from conftest import TEXT
from sentences import matches, said
from torchqat.runs import candidates as deciding

SETTINGS = """data: {calibration: {samples: 8, sequence_length: 32}, evaluation: {samples: 16, sequence_length: 32}}
train: {steps: 4, batch_size: 4, sequence_length: 32, checkpoint_every: 2, validate_every: 2}
"""
LAYERS = """version: 1
layers:
  - match: "*encoder.layer.*"
    weight: {dtype: int4, group_size: 32, grid: full, scale: learned}
"""


@pytest.fixture
def labelled(tmp_path):
    path = tmp_path / "labelled.jsonl"
    lines = [{"text": f"def function_{i}(argument): return {i % 3}", "label": i % 3} for i in range(60)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def sentences(tmp_path):
    path = tmp_path / "sentences.jsonl"
    lines = [
        {"text": f"Function number {i} adds {i} to its argument{'' if i % 2 else ' and returns it'}."}
        for i in range(80)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def digits_module(tmp_path, monkeypatch):
    """A module of the user's in the working directory, whose functions a recipe names."""
    (tmp_path / "mine.py").write_text(
        "import torch\nfrom torch import nn\n\n\n"
        "def model():\n    torch.manual_seed(0)\n"
        "    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4))\n\n\n"
        "def data():\n    g = torch.Generator().manual_seed(0)\n"
        "    return torch.randn(80, 1, 8, 8, generator=g), torch.randint(4, (80,), generator=g)\n\n\n"
        "def bad():\n    return torch.zeros(3), torch.zeros(4)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "mine"
    sys.modules.pop("mine", None)


def run(capsys, tmp_path, text, *arguments, command="run"):
    (tmp_path / "recipe.yaml").write_text(text)
    code, out, err = call(capsys, command, tmp_path / "recipe.yaml", "--output", tmp_path / "run", *arguments)
    assert code == 0, err
    return json.loads((tmp_path / "run" / "report.json").read_text()), out + err


def test_a_text_classifier_from_data_to_export(capsys, tmp_path, classifier_folder, labelled):
    text = (
        LAYERS + SETTINGS + "model: {kind: classifier}\nevaluate: {accept: {task_drop: 0.5, perplexity_ratio: 2.0}}\n"
    )
    report, out = run(capsys, tmp_path, text, "--model", classifier_folder, "--data", labelled)
    (variant,) = report["variants"]
    assert variant["name"] == "int4-qat" and report["accepted"] is True
    assert len(report["baseline"]["task_scores"]) == 3  # of 6 held out, every second
    assert said(out, "verify.outputs", engine="transformers") and said(out, "verify.equal", layers=12)
    served = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "run" / "exports" / "compressed-tensors",
        quantization_config=transformers.CompressedTensorsConfig(dequantize=True),
    )
    assert served.config.num_labels == 3
    code, out, err = call(capsys, "verify", tmp_path / "run" / "exports" / "compressed-tensors")
    assert code == 0 and said(out, "verify.equal", layers=12), err


def test_a_sentence_encoder_from_data_to_export(capsys, tmp_path, encoder_folder, sentences):
    rest = "model: {kind: sentence_encoder}\nevaluate: {accept: {cosine: 0.5}, compare: [int4]}\n"
    report, out = run(capsys, tmp_path, LAYERS + SETTINGS + rest, "--model", encoder_folder, "--data", sentences)
    assert report["baseline"]["perplexity"] is None and report["accepted"] is True
    assert 0.5 < report["variants"][-1]["cosine"] <= 1.0 and "cosine" in out and "perplexity" not in out
    exported = tmp_path / "run" / "exports" / "compressed-tensors"
    assert (exported / "1_Pooling" / "config.json").is_file() and (exported / "modules.json").is_file()
    page = (tmp_path / "run" / "report.html").read_text()
    assert "cosine" in page and "None" not in page.split("<pre")[0]
    code, out, err = call(capsys, "verify", exported)
    assert code == 0, err


def test_an_encoder_as_a_graph_whose_batch_and_length_are_free(capsys, tmp_path, encoder_folder, sentences):
    from torchqat.runs.restore import exported_model

    text = LAYERS + SETTINGS + "model: {kind: sentence_encoder}\nexport: [onnx]\n"
    run(capsys, tmp_path, text, "--model", encoder_folder, "--data", sentences)
    folder = tmp_path / "run" / "exports" / "onnx"
    exported, model = exported_model(folder)
    ids = torch.randint(400, (3, 11))
    checked = torchqat.verify(folder, model, engine="onnxruntime", example=(ids, torch.ones_like(ids)))
    assert checked.ok and checked.layers == 12, str(checked)


def test_a_task_of_queries_and_passages(capsys, tmp_path, encoder_folder, sentences):
    names = [text.split("(")[0] for text in TEXT]
    lines = [{"query": names[i], "passages": [names[i], names[i + 1], names[i + 2]], "answer": 0} for i in range(20)]
    (tmp_path / "task.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    rest = f"model: {{kind: sentence_encoder}}\nevaluate: {{task: {tmp_path / 'task.jsonl'}, accept: {{task_drop: 0.0}}}}\n"
    report, _ = run(capsys, tmp_path, LAYERS + SETTINGS + rest, "--model", encoder_folder, "--data", sentences)
    assert report["baseline"]["task"] == 1.0 and len(report["baseline"]["task_scores"]) == 20


VISION = """version: 1
mode: auto
model: {path: "mine:model", kind: classifier}
data: {train: "mine:data", calibration: {samples: 16}, evaluation: {samples: 8}}
layers: [{match: "*", weight: {dtype: int4, granularity: channel}}]
train: {steps: 4, batch_size: 8, validate_every: 2}
"""


def test_mode_auto_on_a_module_of_the_users(capsys, tmp_path, digits_module):
    rest = "evaluate: {accept: {kl: 0.0}}\nsize: {bits_per_weight: 6.0}\nengine: onnxruntime\n"
    report, out = run(capsys, tmp_path, VISION + rest)
    names = [variant["name"] for variant in report["variants"]]
    assert names[:4] == ["int8", "int4-gptq", "int4-awq", "int4-qat"] and len(names) == 6
    assert report["engine"]["ok"] and report["engine"]["export"]["runs"] > 0 and report["engine"]["float"]["runs"] > 0
    assert (tmp_path / "run" / "exports" / "onnx" / "model.onnx").is_file()
    page = (tmp_path / "run" / "report.html").read_text()
    assert "runs/s" in page
    code, out, err = call(capsys, "verify", tmp_path / "run" / "exports" / "onnx", "--engine", "onnxruntime", "--bench")
    assert code == 0 and "runs/s" in out, err


def test_fp8_is_tried_where_there_is_hardware(capsys, tmp_path, classifier_folder, labelled, monkeypatch):
    monkeypatch.setattr(deciding, "runs_float8", lambda device: True)
    rest = "mode: auto\nmodel: {kind: classifier}\nevaluate: {accept: {kl: 100.0}}\nsize: {bits_per_weight: 10.5}\n"
    report, _ = run(capsys, tmp_path, LAYERS + SETTINGS + rest, "--model", classifier_folder, "--data", labelled)
    assert [variant["name"] for variant in report["variants"]] == ["int8", "fp8"] and report["chosen"] == "fp8"
    config = json.loads((tmp_path / "run" / "exports" / "compressed-tensors" / "config.json").read_text())
    group = config["quantization_config"]["config_groups"]["group_0"]
    assert group["weights"]["type"] == "float" and group["input_activations"]["dynamic"] is True


@pytest.mark.parametrize(("capability", "runs"), [(None, False), ((8, 0), False), ((8, 9), True), ((9, 0), True)])
def test_fp8_hardware_is_that_of_compute_capability_8_9(capability, runs, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    device = torch.device("cpu" if capability is None else "cuda:1")
    assert deciding.runs_float8(device) is runs


def test_the_control_of_a_classifier(capsys, tmp_path, classifier_folder, labelled):
    text = (
        LAYERS
        + SETTINGS.replace("validate_every: 2", "validate_every: 2, control: true")
        + "model: {kind: classifier}\n"
    )
    report, _ = run(capsys, tmp_path, text, "--model", classifier_folder, "--data", labelled)
    assert [variant["name"] for variant in report["variants"]] == ["float-control", "int4-qat"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "model: {kind: detector}",
            matches(
                "recipe.unknown-word",
                key="model.kind",
                known="causal_lm, classifier, sentence_encoder or seq2seq",
                value="detector",
            ),
        ),
        ("model: {kind: classifier, scratch: {}}", matches("recipe.scratch-of-another-kind", key="model.scratch")),
        (
            "model: {kind: sentence_encoder}\ndistill: {loss: forward_kl}",
            matches("recipe.unknown-word", key="distill.loss", known="cosine", value="forward_kl"),
        ),
        (
            "distill: {loss: cosine}",
            matches("recipe.unknown-word", key="distill.loss", known="forward_kl or cross_entropy", value="cosine"),
        ),
        ("evaluate: {accept: {cosine: 0.9}}", matches("recipe.cosine-of-no-encoder", key="evaluate.accept.cosine")),
        (
            "model: {kind: sentence_encoder}\nevaluate: {accept: {perplexity_ratio: 1}}",
            matches("recipe.perplexity-of-encoder", key="evaluate.accept.perplexity_ratio"),
        ),
        (
            "model: {kind: sentence_encoder}\ntrain: {control: true}",
            matches("recipe.of-no-encoder", key="train.control"),
        ),
        ("model: {kind: classifier}\nkv_cache: {dtype: int8}", matches("recipe.language-models-alone", key="kv_cache")),
        ("train: {lora: {rank: 4}}", matches("recipe.lora-not-trained", key="train.lora")),
        (
            "train: {parameters: lora, oscillation: {method: freeze}}",
            matches("recipe.oscillation-of-parameters", key="train.oscillation"),
        ),
        (
            "mode: auto\nmodel: {kind: classifier}\nevaluate: {accept: {kl: 1}}\nengine: vllm",
            matches("recipe.unknown-word", key="engine", known="transformers or onnxruntime"),
        ),
    ],
)
def test_recipes_that_make_no_sense(text, message):
    with pytest.raises(torchqat.RecipeError, match=message):
        torchqat.parse_recipe(LAYERS + text + "\n", "recipe")


def test_data_that_are_none_are_said(capsys, tmp_path, classifier_folder, digits_module):
    def refusal(text, *arguments):
        (tmp_path / "recipe.yaml").write_text(text)
        code, _, err = call(capsys, "run", tmp_path / "recipe.yaml", "--output", tmp_path / "run", *arguments)
        assert code == 2 and not (tmp_path / "run").exists()
        return err

    text = LAYERS + SETTINGS + "model: {kind: classifier}\n"
    (tmp_path / "bad.jsonl").write_text('{"text": "a", "label": 0}\n{"text": "b", "label": "c"}\n')
    bad, few = tmp_path / "bad.jsonl", tmp_path / "few.jsonl"
    refused = refusal(text, "--model", classifier_folder, "--data", bad)
    assert said(refused, "data.line-without-label", file=bad, line=2)
    few.write_text('{"text": "a", "label": 0}\n' * 5)
    refused = refusal(text, "--model", classifier_folder, "--data", few)
    assert said(refused, "data.too-few-examples", least=20)
    vision = VISION + "evaluate: {accept: {kl: 1.0}}\nexport: [onnx]\n"
    refused = refusal(vision.replace("mine:data", "mine:bad"))
    assert said(refused, "data.bad-labels", source="mine:bad", found="[(3,), (4,)]")
    refused = refusal(vision.replace("mine:model", "mine:none"))
    assert said(refused, "data.function-not-found", source="mine:none")
    assert said(refusal(vision.replace("mine:model", "mine:data")), "model.no-module", path="mine:data")
    assert said(refusal(vision, "--data", few), "data.no-function", source=few)
