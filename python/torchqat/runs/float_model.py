"""What a run starts from: the float model with its tokenizer, read when it is asked for, and shared by runs that compare."""

from functools import cached_property
from pathlib import Path

import torch
from torch import nn

from torchqat._library import Recipe
from torchqat.data.batch import Batch
from torchqat.data.corpus import Corpus, load_corpus
from torchqat.data.language import sources_of
from torchqat.device import find_device
from torchqat.errors import UserError
from torchqat.kinds import Kind, find_kind
from torchqat.model.source import dtype_of
from torchqat.runs.identity import files_content, state_content
from torchqat.runs.progress import Progress
from torchqat.runs.scratch import train_scratch
from torchqat.training.processes import check_gpu_each, count, is_first


class FloatModel:
    """The float model that a recipe names.

    Args:
        recipe: Whose ``model`` section it is; one without ``path`` is trained from scratch on ``data.train``.
        progress: Where news goes.

    Attributes:
        notes: What the model is not as it was where it came from, as it is found out.
    """

    def __init__(self, recipe: Recipe, progress: Progress):
        self._recipe, self._progress = recipe, progress
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        """Say ``text``, once, and keep it for the report."""
        if text not in self.notes:
            self.notes.append(text)
            self._progress.say(f"Note: {text}")

    @cached_property
    def kind(self) -> Kind:
        """What the model is for."""
        return find_kind(self._recipe.model.kind)

    @cached_property
    def device(self) -> torch.device:
        """Where torchqat computes with it, as the recipe says; each of several processes has a GPU of its own.

        Raises:
            UserError: There is no such device, or none for each process.
        """
        asked = self._recipe.device
        if count() > 1 and ":" in asked:
            raise UserError(
                f"device must be auto, cpu or cuda for {count()} processes, each of which takes a GPU of its own, but is "
                f"{asked}."
            )
        found = find_device(asked, self._progress.say)
        if found.type == "cuda":
            check_gpu_each()
        return found

    @cached_property
    def path(self) -> str:
        """Its folder or hub id; trains the recipe's scratch model first if it is not cached."""
        if self._recipe.model.path:
            return self._recipe.model.path
        if self._recipe.model.scratch is None:
            raise UserError("model must be given, by model.path in the recipe or by --model, but is not.")
        return str(train_scratch(self._recipe, self.corpus, self._progress, self.device))

    @cached_property
    def corpus(self) -> Corpus:
        """The text of ``data.train``."""
        check_data_given(self._recipe)
        return load_corpus(sources_of(self._recipe.data), self._recipe.data.evaluation_path)

    @cached_property
    def tokenizer(self):
        return self.kind.load_tokenizer(self.path)

    @cached_property
    def original(self) -> nn.Module:
        """The model: baseline and teacher. Never changed.

        Where several processes hold parts of it, the first alone reads its numbers; ``spread.shard`` deals them out.
        """
        load = self.kind.load if self.reads_weights else self.kind.outline
        return load(self.path, self._recipe.model.dtype, self.note).requires_grad_(False)

    @cached_property
    def with_image(self) -> Batch | None:
        """Inputs with an image, of a language model that reads such."""
        return self.kind.with_image(self.path, self.outline, self.note)

    @cached_property
    def dtype(self) -> torch.dtype | None:
        """What most of its floating weights are in where they lie; ``None`` where nothing says so, as of a function."""
        return dtype_of(self.path)

    @property
    def outline(self) -> nn.Module:
        """Enough of the model for a plan: without weights, where they are not there yet and are not needed for that."""
        if "original" in vars(self) or not self.kind.outlines:
            return self.original
        return self._outline

    @cached_property
    def _outline(self) -> nn.Module:
        return self.kind.outline(self.path, self._recipe.model.dtype, self.note)

    @cached_property
    def content(self) -> str:
        """A word that changes with what the model is (identity.py), wherever it lies."""
        return self.content_of_files or state_content(self._whole(), self._companions)

    @property
    def content_of_files(self) -> str:
        """The same without loading a model; empty where it is none of files."""
        return files_content(self.path, self._companions)

    @property
    def _companions(self) -> list[Path]:
        return list(self.kind.companions(self.path).values())

    def _whole(self) -> nn.Module:
        """Also on a process that holds a part of it."""
        return self.original if self.reads_weights else self.kind.load(self.path, self._recipe.model.dtype)

    @property
    def reads_weights(self) -> bool:
        """Whether this process has the whole model, before it is spread."""
        return is_first() or self._recipe.train.strategy != "fsdp"


def check_data_given(recipe: Recipe) -> None:
    """Raises UserError if ``recipe`` names no data."""
    if not (recipe.data.train or recipe.data.sources):
        raise UserError("data must be given, by data.train in the recipe or by --data, but is not.")
