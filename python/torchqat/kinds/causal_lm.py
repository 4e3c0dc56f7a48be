"""Causal language models: each token is predicted from those before it."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from torchqat._library import DistillSection, Recipe
from torchqat.data.batch import Batch
from torchqat.data.batches import Data, load_data
from torchqat.data.corpus import load_corpus
from torchqat.kinds.images import image_example
from torchqat.kinds.kind import Answers, Kind, distilled
from torchqat.kinds.losses import cross_entropy
from torchqat.model.completeness import CAUSAL_LM
from torchqat.model.loading import check_loads, load_model, load_tokenizer, no_note
from torchqat.model.outline import skeleton
from torchqat.model.source import is_gguf


class CausalLM(Kind):
    """``model(input_ids=...).logits``; batches are int64 ``[rows, tokens]``.

    A model that also reads images or sounds is loaded whole, and trained and calibrated on text.
    """

    name = "causal_lm"
    writes_text = True
    outlines = True

    def load(self, path: str, dtype: str, note: Callable[[str], None] = no_note) -> nn.Module:
        return load_model(path, dtype, note)

    def outline(self, path: str, dtype: str, note: Callable[[str], None] = no_note) -> nn.Module:
        if is_gguf(path):
            return super().outline(path, dtype, note)
        model = skeleton(path, dtype)
        check_loads(path, CAUSAL_LM, note)
        model.tie_weights()
        return model

    def load_tokenizer(self, path: str) -> Any:
        return load_tokenizer(path)

    def load_data(self, recipe: Recipe, tokenizer: Any) -> Data:
        return load_data(recipe, load_corpus(recipe.data.train, recipe.data.evaluation_path), tokenizer)

    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        return model(input_ids=batch, use_cache=False).logits

    def answers(self, outputs: Tensor, batch: Batch) -> Answers:
        return Answers(outputs[:, :-1], batch[:, 1:])

    def loss(self, settings: DistillSection, student: Tensor, teacher: Tensor | None, batch: Batch) -> Tensor:
        return distilled(settings, student, teacher, lambda: cross_entropy(student, batch))

    def examples(self, batch: Batch) -> Tensor:
        return batch

    def with_image(self, path: str, model: nn.Module, note: Callable[[str], None] = no_note) -> Batch | None:
        return image_example(path, model, note)
