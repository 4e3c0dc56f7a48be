"""What becomes of a model in each format, and what others read in it."""

from pathlib import Path

import torchqat
from torch import nn
from torchqat.checkpoints.export import export_notes

from model_zoo import reload
from model_zoo.recipes import ATTEMPTS, said, without
from model_zoo.result import NO, PARTLY, SKIPPED, Cell, Fault, described, listed
from model_zoo.subject import Subject


def export(subject: Subject, format: str) -> Cell | None:
    """The trained model in ``format``; where it cannot hold a layer, one without it, rounded anew."""
    place, model, rules, sentence = subject.folder / format, subject.model, subject.rules, ""
    for _ in range(ATTEMPTS):
        refusal = said(lambda: torchqat.export(model, place, format=format))  # noqa: B023
        if refusal is None:
            break
        sentence, rules = sentence or refusal, without(subject.planned.plan, rules, refusal)
        if rules is None:
            return Cell(NO, refusal)
        model = subject.prepared(rules, "rtn")
    else:
        return Cell(NO, sentence)
    subject.exported[format] = model
    _read_back(subject, format, place, model)
    return Cell(PARTLY, sentence) if sentence else None


def _read_back(subject: Subject, format: str, place: Path, model: nn.Module) -> None:
    verification = torchqat.verify(place, model, engine="reader")
    if not verification.ok:
        raise Fault(f"read back: {verification}")
    if format == "safetensors":
        wrong = reload.differences(reload.by_torchqat(place, subject.plain), reload.expected_weights(subject, model))
        if wrong:
            raise Fault(f"loaded by torchqat.load, these differ: {listed(wrong)}")


def read_by_transformers(subject: Subject) -> Cell | None:
    """The compressed-tensors export, by transformers' own loader."""
    model = subject.exported.get("compressed-tensors")
    if model is None:
        return Cell(SKIPPED)
    batch = subject.data[0]
    try:
        loaded = reload.by_transformers(subject.folder / "compressed-tensors", subject.plain, batch)
    except Exception as error:
        told = export_notes(model, "compressed-tensors", subject.folder / "compressed-tensors")
        return Cell(NO, told[0]) if told else _unless_transformers(subject, described(error))
    wrong = reload.differences(loaded, reload.expected_weights(subject, model))
    if wrong:
        return _unless_transformers(subject, f"loaded by transformers, these differ: {listed(wrong)}")
    distance = reload.distance(reload.outputs(loaded, batch), reload.outputs(model.eval(), batch))
    if not distance <= reload.BOUND:
        return _unless_transformers(subject, f"outputs differ by {distance:.2g} of the largest")
    return None


def _unless_transformers(subject: Subject, fault: str) -> Cell:
    """A fault, unless transformers cannot read back the float model that it wrote itself."""
    place, plain, batch = subject.folder / "float", subject.plain, subject.data[0]
    try:
        plain.save_pretrained(place)
        loaded = type(plain).from_pretrained(place).eval()
        wrong = reload.differences(loaded, plain.state_dict())
        distance = reload.distance(reload.outputs(loaded, batch), reload.outputs(plain, batch))
    except Exception as error:
        return Cell(NO, f"transformers cannot read back its own float model: {described(error, place=False)}")
    if wrong or not distance <= reload.BOUND:
        return Cell(
            NO, f"transformers reads back its own float model otherwise: {listed(wrong) or f'by {distance:.2g}'}"
        )
    raise Fault(fault)
