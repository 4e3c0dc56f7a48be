"""GGUF files in OpenVINO, in the graph that OpenVINO GenAI makes of them.

GenAI's own pipeline gives no log probabilities, so that its graph is run as it stands.
"""

from pathlib import Path

import numpy as np
import openvino
import openvino_genai
from serving import log_softmax

# By itself, OpenVINO rounds what enters a product, and its cache, to 8 bits; in float32 its sums can be told from mistakes.
_PLAIN = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}


class Model:
    """See ``serving.py``."""

    def __init__(self, folder: Path, question: dict):
        (file,) = folder.glob("*.gguf")
        link = Path("openvino", "model.gguf")  # GenAI writes its graph beside the file that it is given
        link.parent.mkdir()
        link.symlink_to(file)
        openvino_genai.LLMPipeline(str(link), "CPU", enable_save_ov_model=True)
        settings = {} if question.get("bench") else _PLAIN
        graph = openvino.Core().read_model(link.with_name("openvino_model.xml"))
        compiled = openvino.compile_model(graph, "CPU", {**settings, "INFERENCE_NUM_THREADS": question["threads"]})
        self.request, self.read = compiled.create_infer_request(), 0

    def logprobs(self, prompt: list[int]) -> np.ndarray:
        self._reset()
        return log_softmax(self._logits(prompt))

    def greedy(self, prompt: list[int], count: int) -> list[int]:
        """With what the graph keeps of the text."""
        self._reset()
        logits, tokens = self._logits(prompt), []
        while True:
            tokens.append(int(logits[-1].argmax()))
            if len(tokens) == count:
                return tokens
            logits = self._logits(tokens[-1:])

    def _reset(self) -> None:
        self.request.reset_state()
        self.read = 0

    def _logits(self, tokens: list[int]) -> np.ndarray:
        """After each of ``tokens``, which follow what was read since the last reset."""
        past, self.read = self.read, self.read + len(tokens)
        inputs = {
            "input_ids": np.array([tokens], dtype=np.int64),
            "attention_mask": np.ones((1, self.read), dtype=np.int64),
            "position_ids": np.arange(past, self.read, dtype=np.int64)[None],
            "beam_idx": np.zeros(1, dtype=np.int32),
        }
        return self.request.infer(inputs)["logits"][0]
