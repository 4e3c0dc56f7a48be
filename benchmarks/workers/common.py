"""How a peer is called, in an environment that has it:

    PYTHON benchmarks/workers/PEER.py MODEL TOKENS BITS GROUP METHOD OUTPUT

MODEL is the folder of a causal language model or of an encoder. TOKENS holds ``calibration``, a list of int64
``[batch, sequence]``, as ``torch.save`` writes it. OUTPUT becomes the state of the float model with the rounded weights in
it, dense and in float32; the last line that is printed is JSON with the ``seconds`` that calibration took, loading and
writing apart; those of the processor in all, ``processor`` by the program and ``system`` by the kernel for it, and the most
memory, ``megabytes``, both before anything was written.
"""

import json
import os
import resource
import sys
from pathlib import Path

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch


def is_encoder(folder: str) -> bool:
    architectures = json.loads((Path(folder) / "config.json").read_text())["architectures"]
    return not architectures[0].endswith("ForCausalLM")


def load(folder: str):
    from transformers import AutoModel, AutoModelForCausalLM

    kind = AutoModel if is_encoder(folder) else AutoModelForCausalLM
    return kind.from_pretrained(folder, dtype=torch.float32).eval()


def most_memory() -> float:
    """Megabytes that this program had at most: what getrusage says begins with those of the process that started it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def main(quantize) -> None:
    folder, tokens, bits, group, method, output = sys.argv[1:7]
    torch.manual_seed(0)
    rows = [row.tolist() for batch in torch.load(tokens)["calibration"] for row in batch]
    state, seconds = quantize(folder, rows, int(bits), int(group), method)
    used = resource.getrusage(resource.RUSAGE_SELF)
    torch.save({name: tensor.detach().float().cpu() for name, tensor in state.items()}, output)
    figures = {"processor": used.ru_utime, "system": used.ru_stime, "megabytes": most_memory()}
    print(json.dumps({"seconds": seconds, **figures}))
