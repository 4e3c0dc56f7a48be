"""Pairs of texts, and sounds with theirs, as encoders with a decoder take them; data of another form are refused."""

import numpy as np
import pytest
import torch
import torchqat
import transformers
from sentences import matches
from seq2seq_models import write_lines, write_sound, write_speech
from torchqat.data.examples import NO_LABEL
from torchqat.data.written import sounds_with_texts, texts_with_targets


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


def test_sounds_are_heard_as_transformers_hears_them(tmp_path, tokenizer):
    from scipy.io import wavfile

    extractor = transformers.WhisperFeatureExtractor(feature_size=16, chunk_length=1, hop_length=400)
    path = write_speech(tmp_path)
    found = sounds_with_texts(path, tokenizer, extractor, 32, None, lambda labels: labels)
    batch = found.batch(torch.tensor([0, 3]))
    waves = [wavfile.read(tmp_path / f"sounds/{i}.wav")[1].astype(np.float32) / 32768 for i in (0, 3)]
    wanted = extractor(waves, sampling_rate=16000, return_tensors="pt").input_features
    assert torch.equal(batch["input_features"], wanted)
    before = found.everything()["audio"]
    write_sound(tmp_path / "sounds/7.wav", 4001)
    after = sounds_with_texts(path, tokenizer, extractor, 32, None, lambda labels: labels).everything()["audio"]
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
