"""Encoders with a decoder as a kind: losses and figures against transformers' own, and runs from data to report."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchqat
import transformers
from command import call
from sentences import matches, said
from seq2seq_models import MODELS, build, some_batch, write_lines, write_speech
from test_encoder_decoders import WHISPER
from torchqat._library import DistillSection
from torchqat.data.examples import NO_LABEL
from torchqat.data.tasks import load_task
from torchqat.data.written import decoder_inputs_of
from torchqat.kinds import find_kind

LAYERS = """version: 1
model: {kind: seq2seq}
layers:
  - match: blocks
    weight: {dtype: int4, group_size: 32, grid: full, scale: learned}
initialize: {method: gptq}
data: {calibration: {samples: 8, sequence_length: 32}, evaluation: {samples: 8, sequence_length: 32}}
"""
TRAIN = "train: {steps: 4, batch_size: 4, sequence_length: 32, checkpoint_every: 2, validate_every: 2}\n"


@pytest.fixture
def texts(tmp_path):
    lines = [{"source": f"def f_{i}(x)", "target": f"return x + {i % 7}" + " again" * (i % 3)} for i in range(60)]
    return write_lines(tmp_path / "texts.jsonl", lines)


@pytest.fixture
def speech(tmp_path):
    return write_speech(tmp_path)


@pytest.mark.parametrize("name", MODELS)
def test_decoders_are_given_and_taught_what_transformers_itself_would(name, tmp_path, tokenizer):
    kind = find_kind("seq2seq")
    model = kind.load(str(build(name, tmp_path / "model", tokenizer)), "float32")
    assert type(model).__name__ == name
    inputs, labels = some_batch(name)
    batch = {**inputs, "decoder_input_ids": decoder_inputs_of(model)(labels), "labels": labels}
    settings = DistillSection()
    settings.loss = "cross_entropy"
    theirs = model(**inputs, labels=labels)
    found = kind.loss(settings, kind.outputs(model, batch), None, batch)
    torch.testing.assert_close(found, theirs.loss)
    torch.testing.assert_close(kind.outputs(model, batch), theirs.logits)


def test_padding_counts_in_no_loss_and_no_figure(tmp_path, tokenizer):
    kind = find_kind("seq2seq")
    model = kind.load(str(build("T5ForConditionalGeneration", tmp_path / "model", tokenizer)), "float32")
    torch.manual_seed(1)
    other = transformers.T5ForConditionalGeneration(model.config).eval()
    inputs, labels = some_batch("T5")
    batch = {**inputs, "decoder_input_ids": decoder_inputs_of(model)(labels), "labels": labels}
    found = torchqat.evaluate(model, [batch], other, kind="seq2seq")
    losses, kls, alike, every = [], [], [], []
    for row in range(3):  # one at a time, without padding
        n, m = int((labels[row] != NO_LABEL).sum()), int(inputs["attention_mask"][row].sum())
        one = {"input_ids": inputs["input_ids"][row : row + 1, :m], "labels": labels[row : row + 1, :n]}
        q, p = (net(**one).logits[0].double().log_softmax(-1) for net in (model, other))
        kl = (p.exp() * (p - q)).sum(-1)
        losses.append(F.nll_loss(q, one["labels"][0]).item())
        kls.append(kl.mean().item())
        every += kl.tolist()
        alike += (p.argmax(-1) == q.argmax(-1)).tolist()
    assert found.tokens == 20 and found.losses == pytest.approx(losses, rel=1e-4)
    assert found.kls == pytest.approx(kls, rel=1e-5) and found.kl == pytest.approx(np.mean(every), rel=1e-5)
    assert found.top1_agreement == np.mean(alike)
    assert found.perplexity == pytest.approx(np.exp(np.dot(losses, [7, 4, 9]) / 20), rel=1e-4)
    assert len(found.kl_by_position) == 9
    loss = kind.loss(DistillSection(), kind.outputs(model, batch), kind.outputs(other, batch), batch)
    assert loss.item() == pytest.approx(np.mean(every), rel=1e-5)


def follow(capsys, tmp_path, text, model, data, command="run"):
    (tmp_path / "recipe.yaml").write_text(text)
    places = ["--model", model, "--data", data, "--output", tmp_path / "run"]
    code, out, err = call(capsys, command, tmp_path / "recipe.yaml", *places)
    report = tmp_path / "run" / "report.json"
    return code, json.loads(report.read_text()) if report.is_file() else None, out + err


# Layers of both towers, and what stands beside tokenizer and weights in a folder.
RUNS = {
    "T5ForConditionalGeneration": ("texts", 32, ["generation_config.json"]),
    "WhisperForConditionalGeneration": ("speech", 32, ["generation_config.json", "preprocessor_config.json"]),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_from_data_to_a_checkpoint_that_transformers_loads(name, capsys, tmp_path, tokenizer, request):
    data, layers, beside = RUNS[name]
    folder, data = build(name, tmp_path / "model", tokenizer), request.getfixturevalue(data)
    text = LAYERS + TRAIN + "evaluate: {compare: [int4], accept: {perplexity_ratio: 2.0}}\n"
    code, report, out = follow(capsys, tmp_path, text, folder, data)
    assert code == 0, out
    assert [variant["name"] for variant in report["variants"]] == ["int4-naive", "int4-gptq", "int4-qat"]
    assert report["accepted"] is True and report["baseline"]["perplexity"] > 1
    assert said(out, "verify.equal", layers=layers) and said(out, "verify.outputs", engine="transformers")
    exported = tmp_path / "run" / "exports" / "compressed-tensors"
    assert all((exported / file).is_file() for file in (*beside, "tokenizer.json"))
    loader = transformers.AutoModelForSpeechSeq2Seq if "Whisper" in name else transformers.AutoModelForSeq2SeqLM
    settings = transformers.CompressedTensorsConfig(dequantize=True)
    served = loader.from_pretrained(exported, quantization_config=settings).eval()
    inputs, _ = some_batch(name)
    assert type(served).__name__ == name and served.generate(**inputs, max_new_tokens=4).shape[0] == 3
    code, out, err = call(capsys, "verify", exported)
    assert code == 0 and said(out, "verify.equal", layers=layers), err


def test_cross_attention_is_calibrated_on_what_the_encoder_gives(tmp_path, tokenizer):
    kind = find_kind("seq2seq")
    model = kind.load(str(build("T5ForConditionalGeneration", tmp_path / "model", tokenizer)), "float32")
    model = torchqat.prepare(model, torchqat.parse_recipe(LAYERS, "recipe"))
    batches = []
    for _ in range(4):
        labels = torch.randint(5, 400, (8, 5))
        ids = torch.randint(5, 400, (8, 9))
        batches.append({"input_ids": ids, "decoder_input_ids": decoder_inputs_of(model)(labels), "labels": labels})
    found = torchqat.calibrate(model, batches, kind.outputs)
    cross = {name: count for name, count in found.tokens.items() if ".EncDecAttention." in name}
    assert len(cross) == 8 and found.warnings == []
    for name, count in cross.items():
        assert count == 4 * 8 * (9 if name.endswith((".k", ".v")) else 5), name


def test_a_task_is_read_by_the_encoder_and_written_by_the_decoder(tmp_path, tokenizer):
    kind = find_kind("seq2seq")
    model = kind.load(str(build("T5ForConditionalGeneration", tmp_path / "model", tokenizer)), "float32")
    ids = tokenizer("def f", return_tensors="pt").input_ids
    written = model.generate(ids, max_new_tokens=1, eos_token_id=None)[0, 1:]
    text = tokenizer.decode(written)
    if tokenizer(text).input_ids != written.tolist():
        pytest.skip("the token is none that its own text has")
    lines = [
        {"prompt": "def f", "expected": text},
        {"prompt": "def f", "expected": text + " argument"},
        {"prompt": "def f", "choices": ["argument", "returns it"], "answer": 1},
    ]
    task = load_task(str(write_lines(tmp_path / "task.jsonl", lines)))
    likelihoods = []
    for choice in lines[2]["choices"]:
        labels = tokenizer(choice, return_tensors="pt").input_ids
        likelihoods.append(-model(input_ids=ids, labels=labels).loss.item() * labels.numel() / len(choice))
    assert task.scores(model, tokenizer) == [1.0, 0.0, float(likelihoods[1] > likelihoods[0])]
    whisper = transformers.WhisperForConditionalGeneration(transformers.WhisperConfig(**WHISPER))
    with pytest.raises(torchqat.UserError, match=matches("tasks.prompt-of-hearer")):
        task.scores(whisper, tokenizer)


@pytest.mark.parametrize(
    "rest", ["data: {packing: true}", "data: {loss_on: all}", "data: {sources}", "export: [onnx]", "folder"]
)
def test_what_has_no_meaning_for_them_is_refused(rest, capsys, tmp_path, tokenizer, texts):
    folder = build("T5ForConditionalGeneration", tmp_path / "model", tokenizer)
    text, data = LAYERS + TRAIN, texts
    if rest == "data: {sources}":
        recipe = torchqat.parse_recipe(text.replace("data: {", f"data: {{train: [{{path: {texts}}}], "), "recipe")
        recipe.model.path = str(folder)
        with pytest.raises(torchqat.UserError, match=matches("data.one-path", kind="seq2seq")):
            find_kind("seq2seq").load_data(recipe, tokenizer)
        return
    if rest.startswith("data"):
        text = text.replace("data: {", rest[:-1] + ", ")
    elif rest == "folder":
        data = tmp_path
    else:
        text += rest + "\n"
    code, _, err = follow(capsys, tmp_path, text, folder, data)
    assert code == 2 and not (tmp_path / "run").exists()
    assert {
        "data: {packing: true}": lambda: said(err, "data.of-conversations", key="packing", kind="seq2seq"),
        "data: {loss_on: all}": lambda: said(err, "data.of-conversations", key="loss_on", kind="seq2seq"),
        "export: [onnx]": lambda: said(err, "export.onnx-of-encoder-decoder"),
        "folder": lambda: said(err, "data.no-jsonl", source=tmp_path),
    }[rest](), err


def test_models_of_other_kinds_are_refused(capsys, tmp_path, tokenizer, model_folder, texts):
    code, _, err = follow(capsys, tmp_path, LAYERS + TRAIN, model_folder, texts)
    assert code == 2 and said(err, "model.no-seq2seq", path=model_folder, name="LlamaForCausalLM"), err
    towers = {"encoder": transformers.ViTConfig(), "decoder": transformers.GPT2Config()}
    transformers.VisionEncoderDecoderConfig(**{k: v.to_dict() for k, v in towers.items()}).save_pretrained(tmp_path)
    with pytest.raises(torchqat.UserError, match=matches("model.encoder-decoder-of-others", path=tmp_path)):
        find_kind("causal_lm").load(str(tmp_path), "float32")
