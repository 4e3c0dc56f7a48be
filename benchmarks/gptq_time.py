"""GPTQ of a whole model beside llm-compressor: seconds of the processor, peak memory, and KL to the float model.

    python benchmarks/gptq_time.py --llm-compressor PYTHON [--blocks 30] [--samples 128] [--formats 4:64 3:64] [--model DIR]

SmolLM2-135M-Instruct as ``real_model.py`` loads it, or a Llama of your own, as far as its first --blocks blocks; windows of
512 tokens. Both work on the same model and tokens, each in a process and environment of its own (``workers/``), in turn. The
least of our ways: no drift of the float model is made good, columns in plain order, scales by range, none of them searched.
Seconds are those of the blocks after the first: what it takes to import, to load, to run the head and to calibrate the first
block is measured by processes that are given that alone, and taken off. KL is over 4 x 512 held-out tokens.
"""

import argparse
import copy
import sys
import tempfile
from pathlib import Path

import torch
from common import publish, table
from real_model import CACHE, original
from texts import windows
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM
from worker import rounded_by

LENGTH = 512
WAYS = {
    "peer": ("llm_compressor", "gptq", "llm-compressor"),
    "least": ("torchqat_gptq", "least", "torchqat, the least"),
    "default": ("torchqat_gptq", "default", "torchqat"),
}


def float_model(path: str):
    """The model and its tokenizer."""
    if path:
        return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32), AutoTokenizer.from_pretrained(path)
    model, tokenizer = original(CACHE)
    config = copy.deepcopy(model.config)
    del config.quantization_config  # of the file that it was decoded from
    plain = LlamaForCausalLM(config)
    plain.load_state_dict(model.state_dict())
    plain.tie_weights()
    return plain, tokenizer


def cut(model, blocks: int):
    """``model`` as far as its first ``blocks`` blocks."""
    model.model.layers = model.model.layers[:blocks]
    model.config.num_hidden_layers = len(model.model.layers)
    return model.eval()


@torch.no_grad()
def divergence(model, held: torch.Tensor, wanted: list[torch.Tensor]) -> float:
    """Mean KL of the tokens ``held`` to the float model, which says ``wanted``."""
    found = [model(row[None]).logits[0].log_softmax(-1) for row in held]
    return sum((w.exp() * (w - f)).sum(-1).mean().item() for w, f in zip(wanted, found, strict=True)) / len(held)


def measure(pythons: dict[str, str], model, tokenizer, tokens, held, formats: list[str], work: Path) -> list[dict]:
    model.save_pretrained(work / "model")
    tokenizer.save_pretrained(work / "model")  # llm-compressor asks for one
    with torch.no_grad():
        wanted = [model(row[None]).logits[0].log_softmax(-1) for row in held]
    rows = []
    for text in formats:
        bits, group = map(int, text.split(":"))
        for way, (worker, method, _) in WAYS.items():
            found = rounded_by(pythons[way], worker, work / "model", [tokens], bits, group, method, work)
            if found is None:
                raise SystemExit(1)
            rounded = copy.deepcopy(model)
            rounded.load_state_dict(found[0], strict=False)  # a tied head is not repeated
            rows.append({"format": text, "way": way, **found[1], "kl": divergence(rounded, held, wanted)})
            print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llm-compressor", required=True, help="Python of an environment with llm-compressor")
    parser.add_argument("--blocks", type=int, default=30)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--formats", nargs="+", default=["4:64", "3:64"], metavar="BITS:GROUP")
    parser.add_argument("--model", default="", help="folder of a Llama")
    options = parser.parse_args()
    pythons = dict.fromkeys(WAYS, sys.executable) | {"peer": options.llm_compressor}
    model, tokenizer = float_model(options.model)
    tokens = windows(tokenizer, "train", options.samples, LENGTH, CACHE / "texts")
    held = windows(tokenizer, "held-out", 4, LENGTH, CACHE / "texts")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "one").mkdir()
        rows = measure(
            pythons, cut(copy.deepcopy(model), options.blocks), tokenizer, tokens, held, options.formats, Path(folder)
        )
        start = measure(pythons, cut(model, 1), tokenizer, tokens, held[:1], options.formats[:1], Path(folder, "one"))
    report(rows, {row["way"]: row for row in start}, options)


def report(rows: list[dict], start: dict[str, dict], options) -> None:
    for row in rows:
        for name in ("processor", "system"):
            row[name] -= start[row["way"]][name]
        peer = next(other for other in rows if other["format"] == row["format"] and other["way"] == "peer")
        row["of_peer"] = row["processor"] / peer["processor"]
    cells = [
        [
            "W{} g{}".format(*row["format"].split(":")), WAYS[row["way"]][2],
            f"{row['processor']:.1f} s", f"{row['of_peer']:.2f}x", f"{row['system']:.1f} s",
            f"{row['megabytes']:.0f} MB", f"{row['kl']:.4f}",
        ]
        for row in rows
    ]  # fmt: skip
    header = ["format", "", "processor", "of llm-compressor", "kernel", "peak memory", "KL"]
    note = (
        f"{options.blocks} blocks, {options.samples} x {LENGTH} calibration tokens. Seconds of the processor for the "
        f"{options.blocks - 1} blocks after the first, in the program and, apart, in the kernel for it (fresh memory); "
        "peak memory is that of the process."
    )
    command = f"python benchmarks/gptq_time.py --blocks {options.blocks} --samples {options.samples}"
    publish(
        "gptq_time", "GPTQ of a whole model", f"{table(header, cells)}\n\n{note}", [*rows, *start.values()], command
    )


if __name__ == "__main__":
    main()
