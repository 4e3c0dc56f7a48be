"""What several processes do together: whatever a batch does not reach, random numbers, the first one's work, the folder."""

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


WORKER = """
import os, sys, torch, torchqat
from torch import nn
from torchqat.data.batch import chunks
from torchqat.layers.prepared import quant_layers
from torchqat.training.processes import all_cores, count, gathered, is_first, processes, rank
from torchqat.training.spread import replicate, without_sync

SPEC = "weight: {dtype: int4, group_size: 8, grid: full, scale: learned}"
INPUT = "input: {dtype: int8, granularity: tensor}"
recipe = torchqat.parse_recipe(f"version: 1\\nlayers: [{{match: '*', {SPEC}, {INPUT}}}]\\n")


class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.experts, self.unused = nn.ModuleList(nn.Linear(32, 32) for _ in range(4)), nn.Linear(32, 32)

    def forward(self, x):
        chosen = x[:, 0].mul(10).long() % 4
        mixed = torch.stack([self.experts[expert](row) for expert, row in zip(chosen.tolist(), x)])
        return {"of": mixed, "pooled": self.unused(x)}


def trained(together):
    torch.manual_seed(0)
    model = torchqat.prepare(Experts(), recipe)
    torchqat.calibrate(model, [torch.randn(16, 32)])
    if together and not is_first():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.detach().fill_(1)  # what another processor would have found
    loss = lambda batch: model(batch)["of"].square().mean()
    loss = replicate(model, loss) if together else loss
    first = gathered(model.state_dict())
    for name, tensor in first[0].items() if together else ():
        assert all(torch.equal(tensor, other[name]) for other in first), name
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    torch.manual_seed(1)
    for _ in range(6):
        batch = torch.rand(4, 32)
        micro_batches = chunks(batch.chunk(count())[rank()], 2) if together else chunks(batch, 4)
        for index, micro_batch in enumerate(micro_batches):
            with without_sync(loss, last=index + 1 == len(micro_batches)):
                (loss(micro_batch) / len(micro_batches)).backward()
        assert model.unused.weight.grad is None
        optimizer.step()
        optimizer.zero_grad()
    return model.state_dict()


with processes():
    alone, together = trained(False), trained(True)
    apart = max((alone[name] - tensor).abs().max().item() for name, tensor in together.items())
    sys.stdout.write(f"{apart:.1e} apart\\n")
    with all_cores():
        inside = torch.get_num_threads()
    sys.stdout.write(f"threads {inside} and {torch.get_num_threads()}\\n")
"""


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


def test_experts_that_no_token_reaches_do_not_wait(tmp_path):
    """Four experts, of which each micro-batch of one row reaches one; and the first process' numbers are dealt out."""
    printed = said_by(WORKER, tmp_path, 2)
    found = re.findall(r"(\S+) apart", printed)
    assert len(found) == 2 and all(float(apart) < 1e-5 for apart in found)
    assert printed.count(f"threads {len(os.sched_getaffinity(0))} and 1") == 2
    assert "find_unused_parameters" not in printed


SPREAD = """
import sys, torch, torchqat
from torch import nn
from torchqat.layers.quant_layer import QuantLayer
from torchqat.layers.sharded import whole
from torchqat.training.processes import count, processes, rank
from torchqat.training.spread import shard


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(32, 32) for _ in range(4))

    def forward(self, x, chosen):
        return x + torch.stack([self.experts[expert](row) for expert, row in zip(chosen.tolist(), x)])


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(2))

    def forward(self, x):
        chosen = x[:, 0].mul(10).long() % 4
        for block in self.blocks:
            x = block(x, chosen)
        return x


def trained(scale, together):
    torch.manual_seed(0)
    weight = f"weight: {{dtype: int4, group_size: 8, grid: full, scale: {scale}}}"
    model = torchqat.prepare(Model(), torchqat.parse_recipe(f"version: 1\\nlayers: [{{match: '*', {weight}}}]\\n"))
    model = shard(model, QuantLayer) if together else model
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    torch.manual_seed(1)
    for _ in range(6):
        batch = torch.rand(4, 32)
        for row in (batch.chunk(count())[rank()] if together else batch).split(1):
            (model(row).square().mean() / (4 // count() if together else 4)).backward()
        optimizer.step()
        optimizer.zero_grad()
    return {name: whole(tensor) for name, tensor in model.state_dict().items()}


with processes():
    for scale in ("minmax", "learned"):
        alone, together = trained(scale, False), trained(scale, True)
        apart = max((alone[name] - tensor).abs().max().item() for name, tensor in together.items())
        sys.stdout.write(f"{apart:.1e} apart\\n")
"""


def test_gradients_of_experts_are_added_to_their_own(tmp_path):
    """FSDP2 adds up what lies at the same place of processes, of which one has reached other experts than the other."""
    found = re.findall(r"(\S+) apart", said_by(SPREAD, tmp_path, 2))
    assert len(found) == 4 and all(float(apart) < 1e-6 for apart in found)


RANDOM = """
import sys, torch, torchqat
from pathlib import Path
from torch import nn
from torchqat.layers.quant_layer import QuantLayer
from torchqat.layers.sharded import whole
from torchqat._library import TrainSection
from torchqat.training.loop import TrainingLoop
from torchqat.training.processes import gathered, processes, rank
from torchqat.training.spread import replicate, shard

folder, strategy = Path(sys.argv[1]), sys.argv[2]
recipe = torchqat.parse_recipe("version: 1\\nlayers: [{match: '*', weight: {dtype: int4, group_size: 8}}]\\n")


class Stop(Exception):
    pass


class Batches:
    def __getitem__(self, step):
        return torch.randn(4, 32, generator=torch.Generator().manual_seed(step))


def run(name, last=4):
    torch.manual_seed(0)
    model = torchqat.prepare(nn.Sequential(nn.ModuleList([nn.Linear(32, 32)])), recipe)
    model.append(nn.Dropout(0.5))
    model.forward = lambda x: model[1](model[0][0](x))
    masks = []
    model[1].register_forward_hook(lambda _m, _x, output: masks.append((output == 0).sum().item()))
    loss = lambda batch: model(batch).square().mean()
    if strategy == "fsdp":
        shard(model, QuantLayer)
    else:
        loss = replicate(model, loss)
    settings = TrainSection()
    settings.steps, settings.batch_size, settings.checkpoint_every, settings.learning_rate = 4, 4, 1, 1e-2

    def on_step(step, figures):
        if step > last:
            raise Stop

    loop = TrainingLoop(model, loss, Batches(), settings, checkpoint=folder / f"{name}.pt", on_step=on_step)
    try:
        loop.run()
    except Stop:
        pass
    return masks, [whole(p.detach()) for p in model.parameters()]


with processes():
    masks, ends = run("whole")
    every = gathered(masks)
    sys.stdout.write(f"differ {len(every) == 1 or all(a != b for a, b in zip(*every[:2]))}\\n")
    run("parts", last=2)
    torch.manual_seed(7)
    after, again = run("parts")
    same = all(torch.equal(one, other) for one, other in zip(ends, again))
    sys.stdout.write(f"same {same and after == masks[2:]}\\n")
"""


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_dropout_differs_between_processes_and_goes_on_to_the_same_bits(strategy, tmp_path):
    printed = said_by(RANDOM, tmp_path, 2, tmp_path, strategy)
    assert printed.count("differ True") == 2 and printed.count("same True") == 2
    for count in (1, 3):  # that were not there draw their own
        said_by(GO_ON, tmp_path, count, tmp_path, strategy)


GO_ON = """
import sys, torch, torchqat
from pathlib import Path
from torch import nn
from torchqat.training.processes import gathered, processes
from torchqat.training.state import load_training

with processes():
    state = load_training(Path(sys.argv[1]) / "whole.pt")
    recipe = torchqat.parse_recipe("version: 1\\nlayers: [{match: '*', weight: {dtype: int4, group_size: 8}}]\\n")
    model = torchqat.prepare(nn.Sequential(nn.ModuleList([nn.Linear(32, 32)])), recipe)
    state.restore(model, random=True)
    drawn = gathered(torch.rand(1).item())
    assert len(set(drawn)) == len(drawn), drawn
"""

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
