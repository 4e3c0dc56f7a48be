"""What losses over a vocabulary of 151,936 cost: time and peak memory of a step against plain fine-tuning.

    python benchmarks/vocabulary.py [--steps 5] [--tokens 512]

A Llama of 103 M parameters in its blocks (hidden 1024, FFN 2816, 8 layers) and 156 M that embedding and head share, in
bfloat16; forward, backward and AdamW. Plain fine-tuning has transformers' own loss. QAT has INT4 weights in groups of 32,
learned scales, and cross-entropy or KL to the float model by torchqat's losses; once also by the plain formula, with the
log-probabilities of all tokens at once. Each way has a process of its own. Gradients are compared first.
"""

import argparse
import copy
import json
import statistics
import time

import torch
import torch.nn.functional as F
import torchqat
from common import CUDA, DEVICE, MEGABYTE, alone, peak_megabytes, publish, synchronize, table
from torch import Tensor
from torchqat.losses import cross_entropy, forward_kl
from transformers import LlamaConfig, LlamaForCausalLM

VOCABULARY = 151_936
CLOCK = time.perf_counter if CUDA else time.process_time
WAYS = {
    "plain": "plain fine-tuning",
    "teacher": "plain fine-tuning beside the forward of a float model",
    "cross_entropy": "QAT, cross-entropy",
    "kl": "QAT, KL to the float model",
    "kl_whole": "the same by the plain formula",
}
RECIPE = """version: 1
layers: [{match: "model.layers.*", weight: {dtype: int4, group_size: 32, grid: full, scale: learned}}]
"""


def float_model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    shape = {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 8, "num_attention_heads": 16}
    config = LlamaConfig(**shape, vocab_size=VOCABULARY, tie_word_embeddings=True, attn_implementation="sdpa")
    return LlamaForCausalLM(config).to(DEVICE, torch.bfloat16).train()


def kl_whole(student: Tensor, teacher: Tensor) -> Tensor:
    ours, theirs = (F.log_softmax(logits.float().flatten(0, 1), -1) for logits in (student, teacher))
    return F.kl_div(ours, theirs, reduction="batchmean", log_target=True)


LOSSES = {"kl": forward_kl, "kl_whole": kl_whole}


def stepper(way: str, tokens: int):
    """A function that takes one training step and gives its loss."""
    model = float_model()
    teacher = copy.deepcopy(model).eval().requires_grad_(False) if way in ("teacher", *LOSSES) else None
    if way not in ("plain", "teacher"):
        torchqat.prepare(model, torchqat.parse_recipe(RECIPE), method="rtn")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    batch = torch.randint(0, VOCABULARY, (1, tokens), generator=torch.Generator().manual_seed(1)).to(DEVICE)

    def loss_of_step() -> Tensor:
        if way == "plain":
            return model(input_ids=batch, labels=batch, use_cache=False).loss
        if way == "cross_entropy":
            return cross_entropy(model(input_ids=batch, use_cache=False).logits, batch)
        with torch.no_grad():
            wanted = teacher(input_ids=batch, use_cache=False).logits
        if way == "teacher":
            return model(input_ids=batch, labels=batch, use_cache=False).loss
        return LOSSES[way](model(input_ids=batch, use_cache=False).logits, wanted)

    def step() -> Tensor:
        loss = loss_of_step()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


def check_agreement() -> str:
    """Values, and gradients of the logits, of both formulas."""
    logits = [torch.randn(1, 64, VOCABULARY, device=DEVICE).bfloat16().requires_grad_() for _ in range(2)]
    values = [loss(logits[0], logits[1].detach()) for loss in (forward_kl, kl_whole)]
    found = [torch.autograd.grad(value, logits[0])[0] for value in values]
    torch.testing.assert_close(*values, rtol=1e-6, atol=0.0)
    largest = found[1].abs().max().item()
    torch.testing.assert_close(*found, rtol=2**-7, atol=2e-6 * largest)  # a step of bfloat16, and what float32 rounds
    return "by torchqat and by the plain formula KL is equal within 1e-6 of itself, gradients within a step of bfloat16"


def probe(way: str, tokens: int, steps: int) -> None:
    """Print the seconds of a step and the peak memory."""
    step = stepper(way, tokens)
    step()
    seconds = []
    for _ in range(steps):
        synchronize()
        start = CLOCK()
        step()
        synchronize()
        seconds.append(CLOCK() - start)
    print(json.dumps({"seconds": statistics.median(seconds), "all": seconds, "megabytes": peak_megabytes()}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--probe", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.probe:
        return probe(options.probe, options.tokens, options.steps)
    agreement, found = check_agreement(), {}
    for way in WAYS:
        found[way] = alone(__file__, "--probe", way, "--tokens", options.tokens, "--steps", options.steps)
        print(WAYS[way], found[way], flush=True)
    plain = found["plain"]
    rows = [
        [WAYS[way], f"{own['seconds']:.2f} s", f"{own['seconds'] / plain['seconds']:.2f}x",
         f"{own['megabytes']:.0f} MB", f"{own['megabytes'] - plain['megabytes']:+.0f} MB"]
        for way, own in found.items()
    ]  # fmt: skip
    one = options.tokens * VOCABULARY * 4 / MEGABYTE
    body = f"{options.tokens} tokens; all logits in float32 are {one:.0f} MB, in bfloat16 half of it. The float model takes "
    body += f"{259_000_000 * 2 / MEGABYTE:.0f} MB. Medians of {options.steps} steps"
    body += ".\n\n" if CUDA else ", in seconds of the processor, which other programs do not count for.\n\n"
    body += table(["", "step", "over plain", "peak memory", "over plain"], rows)
    body += f"\n\nCompared before: {agreement}."
    command = f"python benchmarks/vocabulary.py --steps {options.steps} --tokens {options.tokens}"
    publish("vocabulary", "A training step with a vocabulary of 151,936", body, found, command)


if __name__ == "__main__":
    main()
