"""What rounding costs a process under FSDP2: of whole weights after they are gathered, and of its rows before.

    torchrun --nproc_per_node 2 benchmarks/fsdp_rounding.py [--rounds 9]

Six layers of 2048 x 2048, INT4 in groups of 128, forward and backward of one row, so that rounding is most of it: processor
time of the first process beyond that of the same without quantization. Each takes its turn.
"""

import argparse
import time

import torch
import torchqat
from common import paired, publish, table
from torch import nn
from torchqat.layers.quant_layer import QuantLayer
from torchqat.training import spread
from torchqat.training.processes import count, is_first, processes

SIZE, LAYERS = 2048, 6
WAYS = ["plain", "whole", "rows"]


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(SIZE, SIZE, bias=False)

    def forward(self, x):
        return torch.tanh(self.inner(x))


def stepper(way: str, scale: str):
    """A function that takes a forward and a backward and returns the seconds that this process computed."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.ModuleList(Block() for _ in range(LAYERS)))
    if way != "plain":
        rule = f"{{match: '*', weight: {{dtype: int4, group_size: 128, grid: full, scale: {scale}}}}}"
        model = torchqat.prepare(model, torchqat.parse_recipe(f"version: 1\nlayers: [{rule}]\n"), method="rtn")
    own, spread._gather_rounded = spread._gather_rounded, spread._gather_rounded if way == "rows" else lambda *_: None
    spread.shard(model, nn.Linear if way == "plain" else QuantLayer)
    spread._gather_rounded = own
    x = torch.randn(1, SIZE)

    def step() -> float:
        begun = time.process_time()
        y = x
        for block in model[0]:
            y = block(y)
        y.square().mean().backward()
        model.zero_grad()
        return time.process_time() - begun

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    rows, figures = [], {}
    with processes():
        for scale in ("minmax", "learned"):
            times = paired({way: stepper(way, scale) for way in WAYS}, "plain", options.rounds)
            plain, whole, own = (times[way].milliseconds for way in WAYS)
            figures[scale] = {"plain": plain, "whole": whole, "rows": own}
            rows.append([scale, f"{plain:.0f} ms", f"{whole - plain:.0f} ms", f"{own - plain:.0f} ms"])
        if is_first():
            body = f"{count()} processes, float32; medians of {options.rounds} rounds.\n\n"
            body += table(["scales", "without quantization", "whole weights, more", "own rows, more"], rows)
            command = f"torchrun --nproc_per_node {count()} benchmarks/fsdp_rounding.py --rounds {options.rounds}"
            publish("fsdp_rounding", "What rounding costs a process under FSDP2", body, figures, command)


if __name__ == "__main__":
    main()
