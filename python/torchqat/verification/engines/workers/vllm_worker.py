"""Checkpoints in vLLM. A token's log probability is NaN where vLLM did not list it."""

import json
from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig
from vllm import LLM, SamplingParams

# vLLM makes an object of every log probability: of larger vocabularies the likeliest tokens must do.
_MOST_LISTED = 4096


class Model:
    """See ``serving.py``."""

    def __init__(self, folder: Path, question: dict):
        config = json.loads((folder / "config.json").read_text())
        self.vocabulary = AutoConfig.from_pretrained(folder).get_text_config().vocab_size
        self.listed = min(self.vocabulary, _MOST_LISTED)
        stored = config.get("dtype") or config.get("torch_dtype") or "bfloat16"
        self.llm = LLM(
            str(folder), enforce_eager=True, max_model_len=question["context"], skip_tokenizer_init=True,
            dtype="bfloat16" if stored == "float32" else stored, max_logprobs=self.listed, enable_prefix_caching=False,
            **_of_free_memory(),
        )  # fmt: skip

    def logprobs(self, prompt: list[int]) -> np.ndarray:
        sampling = SamplingParams(
            temperature=0,
            max_tokens=1,
            prompt_logprobs=self.listed,
            logprobs=self.listed,
            detokenize=False,
            ignore_eos=True,
        )
        (result,) = self.llm.generate([{"prompt_token_ids": prompt}], sampling, use_tqdm=False)
        table = np.full((len(prompt), self.vocabulary), np.nan, dtype=np.float32)
        # The entry of a prompt's token is how likely it was after those before it.
        for position, step in enumerate([*result.prompt_logprobs[1:], *result.outputs[0].logprobs]):
            for token, found in step.items():
                table[position, token] = found.logprob
        return table

    def greedy(self, prompt: list[int], count: int) -> list[int]:
        sampling = SamplingParams(temperature=0, max_tokens=count, detokenize=False, ignore_eos=True)
        (result,) = self.llm.generate([{"prompt_token_ids": prompt}], sampling, use_tqdm=False)
        return list(result.outputs[0].token_ids)


def _of_free_memory() -> dict:
    """Of a GPU that others use, too, nine tenths of what is free: vLLM alone asks for nine tenths of all."""
    if not torch.cuda.is_available():
        return {}
    free, total = torch.cuda.mem_get_info()
    return {"gpu_memory_utilization": 0.9 * free / total}
