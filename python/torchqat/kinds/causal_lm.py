"""Causal language models: each token is predicted from those before it."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from torchqat._library import DistillSection, Recipe
from torchqat.data.batch import Batch
from torchqat.data.batches import Data
from torchqat.data.examples import NO_LABEL
from torchqat.data.language import load_data
from torchqat.kinds.counted import counted_loss
from torchqat.kinds.images import image_example
from torchqat.kinds.kind import Answers, Kind, Teacher, distilled
from torchqat.kinds.losses import cross_entropy
from torchqat.kinds.packed_rows import check_packs
from torchqat.layers.padding import text_of
from torchqat.model.completeness import CAUSAL_LM
from torchqat.model.loading import check_loads, load_model, load_tokenizer, no_note
from torchqat.model.outline import skeleton
from torchqat.model.source import is_gguf

_NO_ARGUMENTS = ("labels", "text", "predictions")


class CausalLM(Kind):
    """``model(input_ids=...).logits``; batches are int64 ``[rows, tokens]``, or such by name, with ``labels``.

    Labels are the tokens themselves, or -100 for those that are not to be predicted; the rest are arguments of the model.
    What else conversations.py puts into a batch is not.

    A model that also reads images or sounds is loaded whole, and trained and calibrated on text.
    """

    name = "causal_lm"
    writes_text = True
    outlines = True
    measured_names = ("input_ids", "labels")
    measured_places = ("input_ids",)

    def load(self, path: str, dtype: str, note: Callable[[str], None] = no_note) -> nn.Module:
        return load_model(path, dtype, note)

    def outline(self, path: str, dtype: str, note: Callable[[str], None] = no_note) -> nn.Module:
        if is_gguf(path):
            return super().outline(path, dtype, note)
        model = skeleton(path, dtype)
        check_loads(path, CAUSAL_LM, note, dtype)
        model.tie_weights()
        return model

    def load_tokenizer(self, path: str) -> Any:
        return load_tokenizer(path)

    def load_data(self, recipe: Recipe, tokenizer: Any, say: Callable[[str], None] = no_note) -> Data:
        return load_data(recipe, tokenizer, say)

    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        if isinstance(batch, Tensor):
            return model(input_ids=batch, use_cache=False).logits
        with text_of(batch.get("text")):  # of packed rows, where no attention_mask may say it
            return model(**self.examples(batch), use_cache=False).logits

    def answers(self, outputs: Tensor, batch: Batch) -> Answers:
        if isinstance(batch, Tensor):
            return Answers(outputs[:, :-1], batch[:, 1:])
        labels = batch["labels"][:, 1:]
        return Answers(outputs[:, :-1], labels.clamp(min=0), counted=labels != NO_LABEL)

    def loss(self, settings: DistillSection, student: Tensor, teacher: Teacher | None, batch: Batch) -> Tensor:
        if isinstance(batch, Tensor):
            return distilled(settings, student, teacher, lambda: cross_entropy(student, batch))
        return counted_loss(settings, student, teacher, batch)

    def examples(self, batch: Batch) -> Batch:
        if isinstance(batch, Tensor):
            return batch
        return {name: tensor for name, tensor in batch.items() if name not in _NO_ARGUMENTS}

    def prompts(self, batch: Batch) -> Tensor:
        if isinstance(batch, Tensor):
            return batch[:4, :64]
        shortest = int(batch["attention_mask"][:4].sum(1).min())
        return batch["input_ids"][:4, : min(64, shortest)]

    def check(self, recipe: Recipe, model: nn.Module) -> None:
        if recipe.data.packing and recipe.train.steps:
            check_packs(model, self)

    def with_image(self, path: str, model: nn.Module, note: Callable[[str], None] = no_note) -> Batch | None:
        return image_example(path, model, note)
