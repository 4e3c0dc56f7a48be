"""Runs a checkpoint in an engine and writes down what it computed.

    python serving.py WORKER QUESTION.json OUT

WORKER is a file beside this one, whose ``Model`` loads a checkpoint. The question and what comes out are described in
``torchqat/verification/engines/question.py``. Writes ``OUT.json`` and ``OUT.npz``.
"""

import importlib
import json
import sys
import time
from pathlib import Path

import numpy as np


def serve(load, question: dict) -> tuple[dict, dict[str, np.ndarray]]:
    """Answers the question with the model that ``load`` makes of it; returns what goes into ``OUT.json`` and ``OUT.npz``."""
    began = time.perf_counter()
    model = load(Path(question["checkpoint"]), question)
    result: dict = {"load_seconds": time.perf_counter() - began}
    arrays = {}
    for index, prompt in enumerate(question["prompts"]):
        arrays[f"logprobs{index}"] = np.asarray(model.logprobs(prompt), dtype=np.float32)
    result["greedy"] = [list(map(int, model.greedy(prompt, question["new_tokens"]))) for prompt in question["prompts"]]
    tokenize = getattr(model, "tokenize", None)  # most are given tokens alone
    result["tokens"] = [tokenize(text) if tokenize else None for text in question.get("texts", [])]
    if question.get("bench"):
        result.update(bench(model, **question["bench"]))
    result["on_gpu"], result["peak_bytes"] = peak_memory()
    return result, arrays


def log_softmax(logits) -> np.ndarray:
    """Log probabilities, float64, over the last dimension."""
    logits = np.asarray(logits, dtype=np.float64)
    logits = logits - logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def bench(model, prompt: list[int], new_tokens: int, repeats: int) -> dict[str, float]:
    """Tokens per second of reading a prompt and of writing after it, the best of ``repeats`` after one that warms up.

    Engines whose ``greedy`` goes over the whole text for each token have a ``write`` that is as fast as they can.
    """
    write = getattr(model, "write", model.greedy)
    prefill, decode = [], []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        write(prompt, 1)
        first = time.perf_counter()
        write(prompt, 1 + new_tokens)
        last = time.perf_counter()
        prefill.append(first - began)
        decode.append((last - first) - (first - began))
    return {
        "prefill_tokens_per_second": len(prompt) / min(prefill[1:]),
        "decode_tokens_per_second": new_tokens / max(min(decode[1:]), 1e-9),
    }


def peak_memory() -> tuple[bool, int]:
    """Whether this process used a GPU through torch, and the most of its memory, else of the host's, that it has held."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized() and torch.cuda.max_memory_reserved():
        return True, torch.cuda.max_memory_reserved()
    return False, host_bytes()


def host_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    return 0


def main(worker: str, question: str, output: str) -> None:
    result, arrays = serve(importlib.import_module(worker).Model, json.loads(Path(question).read_text()))
    np.savez(output + ".npz", **arrays)
    Path(output + ".json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
