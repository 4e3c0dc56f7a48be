"""Encoders with a decoder as a kind: data, losses and figures against transformers' own, and runs from data to report."""

import json
import wave

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchqat
import transformers
from command import call
from sentences import matches, said
from test_encoder_decoders import BART, T5, WHISPER
from torchqat._library import DistillSection
from torchqat.data.examples import NO_LABEL
from torchqat.data.tasks import load_task
from torchqat.data.written import decoder_inputs_of, sounds_with_texts, texts_with_targets
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
M2M = {key: value for key, value in BART.items() if key != "pad_token_id"} | {"pad_token_id": 1}
MODELS = {
    "T5ForConditionalGeneration": {**T5, "vocab_size": 400, "decoder_start_token_id": 0},
    "BartForConditionalGeneration": {**BART, "vocab_size": 400},
    "MBartForConditionalGeneration": {**BART, "vocab_size": 400},
    "M2M100ForConditionalGeneration": {**M2M, "vocab_size": 400},
    "PegasusForConditionalGeneration": {**BART, "vocab_size": 400},
    "MarianMTModel": {**BART, "vocab_size": 400, "decoder_start_token_id": 1},
    "WhisperForConditionalGeneration": {**WHISPER, "vocab_size": 400},
}


def build(name, folder, tokenizer):
    torch.manual_seed(0)
    kind = getattr(transformers, name)
    model = kind(kind.config_class(**MODELS[name])).eval()
    with torch.no_grad():  # so that logits differ from each other
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if name.startswith("Whisper"):
        extractor = transformers.WhisperFeatureExtractor(feature_size=16, chunk_length=1, hop_length=400)
        extractor.save_pretrained(folder)
    return folder


def write_sound(path, samples=4000, rate=16000, channels=1, width=2):
    found = (np.sin(np.arange(samples * channels) * 0.07) * 20000).astype("<i2").tobytes()
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(found if width == 2 else found[: samples * channels])


@pytest.fixture
def texts(tmp_path):
    lines = [{"source": f"def f_{i}(x)", "target": f"return x + {i % 7}" + " again" * (i % 3)} for i in range(60)]
    return write_lines(tmp_path / "texts.jsonl", lines)


@pytest.fixture
def speech(tmp_path):
    (tmp_path / "sounds").mkdir()
    lines = [{"audio": f"sounds/{i}.wav", "text": f"number {i}"} for i in range(40)]
    for i, line in enumerate(lines):
        write_sound(tmp_path / line["audio"], 4000 + 300 * (i % 5))
    return write_lines(tmp_path / "speech.jsonl", lines)


def write_lines(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def some_batch(name):
    """Rows of unlike lengths."""
    rows = [torch.randint(5, 400, (n,)) for n in (7, 4, 9)]
    labels = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=NO_LABEL)
    if name.startswith("Whisper"):
        return {"input_features": torch.randn(3, 16, 40)}, labels
    ids = torch.randint(5, 400, (3, 6))
    return {"input_ids": ids, "attention_mask": (torch.arange(6) < torch.tensor([[6], [3], [5]])).long()}, labels


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
    assert found.kls == pytest.approx(kls, rel=1e-3) and found.kl == pytest.approx(np.mean(every), rel=1e-3)
    assert found.top1_agreement == np.mean(alike)
    assert found.perplexity == pytest.approx(np.exp(np.dot(losses, [7, 4, 9]) / 20), rel=1e-4)
    assert len(found.kl_by_position) == 9
    loss = kind.loss(DistillSection(), kind.outputs(model, batch), kind.outputs(other, batch), batch)
    assert loss.item() == pytest.approx(np.mean(every), rel=1e-3)


def test_texts_become_tokens_of_both_sides(tmp_path, tokenizer):
    lines = [{"source": "def f", "target": "return 1"}, {"prompt": "argument", "completion": "def g and more of it"}]
    path = write_lines(tmp_path / "two.jsonl", lines)
    found = texts_with_targets(path, tokenizer, 6, None, lambda labels: labels + 1)
    assert [row.tolist() for row in found.inputs] == [tokenizer(text).input_ids[:6] for text in ("def f", "argument")]
    assert [row.tolist() for row in found.labels] == [
        tokenizer(text).input_ids[:6] for text in ("return 1", "def g and more of it")
    ]
    batch = found.batch(torch.arange(2))
    assert list(batch) == ["input_ids", "attention_mask", "decoder_input_ids", "labels"]
    assert torch.equal(batch["decoder_input_ids"], batch["labels"] + 1)
    first = tokenizer("return 1").input_ids[0]
    stripped = texts_with_targets(path, tokenizer, 6, first, lambda labels: labels)
    assert stripped.labels[0].tolist() == tokenizer("return 1").input_ids[1:6]  # the decoder is given it anyway
    for group in found.unpadded(torch.arange(2), 8):
        assert (group["labels"] != NO_LABEL).all() and group["attention_mask"].all()


def test_sounds_are_heard_as_transformers_hears_them(tmp_path, tokenizer, speech):
    from scipy.io import wavfile

    extractor = transformers.WhisperFeatureExtractor(feature_size=16, chunk_length=1, hop_length=400)
    found = sounds_with_texts(speech, tokenizer, extractor, 32, None, lambda labels: labels)
    batch = found.batch(torch.tensor([0, 3]))
    waves = [wavfile.read(tmp_path / f"sounds/{i}.wav")[1].astype(np.float32) / 32768 for i in (0, 3)]
    wanted = extractor(waves, sampling_rate=16000, return_tensors="pt").input_features
    assert torch.equal(batch["input_features"], wanted)
    before = found.everything()["audio"]
    write_sound(tmp_path / "sounds/7.wav", 4001)
    after = found.everything()["audio"]
    assert [row for row in range(40) if not torch.equal(before[row], after[row])] == [7]


def test_data_of_another_form_are_refused(tmp_path, tokenizer):
    def texts(*lines):
        texts_with_targets(write_lines(tmp_path / "bad.jsonl", lines), tokenizer, 8, None, torch.clone)

    def sounds(**made):
        write_sound(tmp_path / "a.wav", **made)
        line = {"audio": "a.wav", "text": "one"}
        extractor = transformers.WhisperFeatureExtractor(feature_size=16, chunk_length=1, hop_length=400)
        sounds_with_texts(write_lines(tmp_path / "s.jsonl", [line]), tokenizer, extractor, 8, None, torch.clone)

    good = {"source": "a", "target": "b"}
    for bad in ({"source": "a"}, {"source": "a", "target": " "}, {"prompt": "a", "target": "b"}, {"text": "a"}):
        with pytest.raises(torchqat.UserError, match=matches("data.line-without-target", line=2)):
            texts(good, bad)
    with pytest.raises(torchqat.UserError, match=matches("data.no-example", path=tmp_path / "bad.jsonl")):
        texts()
    sounds()
    for made in ({"rate": 8000}, {"channels": 2}, {"width": 1}):
        with pytest.raises(torchqat.UserError, match=matches("data.sound-of-another-form", rate=16000)):
            sounds(**made)
    with pytest.raises(torchqat.UserError, match=matches("data.sound-too-long", most=16000, count=16001)):
        sounds(samples=16001)
    with pytest.raises(torchqat.UserError, match=matches("data.sound-empty", path=tmp_path / "a.wav")):
        sounds(samples=0)
    (tmp_path / "a.wav").write_bytes(b"RIFF")
    with pytest.raises(torchqat.UserError, match=matches("data.no-sound", path=tmp_path / "a.wav")):
        extractor = transformers.WhisperFeatureExtractor(feature_size=16, chunk_length=1, hop_length=400)
        sounds_with_texts(tmp_path / "s.jsonl", tokenizer, extractor, 8, None, torch.clone)


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
