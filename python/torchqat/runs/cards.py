"""The model card of what a run exports, and the terms of the float model beside it."""

from pathlib import Path

from torch import nn

from torchqat.checkpoints.card import write_card
from torchqat.checkpoints.formats.tensors import checkpoint_plan
from torchqat.checkpoints.readers import format_of
from torchqat.files import size_of
from torchqat.reports.card import Subject, card_of
from torchqat.reports.origin import Origin, copy_terms, origin_of
from torchqat.reports.report import Variant
from torchqat.runs.run import Run


def put_terms(run: Run, folder: Path) -> None:
    """The files of the source's licenses beside the checkpoint in ``folder``."""
    copy_terms(_origin(run), folder)


def types_of(model: nn.Module) -> list[str]:
    """Number types of the weights of a prepared model, as recipes name them."""
    return sorted({layer.weight.type_name for layer in checkpoint_plan(model).layers if layer.weight is not None})


def put_card(run: Run, folder: Path, variant: Variant | None, repository: str = "") -> None:
    """The card of the checkpoint in ``folder``, which is of ``variant``; one that the user wrote stays, which is said.

    Args:
        run: That made it.
        folder: The checkpoint.
        variant: What was measured of it, if anything was.
        repository: On the Hub, if it goes there.
    """
    kind = run.kind
    types = (variant.types if variant else []) or run.exported_types
    known = Subject(folder, format_of(folder), kind.name, kind.writes_text, types, size_of(folder), variant)
    if repository:
        known = Subject(**{**vars(known), "place": repository})
    report = run.report()
    if not write_card(folder, card_of(known, _origin(run), report, run.recipe.text)):
        run.progress.say(f"{folder / 'README.md'} stays as it is, since it was not written by torchqat.")


def _origin(run: Run) -> Origin:
    return origin_of(run.model_path)
