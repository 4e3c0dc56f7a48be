"""Small encoders with a decoder, in folders, and what they are given: batches, sounds, lines of JSON."""

import json
import wave

import numpy as np
import torch
import transformers
from test_encoder_decoders import BART, T5, WHISPER
from torchqat.data.examples import NO_LABEL

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


def write_speech(folder):
    """Forty sounds of unlike lengths and what is said in them; the file of lines."""
    (folder / "sounds").mkdir()
    lines = [{"audio": f"sounds/{i}.wav", "text": f"number {i}"} for i in range(40)]
    for i, line in enumerate(lines):
        write_sound(folder / line["audio"], 4000 + 300 * (i % 5))
    return write_lines(folder / "speech.jsonl", lines)


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
