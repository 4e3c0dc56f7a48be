"""Checkpoints as transformers loads them: compressed-tensors dense, GPTQ and AWQ by GPTQModel's kernels for CPUs."""

import inspect
import json
import warnings
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import torch


class Model:
    """See ``serving.py``."""

    def __init__(self, folder: Path, question: dict):
        self.model = load(folder)
        if not hasattr(self.model, "hf_device_map"):  # kernels for CPUs stay there
            self.model.to(question.get("device", "cpu"))
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


def load(folder: Path):
    """The checkpoint with dense weights and unquantized inputs.

    transformers can make compressed-tensors weights dense while it loads them, but then takes one config group for all
    layers. Checkpoints of mixed precision are loaded packed instead and become dense in their first forward, which happens
    here; so are those that it cannot make dense, such as of layers that it also knows as one with others.
    """
    settings = json.loads((folder / "config.json").read_text())
    config = settings.get("quantization_config") or {}
    if config.get("quant_method") != "compressed-tensors":
        return _loaded(folder, settings, {"device_map": "cpu"} if config.get("quant_method") in ("gptq", "awq") else {})
    ignored = set(config.get("ignore", []))
    groups = [group for group in config["config_groups"].values() if not set(group["targets"]) <= ignored]
    if len(groups) == 1:
        from transformers.utils.quantization_config import CompressedTensorsConfig

        # What older ones call not to run compressed; a name that they do not know they would ignore.
        known = "dequantize" in inspect.signature(CompressedTensorsConfig.__init__).parameters
        dense = {"dequantize": True} if known else {"run_compressed": False}
        try:
            return _loaded(folder, settings, {"quantization_config": CompressedTensorsConfig(**dense)})
        except Exception as error:
            return _made_dense(_loaded(folder, settings, {}, error))
    return _made_dense(_loaded(folder, settings, {}))


def _loaded(folder: Path, settings: dict, options: dict, failed: Exception | None = None):
    """``failed`` is what to raise, if this fails as well."""
    import transformers

    named = (settings.get("architectures") or [""])[0]
    architecture = getattr(transformers, named, transformers.AutoModelForCausalLM)
    with warnings.catch_warnings(), _no_weight_looked_for():
        warnings.filterwarnings("ignore", message="You passed `quantization_config`")  # it is what we mean to do
        try:
            return _whole(architecture, folder, options).eval()
        except Exception as error:
            raise failed or error from error


@contextmanager
def _no_weight_looked_for():
    """transformers initializes what a checkpoint lacks, and architectures look for weights of layers that have packed ones.

    Those could not be looked into at all; that users cannot load such a checkpoint in this way is said where it is written
    (``checkpoints/formats/loads.py``). Nothing that lacks a weight stays unseen: ``_whole`` asks for missing keys.
    """
    import transformers

    own = transformers.PreTrainedModel._initialize_weights

    def initialize(self, module, *rest, **options):
        with suppress(AttributeError):
            own(self, module, *rest, **options)

    transformers.PreTrainedModel._initialize_weights = initialize
    try:
        yield
    finally:
        transformers.PreTrainedModel._initialize_weights = own


def _made_dense(model):
    """NVFP4 comes out in bfloat16, which holds its numbers: beside others in float32 no product could be computed."""
    own = model.dtype
    with torch.autocast("cpu", torch.bfloat16):
        model(input_ids=torch.zeros(1, 2, dtype=torch.int64))
    for module in model.modules():
        weight = module._parameters.get("weight") if hasattr(module, "quantization_scheme") else None
        if weight is not None and weight.is_floating_point() and weight.dtype != own:
            del module.weight  # else the numbers are put into the tensor that is there
            module.weight = torch.nn.Parameter(weight.to(own), requires_grad=False)
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
