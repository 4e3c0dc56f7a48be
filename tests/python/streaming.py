"""What streamed models are rounded for, and the whole models that they are compared with."""

import torch
import torchqat
from architectures import tokens

# What a streamed model is rounded for, to be compared with the whole one.
GPTQ = "{method: gptq, objective: layer}"
WEIGHT = "{dtype: int4, group_size: 32, grid: full, scale: mse}"
WEIGHT_OF_GGUF = "{dtype: q4_0, scale: mse}"


def forward(model, batch):
    return model(input_ids=batch, use_cache=False)


def whole(folder, settings):
    """The same with the whole model in memory."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    prepared = torchqat.prepare(model, settings)
    return prepared, torchqat.calibrate(prepared, tokens(), forward)


def gguf_bytes(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.gguf")}
