"""Classifiers: one of a number of classes for each text, image or vector."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchqat._library import DistillSection, Recipe
from torchqat.data.batch import Batch, to_device
from torchqat.data.batches import Data
from torchqat.data.corpus import held_out
from torchqat.data.examples import Examples, check_examples, labelled_texts, tokenized
from torchqat.data.functions import find_function, names_function
from torchqat.data.tasks import Task
from torchqat.errors import UserError
from torchqat.kinds.kind import Answers, Kind, distilled
from torchqat.model.completeness import Wanted
from torchqat.model.loading import check_finite, load_pretrained, load_tokenizer, no_note

_WANTED = Wanted("AutoModelForSequenceClassification", "classifier", adds_head=True, leaves_heads=True)


class Classifier(Kind):
    """Logits ``[rows, classes]``.

    A model is a Hugging Face folder or hub id of a sequence classifier, fed with jsonl of ``text`` and ``label``; or any
    module that ``module:function`` returns, fed with the inputs and labels that another such function returns.
    """

    name = "classifier"

    def load(self, path: str, dtype: str, note: Callable[[str], None] = no_note) -> nn.Module:
        if not names_function(path):
            return load_pretrained(path, dtype, _WANTED, note)
        model = find_function("model", path)()
        if not isinstance(model, nn.Module):
            raise UserError(f"model must be a function that returns a torch.nn.Module, but {path} gave {type(model)}.")
        check_finite(model, path)
        return model.to(getattr(torch, dtype)).eval()

    def load_tokenizer(self, path: str) -> Any:
        return None if names_function(path) else load_tokenizer(path)

    def load_data(self, recipe: Recipe, tokenizer: Any) -> Data:
        everything = self._examples(recipe.data.train, recipe.train.sequence_length, tokenizer)
        if recipe.data.evaluation_path:
            train = everything
            others = self._examples(recipe.data.evaluation_path, recipe.data.evaluation.sequence_length, tokenizer)
        else:
            train, others = held_out(everything)
        return Data.of_examples(recipe, train, others)

    def _examples(self, source: str, length: int, tokenizer: Any) -> Examples:
        if names_function(source):
            return check_examples(source, find_function("data", source)())
        if tokenizer is None:
            raise UserError(f"data must be a function of the form module:function, like model, but is {source}.")
        texts, labels = labelled_texts(Path(source))
        return tokenized(tokenizer, texts, length, torch.tensor(labels))

    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        found = model(**_without_labels(batch)) if isinstance(batch, dict) else model(batch[0])
        return found if isinstance(found, Tensor) else found.logits

    def answers(self, outputs: Tensor, batch: Batch) -> Answers:
        return Answers(F.log_softmax(outputs.float(), -1).unsqueeze(1), _labels(batch).unsqueeze(1))

    def loss(self, settings: DistillSection, student: Tensor, teacher: Tensor | None, batch: Batch) -> Tensor:
        return distilled(settings, student, teacher, lambda: F.cross_entropy(student.float(), _labels(batch)))

    def examples(self, batch: Batch) -> Batch:
        return _without_labels(batch) if isinstance(batch, dict) else batch[0]

    def own_task(self, data: Data) -> Task:
        """The accuracy on the held-out data."""

        def right(model: nn.Module, _tokenizer: Any) -> list[float]:
            device = next(model.parameters()).device
            batches = [to_device(batch, device) for batch in data.evaluation]
            found = [self.outputs(model, batch).argmax(-1) == _labels(batch) for batch in batches]
            return torch.cat(found).double().tolist()

        return Task("accuracy", function=right)


def _without_labels(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in batch.items() if name != "labels"}


def _labels(batch: Batch) -> Tensor:
    return batch["labels"] if isinstance(batch, dict) else batch[1]
