"""Output heads that are quantized where the embedding that shares their weight is not, as ``load`` puts them back."""

import copy

import torch
import torchqat
from test_weights import recipe_of
from torch import nn


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(8, 8), nn.Linear(8, 8, bias=False)
        self.head.weight = self.table.weight

    def forward(self, x):
        return self.head(self.table(x))


def test_a_head_that_alone_was_quantized_is_loaded_beside_its_table(tmp_path):
    model, x = torchqat.prepare(Tied(), recipe_of("head", "{dtype: int4, scale: mse}")), torch.arange(8)
    folder = torchqat.export(model, tmp_path / "out", "safetensors")
    loaded = torchqat.load(Tied(), folder)
    assert torch.equal(loaded.table.weight, model.table.weight)
    torch.testing.assert_close(loaded(x), model(x), rtol=0, atol=1e-6)
    packed = torchqat.load(Tied(), folder, packed=True)
    assert torch.equal(packed.table.weight, model.table.weight)


def test_the_head_of_a_language_model_alone_is_loaded(tiny_llama, tmp_path):
    before, ids = copy.deepcopy(tiny_llama), torch.arange(16).view(1, 16)
    model = torchqat.prepare(tiny_llama, recipe_of("lm_head", "{dtype: int4, scale: mse}"))
    loaded = torchqat.load(before, torchqat.export(model, tmp_path / "out", "safetensors"))
    assert torch.equal(loaded(ids).logits, model(ids).logits) and not loaded.config.tie_word_embeddings
