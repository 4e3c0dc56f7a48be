"""Models that are no language models, by the same recipes: classifiers and sentence encoders, from data to report."""

import json
import sys

import pytest
import torch
import torch.nn.functional as F
import torchqat
import transformers
from command import call
from conftest import TEXT
from torch import nn
from torchqat import decide as deciding
from torchqat._library import DistillSection
from torchqat.batches import chunks, digest, rows_of, size_of
from torchqat.examples import ExampleBatches, Examples, paragraphs
from torchqat.kinds import KINDS, find_kind

_BERT = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 400,
    "max_position_embeddings": 64,
}  # fmt: skip


@pytest.fixture
def encoder_folder(tmp_path, tokenizer):
    """A sentence-transformers folder with a tiny BERT."""
    folder = tmp_path / "encoder"
    transformers.BertModel(transformers.BertConfig(**_BERT), add_pooling_layer=False).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "modules.json").write_text("[]")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(
        '{"pooling_mode_mean_tokens": true, "pooling_mode_cls_token": false}'
    )
    return folder


@pytest.fixture
def classifier_folder(tmp_path, tokenizer):
    folder = tmp_path / "classifier"
    config = transformers.BertConfig(**_BERT, num_labels=3)
    transformers.BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


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


SETTINGS = """data: {calibration: {samples: 8, sequence_length: 32}, evaluation: {samples: 16, sequence_length: 32}}
train: {steps: 4, batch_size: 4, sequence_length: 32, checkpoint_every: 2, validate_every: 2}
"""
LAYERS = """version: 1
layers:
  - match: "*encoder.layer.*"
    weight: {dtype: int4, group_size: 32, grid: full, scale: learned}
"""


def run(capsys, tmp_path, text, *arguments, command="run"):
    (tmp_path / "recipe.yaml").write_text(text)
    code, out, err = call(capsys, command, tmp_path / "recipe.yaml", "--output", tmp_path / "run", *arguments)
    assert code == 0, err
    return json.loads((tmp_path / "run" / "report.json").read_text()), out + err


# -- batches ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8])
def test_every_kind_of_batch_is_cut_as_torch_cuts(count):
    rows = torch.arange(10)
    expected = [c.tolist() for c in rows.chunk(count)]
    assert [c.tolist() for c in chunks(rows, count)] == expected
    assert [c[0].tolist() for c in chunks((rows, rows * 2), count)] == expected
    assert [c["b"].tolist() for c in chunks({"a": rows, "b": rows}, count)] == expected


def test_a_digest_tells_batches_apart():
    batch = {"input_ids": torch.arange(6).view(2, 3), "labels": torch.tensor([0, 1])}
    assert digest(batch) == digest(dict(reversed(batch.items())))
    assert digest(batch) != digest({**batch, "labels": torch.tensor([0, 2])})
    assert size_of(rows_of(batch, 0, 1)) == 1


def test_token_ids_are_padded_and_masked():
    examples = Examples([torch.tensor([5, 6, 7]), torch.tensor([8])], torch.tensor([1, 0]), padding=9)
    batch = examples.batch(torch.tensor([1, 0]))
    assert batch["input_ids"].tolist() == [[8, 9, 9], [5, 6, 7]]
    assert batch["attention_mask"].tolist() == [[1, 0, 0], [1, 1, 1]] and batch["labels"].tolist() == [0, 1]
    assert [b["input_ids"].tolist() for b in examples.unpadded(torch.arange(2), 8)] == [[[8]], [[5, 6, 7]]]


def test_training_batches_are_a_function_of_seed_and_step():
    examples = Examples(torch.arange(40.0).view(20, 2), torch.arange(20))
    first, again, other = (ExampleBatches(examples, 6, seed) for seed in (0, 0, 1))
    assert torch.equal(first[3][1], again[3][1]) and not torch.equal(first[3][1], other[3][1])
    assert not torch.equal(first[3][1], first[4][1]) and len(set(first[3][1].tolist())) == 6


def test_paragraphs_are_taken_once():
    assert paragraphs(["one\n\ntwo\n", "two\n \nthree"]) == ["one", "two", "three"]


# -- what kinds say ---------------------------------------------------------------------------------------------------


def test_a_classifier_is_measured_on_its_classes():
    torch.manual_seed(0)
    model, other = nn.Linear(8, 3), nn.Linear(8, 3)
    x, y = torch.randn(50, 8), torch.randint(3, (50,))
    found = torchqat.evaluate(model, [(x[:30], y[:30]), (x[30:], y[30:])], other, kind="classifier")
    p, q = other(x).double().softmax(-1), model(x).double().log_softmax(-1)
    assert found.perplexity == pytest.approx(F.cross_entropy(model(x), y).exp().item(), rel=1e-5)
    assert found.kl == pytest.approx((p * (p.log() - q)).sum(-1).mean().item(), rel=1e-4)
    assert found.top1_agreement == (model(x).argmax(-1) == other(x).argmax(-1)).double().mean().item()
    assert found.tokens == 50 and len(found.kls) == 50


def test_an_encoder_is_measured_on_cosines_and_the_nearest(encoder_folder):
    kind = find_kind("sentence_encoder")
    model = kind.load(str(encoder_folder), "float32")
    other = transformers.BertModel(transformers.BertConfig(**_BERT), add_pooling_layer=False).eval()
    examples = Examples([torch.randint(400, (n,)) for n in (5, 9, 3, 7, 6)])
    batch = examples.batch(torch.arange(5))
    found = torchqat.evaluate(model, [batch], other, kind="sentence_encoder")

    def vectors(m):
        rows = [m(input_ids=ids[None]).last_hidden_state[0].double().mean(0) for ids in examples.inputs]
        return F.normalize(torch.stack(rows), dim=-1)

    ours, theirs = vectors(model), vectors(other)
    assert found.cosine == pytest.approx((ours * theirs).sum(-1).mean().item(), abs=1e-5)
    kls = []
    for i in range(5):
        others = [j for j in range(5) if j != i]
        p, q = ((theirs[i] @ theirs[others].T) / 0.05).softmax(-1), ((ours[i] @ ours[others].T) / 0.05).log_softmax(-1)
        kls.append((p * (p.log() - q)).sum().item())
    assert found.kl == pytest.approx(sum(kls) / 5, rel=1e-2, abs=1e-5)
    assert found.perplexity is None and found.kls == pytest.approx(kls, rel=1e-2, abs=1e-5)


def test_the_first_token_is_taken_where_the_folder_says_so(encoder_folder):
    (encoder_folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    kind = find_kind("sentence_encoder")
    model = kind.load(str(encoder_folder), "float32")
    batch = Examples([torch.randint(400, (6,)), torch.randint(400, (4,))]).batch(torch.arange(2))
    expected = F.normalize(model(**batch).last_hidden_state[:, 0], dim=-1)
    torch.testing.assert_close(kind.outputs(model, batch), expected)
    (encoder_folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_max_tokens": true}')
    with pytest.raises(
        torchqat.UserError, match='must ask for one of .*, but asks for \\["pooling_mode_max_tokens"\\]'
    ):
        find_kind("sentence_encoder").load(str(encoder_folder), "float32")


def test_losses_are_those_of_the_recipe():
    settings, kind = DistillSection(), find_kind("classifier")
    student, teacher, labels = torch.randn(5, 3), torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 1])
    batch = (torch.zeros(5, 2), labels)
    kl = (teacher.softmax(-1) * (teacher.log_softmax(-1) - student.log_softmax(-1))).sum(-1).mean()
    torch.testing.assert_close(kind.loss(settings, student, teacher, batch), kl)
    settings.weight = 0.25
    mixed = 0.25 * kl + 0.75 * F.cross_entropy(student, labels)
    torch.testing.assert_close(kind.loss(settings, student, teacher, batch), mixed)
    settings.loss = "cross_entropy"
    torch.testing.assert_close(kind.loss(settings, student, None, batch), F.cross_entropy(student, labels))
    a, b = F.normalize(torch.randn(5, 8), dim=-1), F.normalize(torch.randn(5, 8), dim=-1)
    cosine = find_kind("sentence_encoder").loss(settings, a, b, {})
    torch.testing.assert_close(cosine, 1 - F.cosine_similarity(a, b).mean())


def test_a_student_has_no_dropout_while_it_learns_from_the_float_model(classifier_folder):
    from torchqat.training import remove_dropout

    model = transformers.AutoModelForSequenceClassification.from_pretrained(classifier_folder)
    llama = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=50,
            attention_dropout=0.3,
        )
    )  # fmt: skip
    for net in (model, llama):
        remove_dropout(net)
        net.train()
        ids = torch.randint(50, (4, 16))
        assert torch.equal(net(input_ids=ids).logits, net(input_ids=ids).logits)


# -- runs -------------------------------------------------------------------------------------------------------------


def test_a_text_classifier_from_data_to_export(capsys, tmp_path, classifier_folder, labelled):
    text = (
        LAYERS + SETTINGS + "model: {kind: classifier}\nevaluate: {accept: {task_drop: 0.5, perplexity_ratio: 2.0}}\n"
    )
    report, out = run(capsys, tmp_path, text, "--model", classifier_folder, "--data", labelled)
    (variant,) = report["variants"]
    assert variant["name"] == "int4-qat" and report["accepted"] is True
    assert len(report["baseline"]["task_scores"]) == 3  # of 6 held out, every second
    assert "in transformers outputs differ by at most" in out and "12 layers equal bit for bit" in out
    served = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "run" / "exports" / "compressed-tensors",
        quantization_config=transformers.CompressedTensorsConfig(dequantize=True),
    )
    assert served.config.num_labels == 3
    code, out, err = call(capsys, "verify", tmp_path / "run" / "exports" / "compressed-tensors")
    assert code == 0 and "12 layers equal" in out, err


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
    from torchqat.restore import exported_model

    text = LAYERS + SETTINGS + "model: {kind: sentence_encoder}\nexport: [onnx]\n"
    run(capsys, tmp_path, text, "--model", encoder_folder, "--data", sentences)
    folder = tmp_path / "run" / "exports" / "onnx"
    job, model = exported_model(folder)
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
    monkeypatch.setattr(deciding, "runs_float8", lambda: True)
    rest = "mode: auto\nmodel: {kind: classifier}\nevaluate: {accept: {kl: 100.0}}\nsize: {bits_per_weight: 8.9}\n"
    report, _ = run(capsys, tmp_path, LAYERS + SETTINGS + rest, "--model", classifier_folder, "--data", labelled)
    assert [variant["name"] for variant in report["variants"]] == ["int8", "fp8"] and report["chosen"] == "fp8"
    config = json.loads((tmp_path / "run" / "exports" / "compressed-tensors" / "config.json").read_text())
    group = config["quantization_config"]["config_groups"]["group_0"]
    assert group["weights"]["type"] == "float" and group["input_activations"]["dynamic"] is True
    assert not torch.cuda.is_available() or torch.cuda.get_device_capability() >= (8, 9) or not deciding.runs_float8()


def test_the_control_of_a_classifier(capsys, tmp_path, classifier_folder, labelled):
    text = (
        LAYERS
        + SETTINGS.replace("validate_every: 2", "validate_every: 2, control: true")
        + "model: {kind: classifier}\n"
    )
    report, _ = run(capsys, tmp_path, text, "--model", classifier_folder, "--data", labelled)
    assert [variant["name"] for variant in report["variants"]] == ["float-control", "int4-qat"]


# -- what cannot be ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: {kind: detector}", "model.kind must be causal_lm, classifier or sentence_encoder, but is detector"),
        ("model: {kind: classifier, scratch: {}}", "model.scratch must not be given unless kind is causal_lm"),
        ("model: {kind: sentence_encoder}\ndistill: {loss: forward_kl}", "distill.loss must be cosine, but is forward_kl"),
        ("distill: {loss: cosine}", "distill.loss must be forward_kl or cross_entropy, but is cosine"),
        ("evaluate: {accept: {cosine: 0.9}}", "cosine must not be given unless model.kind is sentence_encoder"),
        ("model: {kind: sentence_encoder}\nevaluate: {accept: {perplexity_ratio: 1}}", "perplexity_ratio must not be given"),
        ("model: {kind: sentence_encoder}\ntrain: {control: true}", "train.control must be false for a sentence_encoder"),
        ("model: {kind: classifier}\nkv_cache: {dtype: int8}", "kv_cache must not be given unless model.kind is causal_lm"),
        ("train: {lora: {rank: 4}}", "train.lora must not be given unless parameters is lora"),
        ("train: {parameters: lora, oscillation: {method: freeze}}", "oscillation must have method none unless parameters"),
        (
            "mode: auto\nmodel: {kind: classifier}\nevaluate: {accept: {kl: 1}}\nengine: vllm",
            "engine must be transformers or onnxruntime",
        ),
    ],
)  # fmt: skip
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
    assert "bad.jsonl:2: a line must be" in refusal(
        text, "--model", classifier_folder, "--data", tmp_path / "bad.jsonl"
    )
    (tmp_path / "few.jsonl").write_text('{"text": "a", "label": 0}\n' * 5)
    assert "at least 20 examples" in refusal(text, "--model", classifier_folder, "--data", tmp_path / "few.jsonl")
    vision = VISION + "evaluate: {accept: {kl: 1.0}}\nexport: [onnx]\n"
    assert "mine:bad gave [(3,), (4,)]" in refusal(vision.replace("mine:data", "mine:bad"))
    assert "mine:none" in refusal(vision.replace("mine:model", "mine:none"))
    assert "returns a torch.nn.Module" in refusal(vision.replace("mine:model", "mine:data"))
    assert "must be a function of the form module:function" in refusal(vision, "--data", tmp_path / "few.jsonl")


def test_kinds_are_found_by_name():
    assert list(KINDS) == ["causal_lm", "classifier", "sentence_encoder"]
    with pytest.raises(ValueError, match="kind must be causal_lm, classifier, sentence_encoder, but is x"):
        find_kind("x")
