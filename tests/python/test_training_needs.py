"""``torchqat check`` says what a training takes of memory, from the shapes of the model alone."""

import json
import re
from pathlib import Path

import architectures
import pytest
import torch
import torchqat
from command import call
from sentences import said
from torchqat.runs.training_needs import training_needs
from transformers import LlamaConfig, LlamaForCausalLM

RECIPE = "version: 1\nlayers: {weight: {dtype: int4, group_size: 32, scale: learned}}\n"


@pytest.fixture(scope="module")
def llama():
    return architectures.build("Llama")


def needs(model, more):
    recipe = torchqat.parse_recipe(RECIPE + more)
    return training_needs(recipe, torchqat.make_plan(model, recipe), model)


def size(model):
    return sum(p.numel() * p.element_size() for p in model.parameters())


@pytest.mark.parametrize(
    "more, teachers",
    [
        ("train: {steps: 9}\n", 1),
        ("train: {epochs: 1}\n", 1),
        ("train: {steps: 9}\ndistill: {loss: cross_entropy}\n", 0),
        ("train: {steps: 9}\ndistill: {teacher: answers}\n", 0),
    ],
)
def test_the_float_model_counts_where_it_is_asked(more, teachers, llama):
    before = {name: p.clone() for name, p in llama.named_parameters()}
    assert needs(llama, more).memory.teacher == teachers * size(llama)
    assert all(torch.equal(before[name], p) for name, p in llama.named_parameters())


def test_what_trains_has_gradients_and_moments(llama):
    whole = needs(llama, "train: {steps: 9}\n").memory
    learned = sum(
        layer.weight_scale.numel() * 4
        for layer in torchqat.prepare(architectures.build("Llama"), torchqat.parse_recipe(RECIPE)).modules()
        if isinstance(layer, torchqat.QuantLinear)
    )
    assert (whole.weights, whole.gradients) == (size(llama), size(llama) + learned)
    assert whole.optimizer == 2 * whole.gradients
    scales = needs(llama, "train: {steps: 9, parameters: scales}\n").memory
    assert scales.gradients == learned and scales.weights == size(llama)


def test_adapters_train_alone_and_are_none_of_the_float_model(llama):
    pytest.importorskip("peft")
    memory = needs(llama, "train: {steps: 9, parameters: lora, lora: {rank: 4}}\n").memory
    adapters = memory.weights - size(llama)
    assert 0 < adapters < memory.gradients < size(llama) and memory.teacher == size(llama)


def test_an_optimizer_of_ones_own_is_not_counted(llama):
    found = needs(llama, "train: {steps: 9, optimizer: 'mine:optimizers'}\n")
    assert found.memory.optimizer == 0
    assert said(str(found), "memory.training-uncounted", optimizer="mine:optimizers")


def test_what_trains_nothing_takes_nothing(llama):
    assert needs(llama, "train: {steps: 0}\n") is None


TUTORIAL = (Path(__file__).parents[2] / "docs" / "tutorials" / "seven-billion.md").read_text(encoding="utf-8")
LLAMA_7B = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "vocab_size": 32000}
LLAMA_1B = {
    **{"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "vocab_size": 128256},
    **{"num_attention_heads": 32, "num_key_value_heads": 8, "tie_word_embeddings": True},
}


def gib(shape, command):
    """What ``check`` of a model of that shape says, without what it wants installed."""
    name, *settings = command.replace("--set ", "").split()
    recipe = torchqat.load_recipe(name, settings)
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**shape)).to(getattr(torch, recipe.model.dtype))
    return f"{training_needs(recipe, torchqat.make_plan(model, recipe), model).memory.total / 2**30:.1f}"


def test_the_tutorials_figures_are_those_that_are_counted():
    pytest.importorskip("peft")
    rows = re.findall(r"^\| [^|]* \| `(int4[^`]*)` \| ([\d.]+) \|$", TUTORIAL, re.M)
    assert len(rows) == 5
    assert [gib(LLAMA_7B, command) for command, _ in rows] == [said for _, said in rows]
    (row,) = re.findall(r"^\| Llama 3.2 1B \| 1.2 billion \| (.*) \|$", TUTORIAL, re.M)
    adapters = "--set model.dtype=bfloat16 --set train.parameters=lora"
    commands = [rows[0][0], f"q4-k-m {adapters}", *(rows[place][0] for place in (1, 2, 3))]
    assert [gib(LLAMA_1B, command) for command in commands] == row.split(" | ")


def test_check_says_it(tmp_path, capsys):
    """Of a 7B from its configuration: float32 weights, gradients, two moments, the teacher, and scales beside them."""
    LlamaConfig(**LLAMA_7B).save_pretrained(tmp_path / "7b")
    code, out, err = call(capsys, "check", "int4", "--model", tmp_path / "7b")
    assert code == 0 and said(out, "memory.training", total="126.7 GiB"), err
    _, out, _ = call(capsys, "check", "int4", "--model", tmp_path / "7b", "--json")
    parts = json.loads(out)["training_bytes"]
    assert parts["total"] == sum(parts.values()) / 2 and parts["weights"] == parts["teacher"] == 4 * 6738415616
    _, out, _ = call(capsys, "check", "w8a8", "--model", tmp_path / "7b")
    assert not said(out, "memory.training")
