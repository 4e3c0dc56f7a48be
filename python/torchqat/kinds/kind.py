"""What every kind of model answers: the joint between a recipe's flow and what a model is for."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchqat._library import DistillSection, Recipe
from torchqat.data.batch import Batch
from torchqat.data.batches import Data
from torchqat.data.tasks import Task
from torchqat.errors import UserError
from torchqat.kinds.losses import forward_kl, half_square, kl_per_token
from torchqat.kinds.pieces import Piece, pieces
from torchqat.kinds.top_choices import TopChoices, kl_to_top
from torchqat.model.loading import no_note
from torchqat.model.outline import empty
from torchqat.model.source import folder_with

# What the float model says: all of it, or its likeliest choices.
Teacher = Tensor | TopChoices

_OF_PROCESSORS = (
    "*preprocessor_config.json",
    "*processor_config.json",
    "chat_template*",
    "additional_chat_templates/*",
)


@dataclass(frozen=True)
class Answers:
    """What a model says to a batch, in the terms in which two models are compared.

    Attributes:
        logits: ``[rows, positions, choices]``, any floating dtype.
        targets: int64 ``[rows, positions]``, the right choices, where the data say which.
        embeddings: ``[rows, dim]``, of models that give such.
        values: ``[rows]``, of models that give a number in place of choices, of which there are then none.
        counted: bool ``[rows, positions]``, which of them are measured; all where ``None``.
    """

    logits: Tensor
    targets: Tensor | None = None
    embeddings: Tensor | None = None
    values: Tensor | None = None
    counted: Tensor | None = None

    @property
    def log_probabilities(self) -> Tensor:
        """All of them, float32: of a large vocabulary, several times the memory of the logits."""
        return F.log_softmax(self.logits.float(), dim=-1)

    def of_targets(self) -> Tensor:
        """The log-probabilities of the right choices, float32 ``[rows, positions]``."""

        def chosen(piece: Piece) -> Tensor:
            found = F.log_softmax(self.logits[piece].float(), dim=-1)
            return found.gather(-1, self.targets[piece][..., None]).squeeze(-1)

        return self._each(chosen)

    def kl_to(self, wanted: "Answers") -> Tensor:
        """KL(wanted || self) of each position, float32 ``[rows, positions]``."""
        return kl_per_token(self.logits, wanted.logits)

    def likeliest(self) -> Tensor:
        """The likeliest choice of each position, int64 ``[rows, positions]``."""
        return self.logits.argmax(-1)

    def _each(self, of_piece: Callable[[Piece], Tensor]) -> Tensor:
        found = torch.empty(self.logits.shape[:2], device=self.logits.device)
        for piece in pieces(self.logits):
            found[piece] = of_piece(piece)
        return found

    def to(self, device: torch.device) -> "Answers":
        """The same on ``device``."""
        return Answers(*(None if tensor is None else tensor.to(device) for tensor in vars(self).values()))


class Kind(ABC):
    """One kind of model.

    Attributes:
        name: As recipes call it.
        writes_text: Whether models of this kind take tokens, and nothing else, and generate those that follow.
        outlines: Whether ``outline`` reads no weights.
        measured_names: What batches by name must have for the model to be measured on them.
        measured_places: What batches by place are, in order, where they are any; one alone is no tuple.
    """

    name: ClassVar[str]
    writes_text: ClassVar[bool] = False
    outlines: ClassVar[bool] = False
    measured_names: ClassVar[tuple[str, ...]] = ()
    measured_places: ClassVar[tuple[str, ...]] = ()
    # How encoders make vectors of hidden states, in the words of gguf: mean, cls, last, or what it does not know.
    pooling: str = ""

    @abstractmethod
    def load(self, path: str, dtype: str, note: Callable[[str], None] = no_note) -> nn.Module:
        """The float model of ``path``, in evaluation mode.

        Args:
            path: Its folder, file or hub id, or a function of the user's.
            dtype: ``float32``, ``bfloat16`` or ``float16``.
            note: Told what is not as it was there.

        Raises:
            UserError: There is none.
        """

    def outline(self, path: str, dtype: str, note: Callable[[str], None] = no_note) -> nn.Module:
        """The float model of ``path``, its parameters on the meta device: for a process that is given its part of them."""
        return empty(self.load(path, dtype, note))

    @abstractmethod
    def load_tokenizer(self, path: str) -> Any:
        """The tokenizer of ``path``, or ``None`` where models of this kind need none."""

    @abstractmethod
    def load_data(self, recipe: Recipe, tokenizer: Any, say: Callable[[str], None] = no_note) -> Data:
        """The batches that ``recipe`` describes; ``say`` is told of what takes time.

        Raises:
            UserError: There are no such data.
        """

    def measured(self, source: str, path: str, length: int, tokenizer: Any, samples: int = 0) -> list[Batch]:
        """Batches of all of ``source``, or of ``samples`` examples spread evenly over it; nothing is held out.

        Args:
            source: What data are read from, as recipes name them.
            path: Where the model came from.
            length: Tokens of an example, after which it is cut off.
            tokenizer: The model's, where it has one.
            samples: At most so many; all where 0.

        Raises:
            UserError: There are no such data, or models of this kind are not measured example by example.
        """
        raise UserError(f"A {self.name} is not measured example by example.")

    @abstractmethod
    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        """What the model gives for ``batch``, differentiable: logits or embeddings."""

    @abstractmethod
    def answers(self, outputs: Tensor, batch: Batch) -> Answers:
        """What ``outputs`` say."""

    @abstractmethod
    def loss(self, settings: DistillSection, student: Tensor, teacher: Teacher | None, batch: Batch) -> Tensor:
        """The loss of the recipe's ``distill`` section, a scalar; ``teacher`` is given unless ``is_plain(settings)``."""

    @abstractmethod
    def examples(self, batch: Batch) -> Batch:
        """The inputs of ``batch``, by name where they have names, as a model is called with them."""

    def prompts(self, batch: Batch) -> Tensor:
        """Beginnings of texts in ``batch``, int64 ``[<= 4, <= 64]``, of models that write text."""
        return batch[:4, :64]

    def check(self, recipe: Recipe, model: nn.Module) -> None:
        """Whether ``model`` can do what ``recipe`` asks of its data: those of kinds that ask nothing can.

        Raises:
            UserError: It cannot.
        """
        return None

    def check_measured(self, batch: Batch) -> None:
        """Whether ``batch`` has what a model of this kind is measured by.

        Raises:
            UserError: It has not.
        """
        if isinstance(batch, Mapping):
            embedded = {"input_ids"} if "inputs_embeds" in batch else set()  # which take their place
            lacking = [name for name in self.measured_names if name not in batch and name not in embedded]
            found = f"without {lacking[0]}" if lacking else ""
        elif not self.measured_names:  # a kind of the user's own
            found = ""
        else:
            count = len(batch) if isinstance(batch, tuple | list) else 1
            fits = count == len(self.measured_places) and isinstance(batch, Tensor) == (count == 1)
            found = "" if fits else "one tensor" if isinstance(batch, Tensor) else f"{count} by place"
        if found:
            places = f"{' and '.join(self.measured_places)}, or " if self.measured_places else ""
            raise UserError(
                f"A batch that a {self.name} is measured on must be {places}a dict with {', '.join(self.measured_names)}, "
                f"but is {found}."
            )

    def check_given(self, model: nn.Module, batches: Sequence[Batch], source: str) -> None:
        """Whether ``model`` takes ``batches``, where these are what a function of the user's gave.

        Raises:
            UserError: It does not.
        """
        return None

    def ask(self, model: nn.Module, batch: Batch) -> Answers:
        """What ``model`` says to ``batch``."""
        return self.answers(self.outputs(model, batch), batch)

    def with_image(self, path: str, model: nn.Module, note: Callable[[str], None] = no_note) -> Batch | None:
        """Inputs with an image, by name, of a model that writes text and reads both; ``None`` of others.

        Args:
            path: Where the model came from, with its processor.
            model: What is to read them.
            note: Told why there are none, though the model reads more than text.
        """
        return None

    def own_task(self, data: Data) -> Task | None:
        """What models of this kind are measured on when the user has no task of their own."""
        return None

    def rank(self, model: nn.Module, tokenizer: Any, query: str, passages: list[str]) -> Tensor:
        """A number for each of ``passages``, the largest for the one that fits ``query`` best.

        Raises:
            UserError: Models of this kind give none.
        """
        raise UserError(
            f"A task of queries and passages needs a sentence_encoder or a reranker, but the model is a {self.name}."
        )

    def companions(self, path: str) -> dict[str, Path]:
        """Files of the model's folder that an export needs besides its tensors, by their names there.

        Those of processors of images and sounds: the tokenizer writes its own.
        """
        return found_files(path, _OF_PROCESSORS)


def check_one_path(recipe: Recipe, kind: str) -> None:
    """For kinds whose data are one path, of no conversations.

    Raises:
        UserError: The recipe asks for more.
    """
    if recipe.data.sources:
        raise UserError(f"data.train must be one path where model.kind is {kind}, but is a map or a list of such.")
    for key, is_asked in (("packing", recipe.data.packing), ("loss_on", recipe.data.loss_on != "answers")):
        if is_asked:
            raise UserError(f"data.{key} is of conversations, which a {kind} does not learn from.")


def found_files(path: str, patterns: Sequence[str]) -> dict[str, Path]:
    """Files of the folder or hub id ``path`` whose names there fit one of ``patterns``."""
    folder = folder_with(path, patterns)
    files = [file for pattern in patterns for file in sorted(folder.glob(pattern))] if folder is not None else []
    return {str(file.relative_to(folder)): file for file in files if file.is_file()}


def distilled(
    settings: DistillSection,
    student: Tensor,
    teacher: Teacher | None,
    plain: Callable[[], Tensor],
    counted: Tensor | None = None,
) -> Tensor:
    """Forward KL from ``teacher`` and what ``plain`` gives, cross-entropy as a rule, in the recipe's shares.

    Of one output, which is no choice, it is the KL between normal distributions around both, of variance 1. KL is the mean
    over the predictions that are ``counted``, bool, or over all.
    """
    if is_plain(settings):
        return plain()
    if student.shape[-1] == 1:
        kl = half_square(student, teacher)
    else:
        divergence = kl_to_top if isinstance(teacher, TopChoices) else forward_kl
        kl = divergence(student, teacher, settings.temperature, counted)
    return kl if settings.weight == 1.0 else settings.weight * kl + (1.0 - settings.weight) * plain()


def is_plain(settings: DistillSection) -> bool:
    """Whether the loss does without the float model."""
    return settings.loss == "cross_entropy" or settings.weight == 0.0
