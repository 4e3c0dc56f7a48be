"""Faults, each of which really happens: nothing is lost, and what is said is one sentence."""

import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import torchqat
from command import call
from digests import digests
from forked import Program
from loops import loop_for, settings
from sentences import matches, said, sentence
from torchqat.files import SEAL, load_state, save_state
from torchqat.layers.prepared import quant_layers
from torchqat.runs.locking import locked

RECIPE = """version: 1
data: {calibration: {samples: 4, sequence_length: 32}, evaluation: {samples: 4, sequence_length: 32}}
layers:
  - match: "model.layers.*"
    weight: {dtype: int4, group_size: 32, grid: full, scale: learned}
initialize: {method: gptq}
schedule: [{until: 50%, weight: int6}, {until: 100%, weight: int4}]
train: {steps: 12, batch_size: 2, sequence_length: 32, checkpoint_every: 1, validate_every: 3}
evaluate: {compare: [int4]}
export: [compressed-tensors, safetensors]
"""


@pytest.fixture
def places(tmp_path, model_folder, data_folder):
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return [tmp_path / "recipe.yaml", "--model", model_folder, "--data", data_folder, "--output", tmp_path / "run"]


@pytest.mark.shows(trainer="`torchqat train`", feature="resumed, ends with the same bits")
def test_runs_killed_at_random_moments_end_with_the_same_bits(places, tmp_path, nightly):
    """kill -9 in calibration, training and export, then --resume."""

    def start(name):
        begun = (tmp_path / name / "run.json").is_file()
        arguments = ["-m", "torchqat", "run", *places[:-1], tmp_path / name, *(["--resume"] if begun else [])]
        return Program(arguments, tmp_path, f"{name}-says")

    assert start("whole").wait() == 0
    whole, killed = digests(tmp_path / "whole"), tmp_path / "killed"
    assert len(whole) > 20
    began = time.monotonic()
    assert start("timed").wait() == 0  # imports are not in it, as they are in the first
    seconds, generator, kills = time.monotonic() - began, random.Random(0), 50 if nightly else 4
    while kills:
        run = start("killed")
        time.sleep(generator.uniform(0.0, seconds))
        run.send_signal(signal.SIGKILL)
        if run.wait() == -signal.SIGKILL:
            kills -= 1
        else:
            assert_whole(run, killed, whole)
            shutil.rmtree(killed)
    assert_whole(start("killed"), killed, whole)


def assert_whole(run, folder, whole):
    _, err = run.communicate()
    assert run.returncode == 0, err
    assert digests(folder) == whole
    left = half_written(folder)
    assert not left, f"half written: {left}"


def half_written(folder):
    return [str(path) for path in folder.rglob(".*") if not path.name.endswith(".lock") and path.name != SEAL]


def test_two_runs_in_one_folder(places, tmp_path, capsys):
    with locked(tmp_path / "run"):
        code, _, err = call(capsys, "run", *places)
    assert code == 2 and said(err, "runs.locked", process=os.getpid(), folder=tmp_path / "run")
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [".lock"]
    code, _, err = call(capsys, "train", *places)  # the lock is gone with its holder, and the folder is still empty
    assert code == 0, err


def test_a_folder_that_cannot_be_written_to(places, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    code, _, err = call(capsys, "run", *places[:-1], tmp_path / "file" / "run")
    assert code == 2 and said(err, "runs.no-folder-to-write") and "Traceback" not in err


@contextmanager
def files_of_at_most(size):
    """What a full disk does to whoever writes: the write fails part of the way."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("size", [100, 20_000, 100_000])
def test_a_full_disk(places, tmp_path, capsys, size):
    with files_of_at_most(size):
        code, _, err = call(capsys, "run", *places)
    assert code == 2 and said(err, "checkpoints.not-written") and "Traceback" not in err
    assert not half_written(tmp_path / "run"), "nothing half written stays"
    begun = (tmp_path / "run" / "run.json").is_file()
    code, _, err = call(capsys, "run", *places, *(["--resume"] if begun else []))
    assert code == 0, err


@pytest.mark.parametrize("sixteenths", range(16))
def test_a_checkpoint_that_is_cut_off(sixteenths, tmp_path):
    path = tmp_path / "train.pt"
    save_state(path, {"step": 3, "model": {"weight": torch.randn(64, 64)}, "identity": "x"})
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * sixteenths // 16])
    with pytest.raises(torchqat.UserError, match=matches("training.checkpoint-does-not-load", file=path)):
        load_state(path)
    assert path.read_bytes() == whole[: len(whole) * sixteenths // 16]


@pytest.mark.parametrize("sixteenths", range(16))
def test_an_export_that_is_cut_off(sixteenths, tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(64, 64))
    text = 'version: 1\nlayers: [{match: "*", weight: {dtype: int4, group_size: 32}}]\n'
    model = torchqat.prepare(model, torchqat.parse_recipe(text, "recipe"))
    folder = torchqat.export(model, tmp_path / "out", "safetensors")
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) * sixteenths // 16])
    with pytest.raises(torchqat.UserError, match=matches("checkpoints.safetensors-does-not-load", file=file)):
        torchqat.verify(folder, model)
    with pytest.raises(torchqat.FileError, match=matches("checkpoints.no-safetensors", file=file)):
        torchqat._library.load_checkpoint(str(folder))


def test_a_resumed_run_says_which_checkpoint_is_damaged(places, tmp_path, capsys):
    assert call(capsys, "train", *places)[0] == 0
    path = tmp_path / "run" / "checkpoints" / "train.pt"
    path.write_bytes(path.read_bytes()[:1000])
    code, _, err = call(capsys, "train", *places, "--resume")
    assert code == 2 and said(err, "training.checkpoint-does-not-load", file=path)
    code, _, err = call(capsys, "train", *places)
    assert code == 2 and said(err, "runs.unreadable-state", folder=tmp_path / "run")
    assert call(capsys, "train", *places, "--restart")[0] == 0


# -- memory -----------------------------------------------------------------------------------------------------------

_HUNGRY = """
import resource, sys, torch, torchqat
from loops import loop_for, settings
from torchqat.runs.scratch import new_model
from conftest import Tiny

model = new_model(Tiny, Tiny.vocabulary, seed=0)
loop = loop_for(model, settings(steps=2))
loop.run()  # what libraries set aside once is there
tokens = torch.randint(0, 400, (8, 4096))
loop.batches = [tokens] * 4
loop.settings = settings(steps=4)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 100_000_000, -1))
try:
    loop.run()
except torchqat.UserError as error:
    print(error)
"""


def test_memory_that_runs_out_names_the_layer_and_what_to_lower():
    here = str(Path(__file__).parent)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([here, os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run([sys.executable, "-c", _HUNGRY], capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    printed = done.stdout.strip()
    assert re.match(matches("training.out-of-memory", step=0), printed), printed


def test_other_errors_stay_what_they_are(tiny_llama):
    loop = loop_for(tiny_llama, settings(steps=1))
    loop.loss = lambda batch: torch.ones(2, 3) @ torch.ones(2, 3)
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        loop.run()


# -- numbers that are none --------------------------------------------------------------------------------------------


def test_a_loss_that_is_no_number_says_where_it_began(tiny_llama, tmp_path):
    loop = loop_for(tiny_llama, settings(steps=4, checkpoint_every=1), checkpoint=tmp_path / "train.pt")
    plain = loop.loss

    def loss(batch):
        if loop.batches[3].equal(batch):
            with torch.no_grad():
                tiny_llama.model.layers[1].mlp.up_proj.weight[0, 0] = float("inf")
        return plain(batch)

    loop.loss = loss
    with pytest.raises(torchqat.UserError) as refused:
        loop.run()
    first = sentence("training.first-not-finite", name="model.layers.1.mlp.up_proj.weight")
    kept = sentence("training.resume-from", step=3, file=tmp_path / "train.pt")
    assert said(str(refused.value), "training.loss-not-finite", step=3, details=f"; {first}", kept=f"; {kept}")


def test_a_layer_whose_output_overflows_is_named(tiny_llama):
    loop = loop_for(tiny_llama, settings(steps=1))
    layer = tiny_llama.model.layers[0].self_attn.q_proj
    layer.register_forward_hook(lambda module, inputs, output: output * float("inf"))
    first = matches("training.first-not-finite", name="the output of model.layers.0.self_attn.q_proj")
    with pytest.raises(torchqat.UserError, match=first):
        loop.run()


def test_a_batch_may_be_skipped(tiny_llama):
    before = {name: p.detach().clone() for name, p in tiny_llama.named_parameters()}
    chosen = settings(steps=3)
    chosen.non_finite = "skip"
    seen = []
    loop = loop_for(tiny_llama, chosen, on_step=lambda step, figures: seen.append((figures.get("skipped", 0), step)))
    plain = loop.loss
    loop.loss = lambda batch: plain(batch) * (float("nan") if batch.equal(loop.batches[0]) else 1.0)
    loop.run()
    assert seen == [(1, 1), (0, 2), (0, 3)]
    assert all(torch.isfinite(p).all() for p in tiny_llama.parameters())
    assert any(not torch.equal(p, before[name]) for name, p in tiny_llama.named_parameters())


def test_not_every_batch_may_be_skipped(tiny_llama):
    chosen = settings(steps=30)
    chosen.non_finite = "skip"
    loop = loop_for(tiny_llama, chosen)
    loop.loss = lambda batch: tiny_llama.model.norm.weight.sum() * float("nan")
    skipped = sentence("training.after-skipped", count=10)
    refusal = matches("training.loss-not-finite", loss="nan", step=10, details=f", {skipped}")
    with pytest.raises(torchqat.UserError, match=refusal):
        loop.run()


def test_a_training_that_goes_on_knows_how_many_were_skipped(tiny_llama, tmp_path):
    chosen = settings(steps=30)
    chosen.non_finite, chosen.checkpoint_every = "skip", 6
    refusal = matches("training.loss-not-finite", loss="nan", step=10)
    for _ in range(2):
        loop = loop_for(tiny_llama, chosen, checkpoint=tmp_path / "train.pt")
        loop.loss = lambda batch: tiny_llama.model.norm.weight.sum() * float("nan")
        with pytest.raises(torchqat.UserError, match=refusal):
            loop.run()


def test_a_scale_that_is_no_number_is_named(tiny_llama):
    recipe = torchqat.parse_recipe(RECIPE, "recipe")
    model = torchqat.prepare(tiny_llama, recipe)
    loop = loop_for(model, settings(steps=2))
    name, layer = quant_layers(model)[3]
    layer.weight_scale.register_hook(lambda gradient: gradient)
    loop.optimizers = lambda model, settings: [Poison(layer.weight_scale)]
    refusal = matches("training.scale-not-finite", scale=f"{name}.weight_scale", step=0)
    with pytest.raises(torchqat.UserError, match=refusal):
        loop.run()


class Poison(torch.optim.SGD):
    """Makes a scale NaN where another optimizer would move it."""

    def __init__(self, scale):
        super().__init__([scale], lr=0.0)
        self.param_groups[0].update(initial_lr=0.0, relative=False)
        self.scale = scale

    @torch.no_grad()
    def step(self, closure=None):
        self.scale.fill_(float("nan"))
