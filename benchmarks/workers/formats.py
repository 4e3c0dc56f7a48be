"""How ``benchmarks/block_floats.py`` calls a peer, in an environment that has it:

    PYTHON benchmarks/workers/PEER.py MODEL TOKENS FORMAT

MODEL is the folder of a causal language model. TOKENS is JSON with rows of tokens, ``calibration`` and ``evaluation``.
FORMAT names the weights' and, after a colon, the inputs' type. The last line that is printed is JSON: what ``judge.py``
finds of the peer's own model in memory, and the ``seconds`` that quantizing took.
"""

import json
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from judge import judge


def main(quantize) -> None:
    """``quantize(model, rows, weights, inputs)`` gives the model that is judged."""
    from transformers import AutoModelForCausalLM

    folder, tokens, format = sys.argv[1:4]
    torch.manual_seed(0)
    rows = json.loads(Path(tokens).read_text())
    model, float_model = (AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval() for _ in range(2))
    begun = time.monotonic()
    weights, _, inputs = format.partition(":")
    model = quantize(model, rows["calibration"], weights, inputs).eval()
    seconds = time.monotonic() - begun
    print(json.dumps({**judge(model, float_model, rows["evaluation"]), "seconds": seconds}))
