"""llm-compressor's GPTQ on a model, in an environment of its own; benchmarks/ptq.py calls it and reads what it prints.

    PYTHON benchmarks/llm_compressor_gptq.py MODEL TOKENS BITS GROUP

TOKENS holds calibration and evaluation tokens, as ``torch.save`` writes them. Prints perplexity, KL and top-1 agreement on
the evaluation tokens and the seconds that calibration took, as JSON on the last line.
"""

import copy
import json
import math
import sys
import time

import torch
import torch.nn.functional as F


def dataset(batches):
    from datasets import Dataset

    rows = [row.tolist() for batch in batches for row in batch]
    return Dataset.from_dict({"input_ids": rows, "attention_mask": [[1] * len(row) for row in rows]})


def quantize(model, batches, bits: int, group: int) -> float:
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from llmcompressor import oneshot
    from llmcompressor.modifiers.quantization import GPTQModifier

    weights = QuantizationArgs(num_bits=bits, type="int", symmetric=True, strategy="group", group_size=group)
    recipe = GPTQModifier(
        config_groups={"group_0": QuantizationScheme(targets=["Linear"], weights=weights)}, ignore=["lm_head"]
    )
    data = dataset(batches)
    begun = time.monotonic()
    oneshot(
        model=model,
        dataset=data,
        recipe=recipe,
        num_calibration_samples=len(data),
        max_seq_length=len(data[0]["input_ids"]),
    )
    return time.monotonic() - begun


@torch.no_grad()
def figures(model, original, batches) -> dict[str, float]:
    loss = kl = 0.0
    agree = count = 0
    for batch in batches:
        ours = F.log_softmax(model(input_ids=batch, use_cache=False).logits[:, :-1].float().flatten(0, 1), -1)
        theirs = F.log_softmax(original(input_ids=batch, use_cache=False).logits[:, :-1].float().flatten(0, 1), -1)
        target = batch[:, 1:].flatten()
        loss += F.nll_loss(ours, target, reduction="sum").item()
        kl += F.kl_div(ours, theirs, reduction="sum", log_target=True).item()
        agree += int((ours.argmax(-1) == theirs.argmax(-1)).sum())
        count += target.numel()
    return {"perplexity": math.exp(loss / count), "kl": kl / count, "top1_agreement": agree / count, "tokens": count}


def main() -> None:
    from transformers import AutoModelForCausalLM

    folder, tokens, bits, group = sys.argv[1], torch.load(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    original = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model = copy.deepcopy(original)
    seconds = quantize(model, tokens["calibration"], bits, group)
    print(json.dumps({**figures(model.eval(), original, tokens["evaluation"]), "seconds": seconds}))


if __name__ == "__main__":
    main()
