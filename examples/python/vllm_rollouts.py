"""vLLM at the other end of a pipe: writes answers, and takes weights while it stays up. ``grpo_rollouts.py`` starts it.

    python vllm_rollouts.py FOLDER DESCRIPTOR

Runs in the environment of vLLM, so it imports nothing of torchqat.
"""

import os
import sys
from collections.abc import Iterator
from multiprocessing.connection import Connection

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # in this process, where an iterator reaches the worker as it is
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")

import torch
from safetensors.torch import load
from vllm import LLM, SamplingParams


def received(trainer: Connection) -> Iterator[tuple[str, torch.Tensor]]:
    """Tensors as they come, until an empty message."""
    while message := trainer.recv_bytes():
        yield from load(message).items()


def reload(llm: LLM, trainer: Connection) -> None:
    """The new weights through vLLM's own loader, which packs each layer for its kernel again."""
    llm.collective_rpc("reload_weights", kwargs={"weights_iterator": received(trainer)})
    llm.apply_model(pack_tied_head)
    llm.reset_prefix_cache()  # keys and values of the old weights


def pack_tied_head(model: torch.nn.Module) -> None:
    """On a CPU vLLM 0.32 multiplies with a packed copy of the head, which it does not renew if the head is the embedding."""
    head = getattr(model, "lm_head", None)
    if head is not None and model.config.tie_word_embeddings:
        head.quant_method.process_weights_after_loading(head)


def answers(llm: LLM, prompts: list[list[int]], count: int, length: int, seed: int) -> list[list[dict]]:
    """``count`` answers to each prompt: their tokens, and the log probability with which each was drawn."""
    sampling = SamplingParams(
        n=count, temperature=1, max_tokens=length, seed=seed, logprobs=0, detokenize=False, ignore_eos=True
    )
    requests = [{"prompt_token_ids": prompt} for prompt in prompts]
    return [[as_numbers(one) for one in found.outputs] for found in llm.generate(requests, sampling, use_tqdm=False)]


def as_numbers(answer) -> dict:
    tokens = list(answer.token_ids)
    logprobs = [step[token].logprob for token, step in zip(tokens, answer.logprobs, strict=True)]
    return {"tokens": tokens, "logprobs": logprobs}


def main(folder: str, descriptor: str) -> None:
    llm = LLM(folder, enforce_eager=True, max_model_len=64, skip_tokenizer_init=True)
    with Connection(int(descriptor)) as trainer:
        while (asked := trainer.recv()) is not None:
            if asked == "reload":
                reload(llm, trainer)
                trainer.send("reloaded")
            else:
                trainer.send(answers(llm, **asked))


if __name__ == "__main__":
    main(*sys.argv[1:])
