"""What losses over a vocabulary of 151,936 cost: time and peak memory of a step against plain fine-tuning.

    python benchmarks/vocabulary.py [--rounds 5] [--tokens 512]

A Llama of 103 M parameters in its blocks (hidden 1024, FFN 2816, 8 layers) and 156 M that embedding and head share, in
bfloat16; forward, backward and AdamW. Plain fine-tuning has transformers' own loss. QAT has INT4 weights in groups of 32,
learned scales, and cross-entropy or KL to the float model by torchqat's losses; once also by the plain formula, with the
log-probabilities of all tokens at once. Each way has a model of its own and takes its step in turn, so that each round
compares like with like; peak memory is that of a process of its own. Gradients are compared first.
"""

import argparse
import copy
import json
import os
import subprocess
import sys
from dataclasses import asdict

import torch
import torch.nn.functional as F
import torchqat
from common import paired, publish, table
from torch import Tensor
from torchqat.losses import cross_entropy, forward_kl
from training_step import CUDA, DEVICE, MEGABYTE, peak_resident
from transformers import LlamaConfig, LlamaForCausalLM

VOCABULARY = 151_936
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
    """Gradients of the logits of both formulas."""
    logits = [torch.randn(1, 64, VOCABULARY, device=DEVICE).bfloat16().requires_grad_() for _ in range(2)]
    found = [torch.autograd.grad(loss(logits[0], logits[1].detach()), logits[0])[0] for loss in (forward_kl, kl_whole)]
    assert torch.equal(*found)
    return "the gradients of KL by torchqat and by the plain formula are equal bit for bit"


def peak_megabytes(way: str, tokens: int) -> float:
    """Of a process that takes three steps, large tensors unmapped when they go."""
    command = [sys.executable, __file__, "--probe", way, "--tokens", str(tokens)]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(64 << 10)}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    return json.loads(result.stdout.splitlines()[-1])


def probe(way: str, tokens: int) -> None:
    step = stepper(way, tokens)
    for _ in range(3):
        step()
    print(json.dumps((torch.cuda.max_memory_allocated() if CUDA else peak_resident()) / MEGABYTE))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--probe", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.probe:
        return probe(options.probe, options.tokens)
    agreement = check_agreement()
    memory = {way: peak_megabytes(way, options.tokens) for way in WAYS}
    timings = paired({way: stepper(way, options.tokens) for way in WAYS}, "plain", options.rounds, warmup=1)
    rows = [
        [WAYS[way], f"{timings[way].milliseconds:.0f} ms", str(timings[way]), f"{memory[way]:.0f} MB",
         f"{memory[way] - memory['plain']:+.0f} MB"]
        for way in WAYS
    ]  # fmt: skip
    one = options.tokens * VOCABULARY * 4 / MEGABYTE
    body = f"{options.tokens} tokens; all logits in float32 are {one:.0f} MB, in bfloat16 half of it. The float model takes "
    body += "514 MB of bfloat16. Medians over rounds, quartiles in brackets.\n\n"
    body += (
        table(["", "step", "over plain", "peak memory", "over plain"], rows)
        + f"\n\nCompared before timing: {agreement}."
    )
    figures = {"time": {way: asdict(timing) for way, timing in timings.items()}, "memory": memory}
    command = f"python benchmarks/vocabulary.py --rounds {options.rounds} --tokens {options.tokens}"
    publish("vocabulary", "A training step with a vocabulary of 151,936", body, figures, command)


if __name__ == "__main__":
    main()
