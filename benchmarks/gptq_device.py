"""GPTQ of a whole model on a device while the model stays in the host's memory: seconds and peak memory.

    python benchmarks/gptq_device.py [--blocks 16] [--samples 128] [--length 2048]

A model of the shape of Llama-3.2-1B (hidden 2048, FFN 8192, 16 blocks, 8 heads of keys, vocabulary 128,256) with random
weights and tokens, which take as long as any; INT4 in groups of 128 by the defaults of ``initialize``. On a GPU the goal is
three minutes with 128 windows of 2048 tokens; on a processor, fewer --blocks say what one takes.
"""

import argparse
import time

import torch
import torchqat
from common import CUDA, DEVICE, peak_megabytes, publish, synchronize, table, verdict
from transformers import LlamaConfig, LlamaForCausalLM

LIMIT = 180
RECIPE = """version: 1
layers: [{match: blocks, weight: {dtype: int4, group_size: 128, grid: full, scale: mse}}]
initialize: {method: gptq}
"""


def float_model(blocks: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=2048, intermediate_size=8192, num_hidden_layers=blocks, num_attention_heads=32,
        num_key_value_heads=8, vocab_size=128_256, max_position_embeddings=8192, tie_word_embeddings=True,
    )  # fmt: skip
    return LlamaForCausalLM(config).to(torch.bfloat16 if CUDA else torch.float32).eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=16)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--length", type=int, default=2048)
    options = parser.parse_args()
    model = torchqat.prepare(float_model(options.blocks), torchqat.parse_recipe(RECIPE))
    vocabulary, generator = model.config.vocab_size, torch.Generator().manual_seed(1)
    windows = torch.randint(0, vocabulary, (options.samples, options.length), generator=generator)
    begun = time.perf_counter()
    torchqat.calibrate(model, [row[None] for row in windows], device=DEVICE)
    synchronize()
    seconds = time.perf_counter() - begun
    figures = {"blocks": options.blocks, "samples": options.samples, "length": options.length, "seconds": seconds,
               "megabytes": peak_megabytes()}  # fmt: skip
    goal = f"{LIMIT} s: {verdict(seconds, LIMIT)}" if CUDA and options.blocks == 16 else "–"
    row = [
        f"{options.blocks}",
        f"{options.samples} x {options.length}",
        f"{seconds:.0f} s",
        f"{figures['megabytes']:.0f} MB",
    ]
    where = "the device" if CUDA else "the process"
    body = table(["blocks", "tokens", "time", f"peak memory of {where}", "goal"], [[*row, goal]])
    command = f"python benchmarks/gptq_device.py --blocks {options.blocks} --samples {options.samples}"
    publish("gptq_device", "GPTQ of a model on a device", body, figures, f"{command} --length {options.length}")


if __name__ == "__main__":
    main()
