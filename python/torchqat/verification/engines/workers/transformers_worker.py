"""Checkpoints as transformers loads them: compressed-tensors dense, GPTQ and AWQ by GPTQModel's kernels for CPUs."""

import inspect
import json
import warnings
from pathlib import Path

import numpy as np
import torch


class Model:
    """See ``serving.py``."""

    def __init__(self, folder: Path, question: dict):
        self.model = load(folder)
        self.device = next(self.model.parameters()).device

    @torch.no_grad()
    def logprobs(self, prompt: list[int]) -> np.ndarray:
        logits = self.model(input_ids=torch.tensor([prompt], device=self.device), use_cache=False).logits[0]
        return torch.log_softmax(logits.float(), -1).cpu().numpy()

    @torch.no_grad()
    def greedy(self, prompt: list[int], count: int) -> list[int]:
        """Over the whole text for each token: what architectures keep of it has many names, and some keep nothing."""
        tokens: list[int] = []
        for _ in range(count):
            text = torch.tensor([[*prompt, *tokens]], device=self.device)
            tokens.append(int(self.model(input_ids=text, use_cache=False).logits[0, -1].argmax()))
        return tokens

    @torch.no_grad()
    def write(self, prompt: list[int], count: int) -> list[int]:
        """As whoever serves the model would, with what its architecture keeps of the text."""
        from transformers import GenerationConfig

        self.model.generation_config = GenerationConfig(do_sample=False, pad_token_id=0)
        text = torch.tensor([prompt], device=self.device)
        exactly = {"max_new_tokens": count, "min_new_tokens": count}
        found = self.model.generate(text, attention_mask=torch.ones_like(text), **exactly)
        return found[0, len(prompt) :].tolist()

    def tokenize(self, text: str) -> None:
        return None


def load(folder: Path):
    """The checkpoint with dense weights and unquantized inputs.

    transformers can make compressed-tensors weights dense while it loads them, but then takes one config group for all
    layers. Checkpoints of mixed precision are loaded packed instead and become dense in their first forward, which happens
    here.
    """
    import transformers

    settings = json.loads((folder / "config.json").read_text())
    config = settings.get("quantization_config") or {}
    named = (settings.get("architectures") or [""])[0]
    architecture = getattr(transformers, named, transformers.AutoModelForCausalLM)
    mixed = len(config.get("config_groups", {})) > 1
    options = {}
    if config.get("quant_method") == "compressed-tensors" and not mixed:
        from transformers.utils.quantization_config import CompressedTensorsConfig

        # What older ones call not to run compressed; a name that they do not know they would ignore.
        known = "dequantize" in inspect.signature(CompressedTensorsConfig.__init__).parameters
        dense = {"dequantize": True} if known else {"run_compressed": False}
        options = {"quantization_config": CompressedTensorsConfig(**dense)}
    elif config.get("quant_method") in ("gptq", "awq"):
        options = {"device_map": "cpu"}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="You passed `quantization_config`")  # it is what we mean to do
        model = architecture.from_pretrained(folder, dtype="auto", trust_remote_code=False, **options).eval()
    if mixed:
        model(input_ids=torch.zeros(1, 2, dtype=torch.int64))
    return model
