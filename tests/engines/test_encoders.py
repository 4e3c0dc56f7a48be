"""Encoders of texts in llama.cpp: its vectors of texts are ours, from the text on."""

import json
import os
import subprocess

import numpy as np
import pytest
import torch
import torchqat
import transformers
from engine_models import needs
from torchqat.checkpoints.formats.gguf import write_gguf
from torchqat.kinds.pooling import Vectors
from word_pieces import TEXTS, word_pieces

PROGRAM = """
import json, sys
from llama_cpp import Llama
model = Llama(sys.argv[1], embedding=True, verbose=False, n_ctx=64, n_threads=1)
texts = json.loads(sys.argv[2])
tokens = [model.tokenize(text.encode(), special=False) for text in texts]
print(json.dumps({"vectors": [model.embed(text, normalize=True) for text in texts], "tokens": tokens}))
"""
WAYS = {"mean": "mean_tokens", "cls": "cls_token", "last": "lasttoken"}


@pytest.fixture(autouse=True)
def engine():
    needs("llama.cpp")


def bert():
    torch.manual_seed(0)
    config = transformers.BertConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4, vocab_size=64,
        max_position_embeddings=64, initializer_range=0.3,
    )  # fmt: skip
    return transformers.BertModel(config, add_pooling_layer=False).eval()


def asked(file):
    command = [os.environ["TORCHQAT_LLAMA_CPP"], "-c", PROGRAM, str(file), json.dumps(TEXTS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    return np.array(found["vectors"]), found["tokens"]


@torch.no_grad()
def ours(model, tokenizer, pooling):
    batch = tokenizer(list(TEXTS), return_tensors="pt", padding=True)
    hidden = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
    return Vectors((WAYS[pooling],))(hidden, batch["attention_mask"]).numpy()


@pytest.mark.parametrize("pooling", WAYS)
def test_vectors_are_ours(pooling, tmp_path):
    model, tokenizer = bert(), word_pieces()
    write_gguf(model, [], None, tmp_path / "model.gguf", tokenizer, pooling=pooling)
    vectors, tokens = asked(tmp_path / "model.gguf")
    expected = ours(model, tokenizer, pooling)
    assert tokens == [tokenizer(text).input_ids for text in TEXTS]
    assert (expected @ expected.T)[~np.eye(len(TEXTS), dtype=bool)].max() < 0.99, "texts must differ"
    assert ((vectors * expected).sum(-1) > 0.9999).all()


@pytest.mark.parametrize("lowercase, strips", ((True, False), (False, None), (False, True)))
def test_letters_and_accents_are_kept_as_the_tokenizer_keeps_them(lowercase, strips, tmp_path):
    tokenizer = word_pieces(lowercase, strips)
    write_gguf(bert(), [], None, tmp_path / "model.gguf", tokenizer, pooling="mean")
    _, tokens = asked(tmp_path / "model.gguf")
    assert tokens == [tokenizer(text).input_ids for text in TEXTS]


@pytest.mark.parametrize("weight, bound", (("q8_0", 0.999), ("q4_0", 0.999)))
def test_quantized_vectors_are_ours(weight, bound, tmp_path):
    """Inputs are rounded to 8 bits there."""
    rule = f"version: 1\nlayers: [{{match: blocks, weight: {{dtype: {weight}}}}}]\n"
    model, tokenizer = torchqat.prepare(bert(), torchqat.parse_recipe(rule)), word_pieces()
    folder = torchqat.export(model, tmp_path / "out", "gguf", tokenizer, pooling="mean")
    vectors, _ = asked(folder / "model.gguf")
    assert ((vectors * ours(model, tokenizer, "mean")).sum(-1) > bound).all()
