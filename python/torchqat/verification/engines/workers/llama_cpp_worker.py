"""GGUF files in llama.cpp, through llama-cpp-python."""

import os
from pathlib import Path

import llama_cpp
import numpy as np
from llama_cpp import Llama
from serving import log_softmax

# Where it keeps them rounded, llama.cpp would turn keys and values first, which training did not.
os.environ["LLAMA_ATTN_ROT_DISABLE"] = "1"


class Model:
    """See ``serving.py``."""

    def __init__(self, folder: Path, question: dict):
        first = sorted(folder.glob("*.gguf"))[0]
        self.llama = Llama(
            str(first), n_ctx=question["context"], n_batch=512, n_threads=question["threads"],
            n_threads_batch=question["threads"], logits_all=True, verbose=False, **_cache(question["cache"]),
        )  # fmt: skip

    def logprobs(self, prompt: list[int]) -> np.ndarray:
        self.llama.reset()
        self.llama.eval(prompt)
        return log_softmax(self.llama.scores[: len(prompt)])

    def greedy(self, prompt: list[int], count: int) -> list[int]:
        self.llama.reset()
        self.llama.eval(prompt)
        tokens: list[int] = []
        while True:
            tokens.append(int(np.argmax(self.llama.scores[self.llama.n_tokens - 1])))
            if len(tokens) == count:
                return tokens
            self.llama.eval(tokens[-1:])

    def tokenize(self, text: str) -> list[int]:
        return self.llama.tokenize(text.encode(), add_bos=True, special=False)


def _cache(types: list[str]) -> dict:
    """Arguments for a cache of these types of keys and of values, the usual where there are none."""
    if not types:
        return {}
    key, value = (getattr(llama_cpp, f"GGML_TYPE_{name.upper()}") for name in types)
    return {"type_k": key, "type_v": value, "flash_attn": True}  # values are rounded in flash attention alone
