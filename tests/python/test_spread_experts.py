"""Experts that tokens of one process reach and those of another do not, by DDP and FSDP2."""

import os
import re

from launcher import said_by

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
