"""Runs in vLLM's environment: log probabilities of given tokens, and greedy text.

    python vllm_logprobs.py CHECKPOINT PROMPTS.json OUTPUT.json

PROMPTS is a list of token lists. OUTPUT has, for each, the log probability of every token but the first, and the greedy
continuation of the prompt.
"""

import json
import sys
from pathlib import Path

from vllm import LLM, SamplingParams


def main(checkpoint: str, prompts: str, output: str) -> None:
    tokens = json.loads(Path(prompts).read_text())
    llm = LLM(checkpoint, enforce_eager=True, max_model_len=128, dtype="bfloat16", skip_tokenizer_init=True)
    sampling = SamplingParams(temperature=0, max_tokens=8, prompt_logprobs=0, detokenize=False, ignore_eos=True)
    results = llm.generate([{"prompt_token_ids": prompt} for prompt in tokens], sampling)
    found = [
        {
            "logprobs": [step[token].logprob for step, token in zip(r.prompt_logprobs[1:], prompt[1:], strict=True)],
            "greedy": list(r.outputs[0].token_ids),
        }
        for r, prompt in zip(results, tokens, strict=True)
    ]
    Path(output).write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
