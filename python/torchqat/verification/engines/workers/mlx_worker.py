"""mlx-lm folders in MLX, on whatever it runs on: Apple's GPUs, NVIDIA's, or a CPU."""

from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load_model


class Model:
    """See ``serving.py``."""

    def __init__(self, folder: Path, question: dict):
        self.model, _ = load_model(folder)

    def logprobs(self, prompt: list[int]) -> np.ndarray:
        logits = self.model(mx.array([prompt]))[0].astype(mx.float32)
        return np.array(logits - mx.logsumexp(logits, axis=-1, keepdims=True))

    def greedy(self, prompt: list[int], count: int) -> list[int]:
        """With what the model keeps of the text."""
        kept, tokens = make_prompt_cache(self.model), [*prompt]
        for _ in range(count):
            logits = self.model(mx.array([tokens[-1:] if len(tokens) > len(prompt) else prompt]), cache=kept)
            tokens.append(int(mx.argmax(logits[0, -1])))
        return tokens[len(prompt) :]
