"""Classifiers: one of a number of classes, or one number, for each text, word, image or vector."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchqat._library import DistillSection, Recipe
from torchqat.data.batch import Batch, size_of, to_device
from torchqat.data.batches import Data, spread_batches
from torchqat.data.corpus import trained_and_held_out
from torchqat.data.examples import NO_LABEL, Examples, check_examples, tokenized
from torchqat.data.functions import find_function, names_function
from torchqat.data.labelled import labelled_texts, labelled_words, texts_of_several_labels
from torchqat.data.tasks import Task
from torchqat.device import device_of
from torchqat.errors import UserError
from torchqat.kinds.examples_fit import check_fit
from torchqat.kinds.kind import Answers, Kind, check_one_path, distilled
from torchqat.kinds.losses import cross_entropy_of
from torchqat.kinds.pairs import length_of, share_ordered_right
from torchqat.model.completeness import Wanted
from torchqat.model.finite import check_finite
from torchqat.model.loader import CLASSIFIERS, classifier_loader
from torchqat.model.loading import configuration_of, load_pretrained, load_tokenizer, no_note
from torchqat.model.source import double_note


class Classifier(Kind):
    """Logits ``[rows, classes]``, or ``[rows, tokens, classes]`` where each word has a class.

    A model is a Hugging Face folder or hub id of a classifier of texts, words, images or sounds, or any module that
    ``module:function`` returns. Those of texts and words are fed with jsonl, others with the inputs and labels that another
    such function returns.

    Where several classes may apply to one text, labels are floating ``[rows, classes]``, and each class is a choice of its
    own, yes or no.

    One output is no choice but a number: a reranker's, a regression's. Two such models are compared by the KL between normal
    distributions around their numbers, of the variance that the float model's have over the data: the squared difference
    over twice that variance.
    """

    name = "classifier"
    measured_names = ("labels",)
    measured_places = ("inputs", "labels")

    def load(self, path: str, dtype: str, note: Callable[[str], None] = no_note) -> nn.Module:
        if not names_function(path):
            loader = classifier_loader(configuration_of(path, "classifier"))
            wanted = Wanted(loader, "classifier", adds_head=True, leaves_heads=True)
            return load_pretrained(path, dtype, wanted, note)
        model = find_function("model", path)()
        if not isinstance(model, nn.Module):
            raise UserError(f"model must be a function that returns a torch.nn.Module, but {path} gave {type(model)}.")
        check_finite(model, path)
        doubles = [name for name, parameter in model.named_parameters() if parameter.dtype == torch.float64]
        if said := double_note(doubles, path, dtype):
            note(said)
        return model.to(getattr(torch, dtype)).eval()

    def load_tokenizer(self, path: str) -> Any:
        return load_tokenizer(path) if _reads(path) in ("text", "words") else None

    def load_data(self, recipe: Recipe, tokenizer: Any, say: Callable[[str], None] = no_note) -> Data:
        check_one_path(recipe, self.name)

        def read(source: str, length: int) -> Examples:
            return self._examples(source, recipe.model.path, length, tokenizer)

        return Data.of_examples(recipe, *trained_and_held_out(recipe, read))

    def measured(self, source: str, path: str, length: int, tokenizer: Any, samples: int = 0) -> list[Batch]:
        return spread_batches(self._examples(source, path, length, tokenizer), samples)

    def _examples(self, source: str, path: str, length: int, tokenizer: Any) -> Examples:
        if names_function(source):
            return check_examples(source, find_function("data", source)())
        if tokenizer is None:
            raise UserError(f"data must be a function of the form module:function, like model, but is {source}.")
        config = configuration_of(path, "classifier")
        several = config.problem_type == "multi_label_classification"
        read = labelled_words if _reads(path) == "words" else texts_of_several_labels if several else labelled_texts
        return read(Path(source), tokenizer, length, config.num_labels)

    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        found = model(**_without_labels(batch)) if isinstance(batch, dict) else model(batch[0])
        return found if isinstance(found, Tensor) else found.logits

    def answers(self, outputs: Tensor, batch: Batch) -> Answers:
        logits, labels = _labelled(outputs.float(), _labels(batch))
        if logits.shape[-1] == 1:
            return Answers(logits.new_empty(len(logits), 1, 0), values=logits.squeeze(-1))
        return Answers(logits.unsqueeze(1), labels.unsqueeze(1))

    def loss(self, settings: DistillSection, student: Tensor, teacher: Tensor | None, batch: Batch) -> Tensor:
        labels = _labels(batch)
        if labels.dim() == 2 and not _applies_each(labels) and student.shape[-1] > 1:
            # Of words: which of them have a label stays on the device.
            return distilled(settings, student, teacher, lambda: cross_entropy_of(student, labels), labels != NO_LABEL)
        theirs = None if teacher is None else _labelled(teacher, labels)[0]
        ours, labels = _labelled(student, labels)
        return distilled(settings, ours, theirs, lambda: _plain(ours, labels))

    def examples(self, batch: Batch) -> Batch:
        return _without_labels(batch) if isinstance(batch, dict) else batch[0]

    def check_given(self, model: nn.Module, batches: Sequence[Batch], source: str) -> None:
        check_fit(model, batches, source)

    def own_task(self, data: Data) -> Task:
        """The accuracy on the held-out data; of one output, how many others each example is ordered right to."""

        def right(model: nn.Module, _tokenizer: Any) -> list[float]:
            device = device_of(model)
            batches = [to_device(batch, device) for batch in data.evaluation]
            found = [_labelled(self.outputs(model, batch), _labels(batch)) for batch in batches]
            logits, labels = (torch.cat(parts).cpu() for parts in zip(*found, strict=True))
            classes = len(labels) // sum(map(size_of, batches)) if _applies_each(_labels(batches[0])) else 1
            if logits.shape[-1] == 1:
                return share_ordered_right(logits.squeeze(-1), labels)
            correct = (logits.argmax(-1) == labels).double()
            return correct.view(-1, classes).mean(1).tolist()

        return Task("accuracy", function=right)

    @torch.no_grad()
    def rank(self, model: nn.Module, tokenizer: Any, query: str, passages: list[str]) -> Tensor:
        """The output for each pair, of a reranker."""
        length = length_of(model, tokenizer)
        examples = tokenized(tokenizer, [query] * len(passages), length, pairs=passages)
        batch = examples.batch(torch.arange(len(passages)))
        found = self.outputs(model, to_device(batch, device_of(model)))
        if found.shape[-1] != 1:
            return super().rank(model, tokenizer, query, passages)
        return found.squeeze(-1).cpu()


def _reads(path: str) -> str:
    """What a model takes a class from; empty of a function's."""
    return "" if names_function(path) else CLASSIFIERS[classifier_loader(configuration_of(path, "classifier"))]


def _without_labels(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in batch.items() if name != "labels"}


def _labels(batch: Batch) -> Tensor:
    return batch["labels"] if isinstance(batch, dict) else batch[1]


def _labelled(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Logits ``[n, classes]`` of what has a label, and the labels ``[n]``; of each class that may apply, of no and yes."""
    if _applies_each(labels):
        return torch.stack([torch.zeros_like(logits), logits], -1).flatten(0, 1), labels.flatten().long()
    if labels.dim() < 2:
        return logits.unsqueeze(-1) if logits.dim() == 1 else logits, labels
    has = labels != NO_LABEL
    return logits[has], labels[has]


def _applies_each(labels: Tensor) -> bool:
    return labels.dim() == 2 and labels.is_floating_point()


def _plain(logits: Tensor, labels: Tensor) -> Tensor:
    """What transformers' own loss is: cross-entropy, and squared errors of one output."""
    if logits.shape[-1] == 1:
        return F.mse_loss(logits.float().squeeze(-1), labels.float())
    return cross_entropy_of(logits, labels)
