"""Inputs and labels that a function of the user's gives: what a classifier can do nothing with is said before a run."""

import pytest
import torch
import torchqat
from command import call
from sentences import matches, said
from torch import nn
from torchqat.data.examples import check_examples
from torchqat.kinds.examples_fit import check_fit

CHANNELS, CLASSES, COUNT = 3, 4, 40


def images(**changes):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(COUNT, CHANNELS, 8, 8, generator=generator)
    return {"inputs": inputs, "labels": torch.arange(COUNT) % CLASSES, **changes}


def network(outputs=CLASSES):
    return nn.Sequential(nn.Flatten(), nn.Linear(CHANNELS * 64, outputs)).eval()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_named(value):
    given = images()
    given["inputs"][7, 1, 2, 3] = given["inputs"][9, 0, 0, 0] = value
    wanted = matches("data.not-finite", source="m:f", what="inputs", count=2, all=COUNT, first=7)
    with pytest.raises(torchqat.UserError, match=wanted):
        check_examples("m:f", tuple(given.values()))
    labels = torch.ones(COUNT)
    labels[3] = value
    wanted = matches("data.not-finite", source="m:f", what="labels", count=1, all=COUNT, first=3)
    with pytest.raises(torchqat.UserError, match=wanted):
        check_examples("m:f", (images()["inputs"], labels))


def test_data_are_no_part_of_a_graph():
    found = check_examples("m:f", (images()["inputs"].requires_grad_() * 2, torch.ones(COUNT).requires_grad_()))
    assert not found.inputs.requires_grad and not found.labels.requires_grad


@pytest.mark.parametrize(
    ("change", "dtype"),
    [
        (lambda x: x.double(), "float64"),
        (lambda x: (x * 9).to(torch.uint8), "uint8"),
        (lambda x: x.to(torch.complex64), "complex64"),
        (lambda x: x[:, :2], "float32"),
    ],
)
def test_inputs_that_the_model_does_not_take_are_a_sentence(change, dtype):
    inputs = change(images()["inputs"])
    wanted = matches(
        "data.inputs-not-taken", model="Sequential", source="m:f", dtype=dtype, shape=f"{inputs.shape[1]}, 8, 8"
    )
    with pytest.raises(torchqat.UserError, match=wanted):
        check_fit(network(), [(inputs, images()["labels"])], "m:f")


def test_labels_are_of_the_classes_that_there_are():
    def check(labels, outputs=CLASSES):
        given = images()["inputs"]
        check_fit(network(outputs), [(given, images()["labels"].clamp(max=outputs - 1)), (given, labels)], "m:f")

    whole = images()["labels"]
    for good in (whole, torch.nn.functional.one_hot(whole).float()):
        check(good)
    for good in (whole, whole.float(), whole.float()[:, None]):
        check(good, 1)
    with pytest.raises(
        torchqat.UserError, match=matches("data.no-such-class", classes=CLASSES, file="m:f", label=CLASSES)
    ):
        check(whole + 1)
    with pytest.raises(torchqat.UserError, match=matches("data.labels-below-zero", source="m:f", label=-100)):
        check(whole - 100)
    for bad, found in ((whole.float(), 1), (torch.ones(COUNT, 3), 3)):
        wanted = matches("data.labels-of-other-outputs", outputs=CLASSES, source="m:f", found=found)
        with pytest.raises(torchqat.UserError, match=wanted):
            check(bad)


RECIPE = """version: 1
device: cpu
model: {kind: classifier, path: "own:model"}
layers: [{match: "*", weight: {dtype: int8}}]
data: {train: "own:data", evaluation: {samples: 4}}
train: {steps: 1, batch_size: 2}
export: [safetensors]
"""
OWN = """import torch
from torch import nn
def model():
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
def data():
    labels = torch.arange(40) % 4
    labels[11] = 4
    return torch.ones(40, 3, 8, 8), labels
"""


def test_a_run_and_an_evaluation_say_so(tmp_path, monkeypatch, capsys):
    """Also of one example that no batch of these would have drawn."""
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "r.yaml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for command in (("run", "r.yaml"), ("evaluate", "own:model", "--kind", "classifier", "--data", "own:data")):
        code, _, err = call(capsys, *command)
        assert code == 2 and said(err, "data.no-such-class", classes=4, file="own:data", label=4), err
    assert not (tmp_path / "runs").exists()
