"""Sentence encoders: a vector for each text, of which near ones mean like things."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from torchqat._library import DistillSection, Recipe
from torchqat.data.batch import Batch, to_device
from torchqat.data.batches import Data, spread_batches
from torchqat.data.corpus import load_corpus
from torchqat.data.examples import paragraphs, tokenized
from torchqat.device import device_of
from torchqat.errors import UserError
from torchqat.kinds.kind import Answers, Kind, check_one_path, found_files
from torchqat.kinds.pairs import length_of
from torchqat.kinds.pooling import MODULES, Vectors, modules_of, vectors_of
from torchqat.model.completeness import Wanted
from torchqat.model.loader import encoder_loader
from torchqat.model.loading import configuration_of, load_pretrained, load_tokenizer, no_note

# Cosines are divided by it before the softmax that says which sentence is nearest: 1 / 20, as sentence-transformers' ranking
# losses do.
_TEMPERATURE = 0.05
# Files of a sentence-transformers folder that say how a text becomes a vector.
_COMPANIONS = (MODULES, "sentence_*_config.json", "config_sentence_transformers.json", "1_Pooling/config.json")


class SentenceEncoder(Kind):
    """A transformer whose last hidden states become one vector a text, as its sentence-transformers folder says.

    Two encoders are compared by the cosine between their vectors, and by which of the other sentences of a batch each finds
    nearest, as probabilities: that is what ``kl`` and ``top1_agreement`` are of.
    """

    name = "sentence_encoder"
    measured_names = ("input_ids", "attention_mask")

    def __init__(self):
        self.vectors = Vectors()

    def load(self, path: str, dtype: str, note: Callable[[str], None] = no_note) -> nn.Module:
        loader = encoder_loader(configuration_of(path, "sentence encoder"))
        # Its vectors are pooled from the last hidden states, here.
        wanted = Wanted(loader, "sentence encoder", leaves_heads=True, pools=False)
        model = load_pretrained(path, dtype, wanted, note)
        said = vectors_of(path)
        if said is None:
            note(f"{path} does not say how its hidden states become a vector: the mean over the tokens is taken.")
        self.vectors = said or Vectors()
        return model

    @property
    def pooling(self) -> str:
        return self.vectors.in_words()

    def load_tokenizer(self, path: str) -> Any:
        return load_tokenizer(path)

    def load_data(self, recipe: Recipe, tokenizer: Any, say: Callable[[str], None] = no_note) -> Data:
        check_one_path(recipe, self.name)
        corpus = load_corpus(recipe.data.train, recipe.data.evaluation_path)
        train = tokenized(tokenizer, paragraphs(corpus.train), recipe.train.sequence_length)
        others = tokenized(tokenizer, paragraphs(corpus.held_out), recipe.data.evaluation.sequence_length)
        if len(others) < 4:
            raise UserError(f"data must have at least 4 sentences to hold out, but has {len(others)}.")
        return Data.of_examples(recipe, train, others)

    def measured(self, source: str, path: str, length: int, tokenizer: Any, samples: int = 0) -> list[Batch]:
        sentences = paragraphs(load_corpus(source, source).held_out)  # all of it
        return spread_batches(tokenized(tokenizer, sentences, length), samples)

    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        return self.vectors(model(**batch).last_hidden_state, batch["attention_mask"])

    def answers(self, outputs: Tensor, batch: Batch) -> Answers:
        count = len(outputs)
        others = ~torch.eye(count, dtype=torch.bool, device=outputs.device)
        cosines = (outputs @ outputs.T)[others].view(count, 1, max(0, count - 1))
        return Answers(cosines / _TEMPERATURE, embeddings=outputs)

    def loss(self, settings: DistillSection, student: Tensor, teacher: Tensor | None, batch: Batch) -> Tensor:
        """1 - cosine to the float model's vector, averaged over texts."""
        return (1.0 - (student * teacher).sum(-1)).mean()

    def examples(self, batch: Batch) -> Batch:
        return batch

    def rank(self, model: nn.Module, tokenizer: Any, query: str, passages: list[str]) -> Tensor:
        """Cosines to the query's vector."""
        first, *others = self.embed(model, tokenizer, [query, *passages])
        return torch.stack(others) @ first

    @torch.no_grad()
    def embed(self, model: nn.Module, tokenizer: Any, texts: list[str]) -> Tensor:
        """Vectors ``[texts, dim]`` of unit length, as users get them."""
        batch = tokenized(tokenizer, texts, length_of(model, tokenizer)).batch(torch.arange(len(texts)))
        return self.outputs(model, to_device(batch, device_of(model))).cpu()

    def companions(self, path: str) -> dict[str, Path]:
        places = [module["path"] for module in modules_of(path)[1:] if module["path"]]
        return super().companions(path) | found_files(path, [*_COMPANIONS, *(f"{place}/*" for place in places)])
