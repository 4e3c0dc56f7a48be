"""GGUF files in llama.cpp, through llama-cpp-python."""

from pathlib import Path

import numpy as np
from llama_cpp import Llama


class Model:
    """See ``serving.py``."""

    def __init__(self, folder: Path, question: dict):
        first = sorted(folder.glob("*.gguf"))[0]
        self.llama = Llama(
            str(first), n_ctx=question["context"], n_batch=512, n_threads=question["threads"],
            n_threads_batch=question["threads"], logits_all=True, verbose=False,
        )  # fmt: skip

    def logprobs(self, prompt: list[int]) -> np.ndarray:
        self.llama.reset()
        self.llama.eval(prompt)
        logits = np.asarray(self.llama.scores[: len(prompt)], dtype=np.float64)
        logits -= logits.max(-1, keepdims=True)
        return logits - np.log(np.exp(logits).sum(-1, keepdims=True))

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
