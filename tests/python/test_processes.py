"""What several processes do together: the first one's work, the cores, the folder."""

import json
import os
import re

import pytest
import torch
import transformers
from conftest import BERT
from forked import Program
from launcher import said_by
from sentences import matches
from torchqat.files import load_state
from torchqat.training import processes as module

ENCODER = """version: 1
model: {kind: sentence_encoder}
layers: [{match: blocks, weight: {dtype: int4, group_size: 32, scale: learned}}]
data: {calibration: {samples: 4, sequence_length: 32}, evaluation: {samples: 8, sequence_length: 32}}
train: {steps: 4, batch_size: 4, gradient_accumulation: 2, sequence_length: 32, checkpoint_every: 4, validate_every: 0MORE}
INITIALIZE
"""


@pytest.fixture
def encoder(tmp_path, tokenizer):
    """As ``AutoModel`` loads it: with a pooler, which the loss never reaches."""
    folder = tmp_path / "encoder"
    transformers.BertModel(transformers.BertConfig(**BERT)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "modules.json").write_text("[]")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    data = tmp_path / "sentences.jsonl"
    data.write_text("".join(json.dumps({"text": f"Function {i} adds {i} to its argument."}) + "\n" for i in range(80)))

    def train(processes, more="", initialize=""):
        recipe, output = tmp_path / "recipe.yaml", tmp_path / f"run-{processes}"
        recipe.write_text(ENCODER.replace("MORE", more).replace("INITIALIZE", initialize))
        asked = ["--model", folder, "--data", data, "--output", output]
        program = Program(["-m", "torchqat", "train", recipe, *asked], tmp_path, count=processes)
        _, err = program.communicate(timeout=200)
        assert program.returncode == 0, err[-3000:]
        return load_state(output / "checkpoints" / "train.pt")

    return train


@pytest.mark.parametrize("initialize", ["", "initialize: {method: gptq}"])
def test_an_encoder_with_a_pooler_gives_the_bits_of_one_process(encoder, initialize):
    """Calibration by the first process alone, on all cores, is dealt out."""
    alone, together = (encoder(processes, initialize=initialize)["model"] for processes in (1, 2))
    assert any("pooler" in name for name in alone)
    for name, tensor in alone.items():
        assert torch.equal(tensor, together[name]), name


CALIBRATED = """
import hashlib, sys, torchqat
from pathlib import Path
from torchqat.layers.quant_layer import QuantLayer
from torchqat.layers.sharded import whole
from torchqat.runs import run as module
from torchqat.runs.progress import Progress
from torchqat.training.processes import processes, rank
from torchqat.training.spread import replicate, shard

calls, calibrate = [], module.calibrate
module.calibrate = lambda *given: calls.append(given) or calibrate(*given)

def bits(model):
    tensors = [whole(p.detach()) for p in model.parameters()] + list(model.buffers())
    return hashlib.sha256(b"".join(t.contiguous().numpy().tobytes() for t in tensors if not t.is_meta)).hexdigest()

with processes():
    recipe = torchqat.load_recipe(sys.argv[1])
    recipe.model.path, recipe.data.train = sys.argv[2:4]
    run = module.Run(recipe, Path(sys.argv[4]), Progress())
    model = run.prepared(run.plan)
    before = bits(model)
    if recipe.train.strategy == "fsdp":
        shard(model, QuantLayer)
    else:
        replicate(model, lambda batch: None)
    sys.stdout.write(f"{rank()} {len(calls)} {before} {bits(model)}\\n")
"""


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_the_first_process_alone_calibrates_and_all_hold_its_bits(strategy, tmp_path, model_folder, data_folder):
    recipe = tmp_path / "recipe.yaml"
    given = "weight: {dtype: int4, group_size: 32, scale: mse}, input: {dtype: int8, granularity: tensor, scale: mse}"
    recipe.write_text(
        f"version: 1\nlayers: [{{match: 'model.layers.*', {given}}}]\ninitialize: {{method: gptq}}\n"
        "data: {evaluation: {samples: 4, sequence_length: 32}, calibration: {samples: 4, sequence_length: 32}}\n"
        f"train: {{strategy: {strategy}, sequence_length: 32, steps: 2}}\n"
    )
    printed = said_by(CALIBRATED, tmp_path, 2, recipe, model_folder, data_folder, tmp_path / "run")
    lines = [line.split() for line in printed.splitlines() if re.fullmatch(r"[01] \d \w{64} \w{64}", line)]
    (_, first, own, after), (_, second, others, dealt) = sorted(lines)
    assert (first, second) == ("1", "0")
    assert after == dealt and own != others


@pytest.mark.parametrize(
    "quota, cores", [("max 100000", 8), ("250000 100000", 3), ("900000 100000", 8), ("5000 100000", 1), ("", 8)]
)
def test_a_container_has_the_cores_of_its_quota(quota, cores, tmp_path, monkeypatch):
    (tmp_path / "cpu.max").write_text(quota)
    monkeypatch.setattr(module, "_QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(8))
    assert module._cores() == cores
    monkeypatch.setattr(module, "_QUOTA", tmp_path / "none")
    assert module._cores() == 8


FOLDERS = """
import sys
from pathlib import Path
from torchqat.errors import UserError
from torchqat.runs import shared_folder
from torchqat.training.processes import processes, rank

shared_folder._PATIENCE = 0.5
with processes():
    shared_folder.check_shared(Path(sys.argv[1]))
    own = Path(sys.argv[1]) / f"{rank()}"
    own.mkdir()
    try:
        shared_folder.check_shared(own)
    except UserError as error:
        sys.stdout.write(f"{error}\\n")
"""


def test_a_folder_that_processes_do_not_share_is_said(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    printed = said_by(FOLDERS, tmp_path, 2, folder)
    assert len(re.findall(matches("runs.not-shared"), printed)) == 2
    assert sorted(path.name for path in folder.rglob("*")) == ["0", "1"]
