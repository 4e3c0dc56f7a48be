"""Random numbers of several processes: each draws its own, and an interrupted training goes on with them."""

import pytest
from launcher import said_by

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
