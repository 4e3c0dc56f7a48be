"""One model through all that torchqat does with it, and a cell for each step: yes, torchqat's own sentence, or a fault."""

import copy
import inspect
import re
import shutil
import tempfile
import time
import warnings
from functools import partial
from pathlib import Path

import torch
import torchqat
from torch import Tensor, nn

from model_zoo import exports, reload
from model_zoo.inputs import batches
from model_zoo.models import Entry, build
from model_zoo.result import (
    CELLS,
    FAULT,
    FORMATS,
    NO,
    PARTLY,
    SKIPPED,
    YES,
    Cell,
    Fault,
    Result,
    described,
    listed,
    named,
)
from model_zoo.subject import Subject
from model_zoo.watch import Watch

_TRAINING = "version: 1\nlayers: [{match: '*', weight: {dtype: int4}}]\ntrain: {learning_rate: 1.0e-3}"


def examine(entry: Entry) -> Result:
    """All cells of one model. What libraries warn of is not looked at."""
    begin, folder = time.monotonic(), Path(tempfile.mkdtemp())
    result = Result(str(entry), entry.kind, entry.purpose)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _fill(result, entry, folder)
    finally:
        shutil.rmtree(folder)
    result.seconds = round(time.monotonic() - begin, 2)
    return result


def _fill(result: Result, entry: Entry, folder: Path) -> None:
    try:
        model = build(entry)
        result.cls = type(model).__name__
        subject = Subject(model, batches(entry, model, 4), folder)
    except Exception as error:
        result.built = described(error, place=False)
        return
    result.cells = {name: Cell(SKIPPED) for name in CELLS}
    take = partial(_step, result.cells, subject)
    if take("covered", _cover) and take("called", _prepare):
        take("calibrated", _calibrate)
        take("trained", _train)
        for format in FORMATS:
            take(format, partial(exports.export, format=format))
        take("transformers", exports.read_by_transformers)
    if hasattr(subject, "planned"):
        result.shares = subject.shares()


def _step(cells: dict[str, Cell], subject: Subject, name: str, action) -> bool:
    """Whether the steps after it can be taken."""
    torch.manual_seed(0)
    passable = False
    try:
        cell = action(subject) or Cell(YES)
        passable = cell.state in (YES, PARTLY)
    except (torchqat.UserError, torchqat.RecipeError) as error:
        cell = Cell(NO, str(error))
    except Fault as fault:
        cell, passable = Cell(FAULT, str(fault)), True
    except Exception as error:
        cell = Cell(FAULT, described(error))
    cells[name] = cell
    return passable


# -- steps -----------------------------------------------------------------------------------------------------------


def _cover(subject: Subject) -> Cell | None:
    subject.plan()
    plan = subject.planned.plan
    text = "\n".join([str(plan), *(weight.name for weight in getattr(plan, "left", []))])
    silent = [n for n in subject.multiplied - subject.covered() - subject.heads() if not named(n, text)]
    if silent:
        raise Fault(f"left in floating point without a word: {listed(silent)}")
    return Cell(PARTLY, subject.planned.refusal) if subject.planned.refusal else None


def _prepare(subject: Subject) -> Cell | None:
    """Where layers are not called, torchqat may say so in calibration, before training is paid for."""
    subject.model = subject.prepared(subject.rules)
    sentence = ""
    if _bypassed(subject):
        sentence = subject.leaving_out(lambda: torchqat.calibrate(copy.deepcopy(subject.model), subject.data))
    found = _bypassed(subject)
    if found:
        raise Fault(found)
    distance = _distance_of_twin(subject)
    if not distance <= reload.BOUND:
        raise Fault(
            f"computes otherwise than the float model with the same weights, by {distance:.2g} of the largest output"
        )
    return Cell(PARTLY, sentence) if sentence else None


def _bypassed(subject: Subject) -> str:
    """What is wrong with the calls of the layers in one forward in each mode."""
    found = [_bypassed_in(subject, training) for training in (False, True)]
    subject.model.eval()
    return found[0] or found[1]


def _bypassed_in(subject: Subject, training: bool) -> str:
    layers, called = dict(subject.layers()), set()
    hooks = [layer.register_forward_hook(lambda *_, name=name: called.add(name)) for name, layer in layers.items()]
    with torch.no_grad(), Watch(subject.model.train(training)) as watch:
        subject.model(**subject.data[0])
    for hook in hooks:
        hook.remove()
    mode = "training" if training else "evaluation"
    unrounded = watch.multiplied & subject.covered()
    if unrounded:
        return f"multiplied unrounded in {mode} mode: {listed(unrounded)}"
    idle = [name for name in layers.keys() - called if subject.weight_of(name) in subject.multiplied]
    return f"not called in {mode} mode: {listed(idle)}" if idle else ""


@torch.no_grad()
def _distance_of_twin(subject: Subject) -> float:
    """How far the prepared model is from transformers' own classes with the weights that it says it computes with."""
    twin = copy.deepcopy(subject.plain)
    state = twin.state_dict()
    for name, tensor in reload.expected_weights(subject).items():
        state[name].copy_(tensor)
    return reload.distance(reload.outputs(subject.model, subject.data[0]), reload.outputs(twin, subject.data[0]))


def _calibrate(subject: Subject) -> Cell | None:
    found = []
    torch.manual_seed(0)  # Reformer draws the buckets of its tokens
    sentence = subject.leaving_out(lambda: found.append(torchqat.calibrate(subject.model, subject.data)))
    if not torch.isfinite(reload.outputs(subject.model, subject.data[0])).all():
        raise Fault("outputs are not finite after it")
    warned = [line for line in found[-1].warnings if "raise data.calibration.samples" not in line]
    # Of blocks that did not run the sentence has the block's name.
    idle = tuple(f"{line.split()[0]}." for line in warned if " did not run on the calibration data" in line)
    silent = [
        name
        for name, _ in subject.layers()
        if name not in found[-1].losses and not name.startswith(idle) and not any(name in w for w in warned)
    ]
    others = sum(int(more) for line in warned for more in re.findall(r" and (\d+) more ", line))
    if len(silent) > others:
        raise Fault(f"not calibrated, without a word: {listed(silent)}")
    if "use_cache" in inspect.signature(subject.plain.forward).parameters and "use_cache" not in subject.data[0]:
        _compare_without_cache(subject)
    lines = [sentence, *warned] if sentence else warned
    return Cell(PARTLY, " ".join(lines)) if lines else None


def _compare_without_cache(subject: Subject) -> None:
    other = subject.prepared(subject.rules)
    torch.manual_seed(0)
    torchqat.calibrate(other, [{**batch, "use_cache": False} for batch in subject.data])
    codes = {name: layer.codes() for name, layer in reload.quant_layers(other)}
    differing = [name for name, layer in subject.layers() if not torch.equal(layer.codes(), codes[name])]
    if differing:
        raise Fault(f"codes are others with use_cache=False: {listed(differing)}")


def _train(subject: Subject) -> Cell | None:
    """Two steps, in which every layer moves that moves in the float model."""
    plain = copy.deepcopy(subject.plain).train()
    try:
        _backward(plain, subject.data[0])
    except Exception as error:
        return Cell(NO, f"transformers' float model cannot be trained: {described(error, place=False)}")
    learns = {name for name, p in plain.named_parameters() if p.grad is not None and p.grad.any()}
    model = subject.model.train()
    settings = torchqat.parse_recipe(_TRAINING, "training")
    optimizer = torch.optim.AdamW(torchqat.parameter_groups(model, settings))
    before = {name: layer.weight.detach().clone() for name, layer in subject.layers()}
    for batch in subject.data[:2]:
        if not torch.isfinite(_backward(model, batch)):
            raise Fault("the loss is not finite")
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    moved = {name for name, layer in subject.layers() if not torch.equal(before[name], layer.weight)}
    still = [name for name in before.keys() - moved if subject.weight_of(name) in learns]
    if still:
        raise Fault(f"not trained: {listed(still)}")
    return None


def _backward(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    torch.manual_seed(0)
    output = reload.output_of(model(**batch)).float()
    loss = (output * torch.randn_like(output)).mean()
    loss.backward()
    return loss.detach()
