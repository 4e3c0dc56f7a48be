"""GPTQ and AWQ folders in ONNX Runtime GenAI, in the graph that its own builder makes of them."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime_genai
from serving import log_softmax

# The command that docs/formats.md has. By itself, the builder rounds what is in floating point to 4 bits: the head, a tied
# embedding, layers that were left alone; so it is given a type of node to round, and the one of that type not to.
_BUILDER = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-p", "int4", "-e", "cpu"]
_OPTIONS = ["op_types_to_quantize=Gather", "nodes_to_exclude=/model/embed_tokens/Gather", "shared_embeddings=false"]
# By itself, onnxruntime rounds what enters a product to 8 bits; in float32 its sums can be told from mistakes.
_PLAIN = ["accuracy_level=1"]


class Model:
    """See ``serving.py``."""

    def __init__(self, folder: Path, question: dict):
        made = build(folder, Path("onnxruntime-genai").absolute(), [] if question.get("bench") else _PLAIN)
        self.model = onnxruntime_genai.Model(str(made))

    def logprobs(self, prompt: list[int]) -> np.ndarray:
        generator = self._generator(len(prompt) + 1)
        generator.append_tokens(prompt)
        return log_softmax(generator.get_output("logits")[0])

    def greedy(self, prompt: list[int], count: int) -> list[int]:
        """Token by token, past those that end a text."""
        generator, tokens = self._generator(len(prompt) + count), [*prompt]
        generator.append_tokens(prompt)
        while True:
            tokens.append(int(generator.get_output("logits")[0, -1].argmax()))
            if len(tokens) == len(prompt) + count:
                return tokens[len(prompt) :]
            generator.append_tokens(tokens[-1:])

    def _generator(self, length: int) -> onnxruntime_genai.Generator:
        parameters = onnxruntime_genai.GeneratorParams(self.model)
        parameters.set_search_options(max_length=length)
        return onnxruntime_genai.Generator(self.model, parameters)


def build(folder: Path, made: Path, options: list[str]) -> Path:
    """Makes a folder of ONNX Runtime GenAI, ``made``, of one in a format that its builder reads."""
    paths = ["-i", str(folder), "-o", str(made), "-c", str(made / "cache")]
    command = [*_BUILDER, *paths, "--extra_options", *_OPTIONS, *options]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace")
    if done.returncode != 0:
        raise RuntimeError((done.stderr.strip().splitlines() or ["the builder ended without a word"])[-1])
    return made
