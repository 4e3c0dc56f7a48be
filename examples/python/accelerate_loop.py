"""Quantization-aware training in a loop of Accelerate's: gradient accumulation, bfloat16, as many processes as there are.

    pip install accelerate && accelerate launch examples/python/accelerate_loop.py

A small Llama over bytes learns this folder's source in full precision, then again at 4 bits to say what it said before.
"""

import argparse
import copy
from pathlib import Path

import torch
import torchqat
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader
from torchqat.losses import cross_entropy, forward_kl
from transformers import LlamaConfig, LlamaForCausalLM

RECIPE = """
version: 1
layers:
  - match: "model.layers.*"
    weight: {dtype: int4, group_size: 32, grid: full, scale: learned}
schedule:
  - {until: 25%, weight: int8}
  - {until: 100%, weight: int4}
train: {learning_rate: 5.0e-4}
"""
LENGTH = 128


def windows() -> list[Tensor]:
    """Bytes of the examples, cut into sequences."""
    text = b"".join(file.read_bytes() for file in sorted(Path(__file__).parent.glob("*.py")))
    return list(torch.tensor(list(text)).split(LENGTH)[:-1])


def float_model(data: list[Tensor], steps: int) -> LlamaForCausalLM:
    """A model in full precision, the same on every process."""
    torch.manual_seed(0)
    settings = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=256, **settings))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for step in range(steps):
        rows = torch.stack([data[(8 * step + i) % len(data)] for i in range(8)])
        cross_entropy(model(input_ids=rows).logits, rows).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def main(steps: int) -> None:
    accelerator = Accelerator(gradient_accumulation_steps=2, mixed_precision="bf16")
    data = windows()
    teacher = float_model(data, steps).requires_grad_(False)
    recipe = torchqat.parse_recipe(RECIPE)

    model = torchqat.prepare(copy.deepcopy(teacher).requires_grad_(True), recipe)
    optimizer = torch.optim.AdamW(torchqat.parameter_groups(model, recipe))  # learned scales at a rate of their own
    schedule = torchqat.Schedule(model, recipe, steps, optimizer)  # before Accelerate wraps them
    loader = DataLoader(data, batch_size=4, shuffle=True)
    teacher, wrapped, optimizer, loader = teacher.to(accelerator.device), *accelerator.prepare(model, optimizer, loader)

    while schedule.current_step < steps:
        for batch in loader:
            with accelerator.accumulate(wrapped):
                logits, wanted = wrapped(input_ids=batch).logits, teacher(input_ids=batch).logits
                loss = forward_kl(logits, wanted)
                accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
            if accelerator.sync_gradients and schedule.current_step < steps:
                schedule.step()

    if accelerator.is_main_process:
        rows = torch.stack(data[:16]).to(accelerator.device)
        print(f"KL to full precision: {torchqat.evaluate(model, [rows], teacher).kl:.4f}")
        folder = torchqat.export(model, "build/accelerate_loop")
        print(torchqat.verify(folder, model))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200)
    main(parser.parse_args().steps)
