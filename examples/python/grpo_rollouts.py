"""Reinforcement learning (GRPO) of a 4-bit model whose answers vLLM writes, with the weights of every step.

    TORCHQAT_VLLM=/path/to/python python examples/python/grpo_rollouts.py

TORCHQAT_VLLM is the Python of an environment with vLLM 0.32, where ``vllm_rollouts.py`` runs; by default this one. A small
Llama over 32 characters is rewarded for the share of the letter e in what it writes. Each step prints the reward and, for
the tokens that were written, the largest difference between the log probability of the engine and that of the training
forward; the bound that bfloat16 sets it; and the difference after the step, which is what old weights would have.
"""

import argparse
import math
import os
import subprocess
import sys
from collections.abc import Iterable
from multiprocessing import Pipe
from pathlib import Path

import torch
import torchqat
from safetensors.torch import save
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

RECIPE = """
version: 1
layers:
  - match: "model.layers.*"
    weight: {dtype: int4, group_size: 32, grid: full, scale: learned, scale_dtype: bfloat16}
train: {learning_rate: 2e-3, scale_learning_rate: 2e-3, weight_decay: 0}
"""
ALPHABET = "abcdefghijklmnopqrstuvwxyz .,;!?"
PROMPTS = ["once", "the ", "what", "then"]
ANSWERS, LENGTH = 16, 16
LAYERS, HIDDEN = 2, 128
# Between a token and its logit a block rounds activations to bfloat16 ten times, and the rest of the model does so three
# times: in the engine, and in the training forward at other places.
ROUNDINGS = 2 * (10 * LAYERS + 3)


class Rollouts:
    """vLLM in a process of its own, which serves ``folder`` or what it was sent since; ``vllm.log`` beside it is its log."""

    def __init__(self, folder: Path):
        self.pipe, theirs = Pipe()
        worker = Path(__file__).with_name("vllm_rollouts.py")
        command = [os.environ.get("TORCHQAT_VLLM", sys.executable), worker, folder, str(theirs.fileno())]
        log = (folder.parent / "vllm.log").open("w")
        self.process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdout=log, stderr=log)
        theirs.close()  # so that its end is ours to notice

    def reload(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Send names and tensors as an export has them, one at a time."""
        self.pipe.send("reload")
        for name, tensor in weights:
            self.pipe.send_bytes(save({name: tensor}))
        self.pipe.send_bytes(b"")
        self.pipe.recv()

    def write(self, prompts: list[list[int]], seed: int) -> tuple[Tensor, Tensor]:
        """Answers to each prompt, tokens ``[prompts, ANSWERS, LENGTH]``, and the log probabilities they were drawn with."""
        self.pipe.send({"prompts": prompts, "count": ANSWERS, "length": LENGTH, "seed": seed})
        found = self.pipe.recv()
        return tuple(torch.tensor([[one[key] for one in group] for group in found]) for key in ("tokens", "logprobs"))

    def stop(self) -> None:
        self.pipe.send(None)
        self.process.wait()


def logprobs_of(model: nn.Module, prompts: Tensor, answers: Tensor) -> tuple[Tensor, float]:
    """Log probabilities of ``answers`` in the training forward, and what bfloat16 may change of them in another program.

    A rounding is off by at most 2^-9 of what it rounds. Of roundings that do not know of each other the root of their number
    counts; a logit, the product of a state with a row of the head, is off by that times the lengths of both at most; and a
    log probability is the difference of a logit and a mean of logits.
    """
    rows = torch.cat([prompts.repeat_interleave(ANSWERS, 0), answers.flatten(0, 1)], 1)
    with torch.autocast("cpu", torch.bfloat16):
        found = model(input_ids=rows[:, :-1], output_hidden_states=True)
    table = found.logits[:, -LENGTH:].float().log_softmax(-1)
    lengths = found.hidden_states[-1].norm(dim=-1).max() * model.lm_head.weight.norm(dim=-1).max()
    bound = 2 * math.sqrt(ROUNDINGS) * 2**-9 * lengths.item()
    return table.gather(-1, rows[:, -LENGTH:, None]).view(answers.shape), bound


def loss_of(ours: Tensor, drawn_with: Tensor, rewards: Tensor) -> Tensor:
    """GRPO: how much better an answer is than the others to its prompt, for each of its tokens, with PPO's clipping."""
    advantage = (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-4)
    ratio = (ours - drawn_with).exp()
    gain = torch.minimum(ratio * advantage[..., None], ratio.clamp(0.8, 1.2) * advantage[..., None])
    return -gain.mean()


def main(steps: int, output: Path) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(ALPHABET), hidden_size=HIDDEN, intermediate_size=256, num_hidden_layers=LAYERS,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    recipe = torchqat.parse_recipe(RECIPE)
    model = torchqat.prepare(LlamaForCausalLM(config), recipe)
    optimizer = torch.optim.AdamW(torchqat.parameter_groups(model, recipe))
    schedule = torchqat.Schedule(model, recipe, steps, optimizer)  # of one stage: an engine serves one width
    prompts = torch.tensor([[ALPHABET.index(character) for character in prompt] for prompt in PROMPTS])
    engine = Rollouts(torchqat.export(model, output / "first", dtype=torch.bfloat16))
    for step in range(steps):
        answers, drawn_with = engine.write(prompts.tolist(), seed=step)
        rewards = (answers == ALPHABET.index("e")).float().mean(-1)
        ours, bound = logprobs_of(model, prompts, answers)
        loss_of(ours, drawn_with, rewards).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        with torch.no_grad():
            after, _ = logprobs_of(model, prompts, answers)
        difference, stale = ((one - drawn_with).abs().max().item() for one in (ours, after))
        print(
            f"{step:3}  reward {rewards.mean():.3f}  difference {difference:.4f}  bound {bound:.4f}  stale {stale:.4f}"
        )
        assert difference <= bound, "the engine must compute what the training forward does, but does not"
        engine.reload(torchqat.live_weights(model, dtype=torch.bfloat16))
    engine.stop()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--output", type=Path, default=Path("build/grpo"))
    main(**vars(parser.parse_args()))
