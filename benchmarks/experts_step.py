"""What quantization-aware training of experts costs a step: time and peak memory against plain training.

    python benchmarks/experts_step.py [--rounds 9] [--tokens 2048]

A Qwen3-MoE of 89 M parameters (hidden 512, 4 layers, 64 experts of 192, 4 for each token), all of its linear layers and
experts in INT4 in groups of 32, forward, backward and AdamW, in each implementation of transformers' experts interface that
trains at a bearable price. Both models take their step in turn; peak memory is that of a process of its own. Limits: 1.10
times the time, and the memory of plain training and the experts of one layer.
"""

import argparse
import json
from dataclasses import asdict

import torch
import torchqat
from common import DEVICE, MEGABYTE, alone, paired, peak_megabytes, publish, table, verdict
from torch import nn
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

MODES = ["plain", "minmax", "learned"]
IMPLEMENTATIONS = ["grouped_mm", "eager"]  # batched_mm copies a matrix for each token
SHAPE = {"hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 8}
EXPERTS = {"num_experts": 64, "num_experts_per_tok": 4, "moe_intermediate_size": 192, "norm_topk_prob": True}
LIMIT = 1.10


def model_for(mode: str, implementation: str, dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    config = Qwen3MoeConfig(**SHAPE, **EXPERTS, num_key_value_heads=4, head_dim=64, vocab_size=1024)
    model = Qwen3MoeForCausalLM(config).to(DEVICE, dtype).train()
    model.set_experts_implementation(implementation)
    if mode == "plain":
        return model
    rule = f"{{match: blocks, weight: {{dtype: int4, group_size: 32, grid: full, scale: {mode}}}}}"
    return torchqat.prepare(model, torchqat.parse_recipe(f"version: 1\nlayers: [{rule}]\n"), method="rtn")


def stepper(mode: str, implementation: str, tokens: int, dtype: torch.dtype):
    """A function that takes one training step."""
    model = model_for(mode, implementation, dtype)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    ids = torch.randint(0, 1024, (1, tokens), generator=torch.Generator().manual_seed(1)).to(DEVICE)

    def step() -> torch.Tensor:
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


def probe(mode: str, implementation: str, tokens: int) -> None:
    step = stepper(mode, implementation, tokens, torch.float32)
    for _ in range(3):
        step()
    print(json.dumps(peak_megabytes()))


def allowed_megabytes(mode: str) -> float:
    """The experts of one layer, and where scales are learned those with their gradients and AdamW's moments."""
    layer = EXPERTS["num_experts"] * 3 * SHAPE["hidden_size"] * EXPERTS["moe_intermediate_size"]
    learned = 4 * 4 * SHAPE["num_hidden_layers"] * (layer + 4 * SHAPE["hidden_size"] ** 2) / 32
    return (4 * layer + learned * (mode == "learned")) / MEGABYTE


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--probe", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.probe:
        return probe(*options.probe, options.tokens)
    figures, rows = {}, []
    for implementation in IMPLEMENTATIONS:
        steps = {mode: stepper(mode, implementation, options.tokens, torch.float32) for mode in MODES}
        times = paired(steps, "plain", options.rounds, warmup=1)
        steps.clear()
        memory = {mode: alone(__file__, "--probe", mode, implementation, "--tokens", options.tokens) for mode in MODES}
        figures[implementation] = {"time": {m: asdict(t) for m, t in times.items()}, "memory": memory}
        cells = [f"{times['plain'].milliseconds:.0f} ms, {memory['plain']:.0f} MB"]
        for mode in MODES[1:]:
            extra, bound = memory[mode] - memory["plain"], allowed_megabytes(mode)
            cells.append(
                f"{times[mode]}: {verdict(times[mode].ratio, LIMIT)}; {extra:+.0f} MB (bound {bound:.0f}): "
                f"{verdict(extra, bound)}"
            )
        rows.append([implementation, *cells])
        print(rows[-1], flush=True)
    body = f"{options.tokens} tokens, float32. Time of a step over a plain one, medians over rounds, quartiles in brackets "
    body += f"(limit {LIMIT}); peak memory beyond that of plain training.\n\n"
    body += table(["implementation", *MODES], rows)
    command = f"python benchmarks/experts_step.py --rounds {options.rounds} --tokens {options.tokens}"
    publish("experts_step", "A training step over experts, against plain training", body, figures, command)


if __name__ == "__main__":
    main()
