"""Sentence encoders: a vector for each text, of which near ones mean like things."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchqat._library import DistillSection, Recipe
from torchqat.data.batch import Batch, to_device
from torchqat.data.batches import Data
from torchqat.data.corpus import load_corpus
from torchqat.data.examples import paragraphs, tokenized
from torchqat.errors import UserError
from torchqat.files import read_json
from torchqat.kinds.kind import Answers, Kind, found_files
from torchqat.kinds.pairs import length_of
from torchqat.model.completeness import Wanted
from torchqat.model.loading import load_pretrained, load_tokenizer, no_note

# Cosines are divided by it before the softmax that says which sentence is nearest: 1 / 20, as sentence-transformers' ranking
# losses do.
_TEMPERATURE = 0.05
# Its vectors are pooled from the last hidden states, here.
_WANTED = Wanted("AutoModel", "sentence encoder", leaves_heads=True, pools=False)
# Files of a sentence-transformers folder that say how a text becomes a vector.
_COMPANIONS = ("modules.json", "sentence_*_config.json", "config_sentence_transformers.json", "[0-9]_*/*")


class SentenceEncoder(Kind):
    """A transformer whose last hidden states are pooled into one vector a text.

    Two encoders are compared by the cosine between their vectors, and by which of the other sentences of a batch each finds
    nearest, as probabilities: that is what ``kl`` and ``top1_agreement`` are of.
    """

    name = "sentence_encoder"

    def __init__(self):
        self.pooling = "mean"

    def load(self, path: str, dtype: str, note: Callable[[str], None] = no_note) -> nn.Module:
        self.pooling = pooling_of(Path(path))
        return load_pretrained(path, dtype, _WANTED, note)

    def load_tokenizer(self, path: str) -> Any:
        return load_tokenizer(path)

    def load_data(self, recipe: Recipe, tokenizer: Any) -> Data:
        corpus = load_corpus(recipe.data.train, recipe.data.evaluation_path)
        train = tokenized(tokenizer, paragraphs(corpus.train), recipe.train.sequence_length)
        others = tokenized(tokenizer, paragraphs(corpus.held_out), recipe.data.evaluation.sequence_length)
        if len(others) < 4:
            raise UserError(f"data must have at least 4 sentences to hold out, but has {len(others)}.")
        return Data.of_examples(recipe, train, others)

    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        hidden = model(**batch).last_hidden_state
        if self.pooling == "cls":
            return F.normalize(hidden[:, 0].float(), dim=-1)
        mask = batch["attention_mask"].unsqueeze(-1).float()
        return F.normalize((hidden.float() * mask).sum(1) / mask.sum(1).clamp(min=1.0), dim=-1)

    def answers(self, outputs: Tensor, batch: Batch) -> Answers:
        count = len(outputs)
        others = ~torch.eye(count, dtype=torch.bool, device=outputs.device)
        cosines = (outputs @ outputs.T)[others].view(count, 1, max(0, count - 1))
        return Answers(F.log_softmax(cosines / _TEMPERATURE, -1), embeddings=outputs)

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
        return self.outputs(model, to_device(batch, next(model.parameters()).device)).cpu()

    def companions(self, path: str) -> dict[str, Path]:
        return super().companions(path) | found_files(path, _COMPANIONS)


def pooling_of(folder: Path) -> str:
    """``mean`` or ``cls``, as the sentence-transformers folder says; ``mean`` where it says nothing.

    Raises:
        UserError: It pools in another way.
    """
    path = folder / "1_Pooling" / "config.json"
    if not path.is_file():
        return "mean"
    modes = [
        key
        for key, value in read_json(path, "How an encoder pools").items()
        if key.startswith("pooling_mode_") and value
    ]
    known = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}
    if len(modes) != 1 or modes[0] not in known:
        raise UserError(f"{path} must ask for one of {', '.join(known)}, but asks for {json.dumps(modes)}.")
    return known[modes[0]]
