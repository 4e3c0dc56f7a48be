"""``train.optimizer``: what each name trains, that it resumes to the same bits, what it takes, and what is refused."""

import copy
import json
from importlib.util import find_spec

import pytest
import torch
import torchqat
from command import call
from loops import loop_for, settings
from sentences import matches, said
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from torchqat.training import checks, other_optimizers
from torchqat.training.memory import training_memory
from torchqat.training.optimizers import fine_tuning_optimizers, owner_of_scales

RECIPE = """version: 1
layers: [{match: "model.layers.*", weight: {dtype: int4, group_size: 16, scale: learned}}]
schedule: [{until: 40%, weight: int8}, {until: 100%, weight: int4}]
"""
RECIPE_OBJECT = torchqat.parse_recipe(RECIPE)
EIGHT_BIT = [name for name in ("bitsandbytes", "torchao") if find_spec(name)]
OWN = """
import torch

class Lion(torch.optim.Optimizer):
    def __init__(self, groups):
        super().__init__(groups, {"lr": 1e-4, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                average = self.state[p].setdefault("average", torch.zeros_like(p))
                p.add_(torch.sign(0.9 * average + 0.1 * p.grad), alpha=-group["lr"])
                average.mul_(0.99).add_(p.grad, alpha=0.01)

seen = []

def lion(groups, settings):
    seen.append((groups, settings))
    return Lion(groups)

def several(groups, settings):
    return [Lion(groups[:2]), torch.optim.SGD(groups[2:])]

def halves(groups, settings):
    return [Lion(groups[:-1]), Lion(groups[-1:])]

def nothing(groups, settings):
    return None

def a_part(groups, settings):
    return Lion(groups[:1])

def of_scales(groups, settings):
    scales = [group for group in groups if group["relative"]]
    assert scales, "there must be scales"
    return Lion(groups)
"""


def in_8_bits(needed, here):
    return pytest.param("adamw_8bit", marks=pytest.mark.skipif(not here, reason=f"{needed} is not installed"))


NAMES = ["adamw", "muon", "sgd", "own_optimizers:lion", in_8_bits("bitsandbytes or torchao", EIGHT_BIT)]


@pytest.fixture(autouse=True)
def own(tmp_path, monkeypatch):
    (tmp_path / "own_optimizers.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)


def prepared(tiny_llama):
    return torchqat.prepare(copy.deepcopy(tiny_llama), RECIPE_OBJECT)


class Killed(Exception):
    pass


def train(model, folder, stop=None, **values):
    torch.manual_seed(9)

    def on_step(step, _figures):
        if step == stop:
            raise Killed

    return loop_for(
        model, settings(steps=8, checkpoint_every=3, learning_rate=1e-3, scale_learning_rate=1e-3, **values),
        schedule=lambda optimizer: torchqat.Schedule(model, RECIPE_OBJECT, 8, optimizer),
        checkpoint=folder / "train.pt", on_step=on_step,
    ).run().state_dict()  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_a_run_that_died_goes_on_with_the_same_bits(name, dtype, tiny_llama, tmp_path):
    """Moments and, of a model of 16 bits, masters are in its checkpoints."""
    tiny_llama = tiny_llama.to(dtype)
    whole = train(prepared(tiny_llama), tmp_path / "whole", optimizer=name)
    with pytest.raises(Killed):
        train(prepared(tiny_llama), tmp_path / "parts", stop=5, optimizer=name)
    resumed = train(prepared(tiny_llama), tmp_path / "parts", optimizer=name)
    assert whole.keys() == resumed.keys() and all(torch.equal(whole[key], resumed[key]) for key in whole)
    before = prepared(tiny_llama).state_dict()
    moved = [key for key in before if not torch.equal(whole[key], before[key])]
    assert any("weight_scale" in key for key in moved) and any(key.endswith("q_proj.weight") for key in moved)


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_is_moved_once(name, tiny_llama):
    model = prepared(tiny_llama)
    optimizers = fine_tuning_optimizers(model, settings(optimizer=name))
    moved = [id(p) for o in optimizers for group in o.param_groups for p in group["params"]]
    assert sorted(moved) == sorted(map(id, model.parameters()))
    assert all({"initial_lr", "relative"} <= set(group) for o in optimizers for group in o.param_groups)


def test_muon_moves_the_matrices_of_blocks(tiny_llama):
    model = prepared(tiny_llama)
    muon, adamw = fine_tuning_optimizers(model, settings(optimizer="muon", weight_decay=0.1))
    names = {id(p): name for name, p in model.named_parameters()}
    inside = {names[id(p)] for group in muon.param_groups for p in group["params"]}
    assert inside == {n for n, p in model.named_parameters() if n.endswith("_proj.weight")}
    assert muon.param_groups[0]["weight_decay"] == 0.1 and type(adamw) is torch.optim.AdamW
    assert owner_of_scales([muon, adamw], model) is adamw
    net = nn.Sequential(nn.Embedding(8, 4), nn.Linear(4, 3))
    muon, adamw = fine_tuning_optimizers(net, settings(optimizer="muon"))
    assert [p for group in muon.param_groups for p in group["params"]] == [net[1].weight]


@pytest.mark.parametrize("name", [name for name in NAMES if name != "sgd"])
def test_scales_move_by_a_share_of_their_size(name, tiny_llama, tmp_path):
    """Where a step has the size of the rate: not with sgd, whose steps are the gradient times the rate and the size."""
    model = prepared(tiny_llama)
    before = {}

    def schedule(optimizer):
        made = torchqat.Schedule(model, RECIPE_OBJECT, 100, optimizer)
        before.update({n: p.detach().clone() for n, p in model.named_parameters() if n.endswith("weight_scale")})
        return made

    rates = {"learning_rate": 1e-6, "scale_learning_rate": 1e-2, "optimizer": name}
    loop_for(model, settings(steps=1, **rates), schedule=schedule).run()
    for key, scale in before.items():
        moved = (model.get_parameter(key).detach() - scale).abs()
        assert moved.max() == pytest.approx(1e-2 * scale.abs().mean().item(), rel=1e-2), key


def test_a_function_is_given_groups_and_settings(tiny_llama):
    model, section = prepared(tiny_llama), settings(optimizer="own_optimizers:lion", learning_rate=0.25)
    fine_tuning_optimizers(model, section)
    import own_optimizers

    groups, given = own_optimizers.seen[-1]
    assert given is section and groups[0]["lr"] == 0.25 and groups[-1]["relative"]
    assert len(fine_tuning_optimizers(model, settings(optimizer="own_optimizers:several"))) == 2


def test_functions_that_make_none_are_refused(tiny_llama):
    model = prepared(tiny_llama)
    with pytest.raises(torchqat.UserError, match=matches("training.no-optimizer", what="NoneType")):
        fine_tuning_optimizers(model, settings(optimizer="own_optimizers:nothing"))
    with pytest.raises(torchqat.UserError, match=matches("training.not-every-parameter")):
        fine_tuning_optimizers(model, settings(optimizer="own_optimizers:a_part"))
    halves = fine_tuning_optimizers(model, settings(optimizer="own_optimizers:halves"))
    with pytest.raises(torchqat.UserError, match=matches("training.scales-shared", count=2)):
        owner_of_scales(halves, model)


@pytest.mark.parametrize("command", ["check", "train"])
def test_a_function_is_tried_before_anything_is_paid_for(
    command, arguments, recipe_file, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("torchqat.runs.run.calibrate", None)  # which nothing may reach
    text = recipe_file.read_text().replace("train: {", "train: {optimizer: own_optimizers:of_scales, ")
    recipe_file.write_text(text.replace("scale: learned", "scale: mse") + "initialize: {method: gptq}\n")
    given = arguments[:3] if command == "check" else arguments
    code, _, err = call(capsys, command, *given)
    says = {"function": "own_optimizers:of_scales", "error": "AssertionError", "what": "there must be scales"}
    assert code == 2 and said(err, "training.optimizer-raised", **says)
    assert not (tmp_path / "run").exists()
    recipe_file.write_text(text)
    assert call(capsys, "check", *arguments[:3])[0] == 0
    recipe_file.write_text(text.replace("train: {", "train: {control: true, "))  # a float model has no scales
    code, _, err = call(capsys, "check", *arguments[:3])
    assert code == 2 and said(err, "training.optimizer-raised", **says)


def recipe_of(model="{dtype: float32}", train=""):
    return torchqat.parse_recipe(RECIPE.replace("learned", "mse") + f"model: {model}\ntrain: {{steps: 2, {train}}}\n")


def test_a_check_counts_for_another_machine(arguments, recipe_file, capsys, monkeypatch):
    """What is not installed where a recipe is only checked is a note; whoever trains needs it."""
    monkeypatch.setattr(other_optimizers, "find_spec", lambda name: None)
    setting = ("--set", "train.optimizer=adamw_8bit")
    code, out, err = call(capsys, "check", *arguments[:3], *setting)
    assert code == 0, err
    assert said(out, "training.no-8-bit")
    full = json.loads(call(capsys, "check", *arguments[:3], "--json")[1])["training_bytes"]
    found = json.loads(call(capsys, "check", *arguments[:3], *setting, "--json")[1])["training_bytes"]
    assert 0 < found["optimizer"] < full["optimizer"]
    code, _, err = call(capsys, "train", *arguments, *setting)
    assert code == 2 and said(err, "training.no-8-bit")


def test_what_cannot_be_trained_is_said_before(monkeypatch):
    monkeypatch.setattr(other_optimizers, "find_spec", lambda name: None)
    with pytest.raises(torchqat.UserError, match=matches("training.no-8-bit")):
        checks.check_training(recipe_of(train="optimizer: adamw_8bit"))
    with pytest.raises(torchqat.UserError, match=matches("training.float16-without-masters")):
        checks.check_training(recipe_of("{dtype: float16}", "masters: model"))
    with pytest.raises(torchqat.UserError, match="train.optimizer must name a function"):
        checks.check_training(recipe_of(train="optimizer: own_optimizers:absent"))
    checks.check_training(recipe_of("{dtype: float16}"))
    monkeypatch.setattr(checks, "count", lambda: 2)
    checks.check_training(recipe_of("{dtype: bfloat16}"))  # ddp
    with pytest.raises(torchqat.UserError, match=matches("training.whole-weights", optimizer="muon")):
        checks.check_training(recipe_of(train="optimizer: muon, strategy: fsdp"))
    with pytest.raises(torchqat.UserError, match=matches("training.masters-spread", dtype="bfloat16")):
        checks.check_training(recipe_of("{dtype: bfloat16}", "strategy: fsdp"))
    checks.check_training(recipe_of("{dtype: bfloat16}", "strategy: fsdp, masters: model"))


def held(tensors):
    return sum(t.numel() * t.element_size() for t in tensors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("masters", ["float32", "model"])
@pytest.mark.parametrize("name", ["adamw", "muon", "sgd", in_8_bits("bitsandbytes", "bitsandbytes" in EIGHT_BIT)])
def test_what_it_takes_is_what_it_holds(name, masters, dtype, tiny_llama):
    model = prepared(tiny_llama.to(dtype))
    counted = training_memory(model, optimizer=name, masters=masters)
    seen = {}

    def look(optimizer, *_):
        own = [p for group in optimizer.param_groups for p in group["params"]]
        state = [v for p in own for k, v in optimizer.state[p].items() if "step" not in k and "qmap" not in k]
        seen[id(optimizer)] = held(p.grad for p in own), held(state)

    hook = register_optimizer_step_post_hook(look)
    loop = loop_for(model, settings(steps=1, optimizer=name, masters=masters))
    loop.run()
    hook.remove()
    assert counted.gradients == sum(gradients for gradients, _ in seen.values())
    assert counted.optimizer == sum(state for _, state in seen.values())
    assert counted.masters == held(loop.moving.masters.state_dict().values())
    assert counted.masters == (4 * sum(p.numel() for p in model.parameters() if p.dtype == dtype) if (
        masters == "float32" and dtype == torch.bfloat16) else 0)  # fmt: skip


def test_states_of_others_are_not_known(tiny_llama):
    with pytest.raises(torchqat.UserError, match=matches("training.states-not-known", optimizer="own_optimizers:lion")):
        training_memory(tiny_llama, optimizer="own_optimizers:lion")


def test_another_optimizer_is_another_run(tiny_llama):
    from torchqat.runs.identity import meaning

    kinds = [meaning(recipe_of(train=train)) for train in ("", "optimizer: muon", "masters: model")]
    assert kinds[0]["train.optimizer"] == "adamw" and kinds[1]["train.optimizer"] == "muon"
    assert kinds[0]["train.masters"] == "float32" and kinds[2]["train.masters"] == "model"
