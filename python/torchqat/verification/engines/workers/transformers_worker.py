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
        # The name that this transformers has for it: 5.24 made it shorter.
        name = "cache" if "cache" in inspect.signature(self.model.forward).parameters else "past_key_values"
        step, cache, tokens = torch.tensor([prompt], device=self.device), None, []
        for _ in range(count):
            out = self.model(input_ids=step, use_cache=True, **{name: cache})
            cache, step = out[name], out.logits[:, -1:].argmax(-1)
            tokens.append(int(step))
        return tokens

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
        model = _whole(architecture, folder, options).eval()
    if mixed:
        model(input_ids=torch.zeros(1, 2, dtype=torch.int64))
    return model


def _whole(architecture, folder: Path, options: dict):
    """The model, none of whose weights is made up: a pooling layer that the checkpoint has not is not built."""
    options = {**options, "dtype": "auto", "trust_remote_code": False, "output_loading_info": True}
    model, found = architecture.from_pretrained(folder, **options)
    pools = "add_pooling_layer" in inspect.signature(type(model).__init__).parameters
    if pools and any("pooler" in name for name in found["missing_keys"]):
        model, found = architecture.from_pretrained(folder, add_pooling_layer=False, **options)
    if missing := sorted(found["missing_keys"]):
        raise ValueError(f"it finds no {missing[0]} there, one of {len(missing)} tensors that it would make up")
    return model
