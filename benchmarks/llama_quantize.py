"""GGUF files of a real language model: those of llama.cpp's own quantizer, and ours of the same types.

    TORCHQAT_LLAMA_CPP=PYTHON python benchmarks/llama_quantize.py [--types q4_0 q4_k_m q2_k] [--steps 0] [--write]

The model, the texts and the measures are those of ``real_lm.py``. Each file is read by transformers, which takes its numbers
apart with the gguf package, so that what is compared is what files say. llama.cpp quantizes without an importance matrix and
with one (``torchqat imatrix``, of the same tokens that calibrate ours). The Python of ``TORCHQAT_LLAMA_CPP`` has
llama-cpp-python. Where 256 does not divide the rows of a layer, as in most of this model's, both take the types that
llama.cpp falls back to.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import gguf
import torch
import torchqat
from common import publish, table
from real_lm import Bench
from torchqat.checkpoints.formats.gguf import write_gguf
from torchqat.evaluation.bootstrap import bootstrap
from torchqat.files import write_json
from torchqat.runs.fine_tune import fine_tune
from transformers import AutoModelForCausalLM

# Of each type or mix: its number among llama.h's types of files.
TYPES = {"q4_0": 2, "q8_0": 7, "q2_k": 10, "q3_k_m": 12, "q4_k_m": 15, "q5_k_m": 17, "q6_k": 18}
WAYS = {
    "plain": "llama.cpp's quantizer",
    "imatrix": "the same with an importance matrix",
    "rtn": "torchqat, nearest",
    "gptq": "torchqat, GPTQ",
    "trained": "torchqat, trained from GPTQ",
}

QUANTIZE = Path(__file__).parent / "workers" / "llama_quantize.py"


def layers_of(kind: str) -> list[dict]:
    """A recipe's rules for the type or mix ``kind``, of every matrix that llama.cpp quantizes."""
    weight = {"mix": kind} if kind.endswith(("_k", "_m")) else {"dtype": kind}
    # Of a type alone llama.cpp keeps more bits where text is read and written (Q6_K, here its fallback).
    table_weight = weight if "mix" in weight else {"dtype": "q8_0"}
    of_blocks = {"match": "blocks", "weight": {**weight, "scale": "learned"}}
    return [of_blocks, *({"match": match, "weight": table_weight} for match in ("type:Embedding", "lm_head"))]


class Files(Bench):
    """The files of one draw of texts; what was measured of each is kept, so an interrupted benchmark goes on."""

    def of(self, kind: str, way: str) -> dict | None:
        """What the file of a type, made in one of the ways, is and says; with ``--kept`` none that was not made before."""
        steps = self.options.steps if way == "trained" else 0
        path = self.folder / f"gguf-{kind}-{way}{f'-{steps}' if steps else ''}.json"
        if path.is_file():
            return json.loads(path.read_text())
        if self.options.kept:
            return None
        begun = time.monotonic()
        file = self.by_llama_cpp(kind, way) if way in ("plain", "imatrix") else self.by_torchqat(kind, way, steps)
        seconds = time.monotonic() - begun
        model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32).eval()
        found = self.first.measure(model)
        figures = {
            "seconds": seconds, "megabytes": file.stat().st_size / 1e6, "kl": found.kl, "kls": found.kls,
            "perplexity": found.perplexity, "top-1": found.top1_agreement,
        }  # fmt: skip
        file.unlink()
        write_json(path, figures)
        print(kind, way, {name: value for name, value in figures.items() if name != "kls"}, flush=True)
        return figures

    def by_llama_cpp(self, kind: str, way: str) -> Path:
        source, target, matrix = (self.folder / name for name in ("float.gguf", f"{kind}-{way}.gguf", "imatrix.gguf"))
        if not source.is_file():
            write_gguf(self.first.original, [], None, source, self.first.tokenizer)
        if way == "imatrix" and not matrix.is_file():
            torchqat.imatrix(self.first.fresh_model().eval(), self.first.data.calibration, matrix)
        given = [matrix, Path(gguf.__file__).parents[1]] if way == "imatrix" else []
        command = [os.environ["TORCHQAT_LLAMA_CPP"], QUANTIZE, source, target, TYPES[kind], *given]
        done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"llama.cpp could not write {kind}: {done.stderr[-500:]}")
        return target

    def by_torchqat(self, kind: str, way: str, steps: int) -> Path:
        run = self.run(kind, {"method": "rtn" if way == "rtn" else "gptq"}, steps)
        model = fine_tune(run) if steps else run.prepared(run.plan)
        return next(torchqat.export(model, run.folder / "gguf", "gguf", tokenizer=run.tokenizer).glob("*.gguf"))


def row(name: str, found: list[dict], beside: float) -> list[str]:
    kl, among = statistics.median(f["kl"] for f in found), bootstrap([kl for f in found for kl in f["kls"]])
    middle = {key: statistics.median(f[key] for f in found) for key in ("megabytes", "perplexity", "top-1", "seconds")}
    return [
        name, f"{middle['megabytes']:.1f} MB", f"{kl:.4f} [{among.low:.4f}, {among.high:.4f}]", f"{kl / beside:.2f}",
        f"{middle['perplexity']:.2f}", f"{middle['top-1']:.1%}", f"{middle['seconds']:.0f}",
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--types", nargs="+", default=["q4_0", "q4_k_m", "q2_k"], choices=TYPES)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=64, help="windows that calibrate")
    parser.add_argument("--length", type=int, default=512, help="tokens of one")
    parser.add_argument("--held-out", type=int, default=16, help="windows of 512 tokens that judge")
    parser.add_argument("--steps", type=int, default=0, help="of training, 1,024 tokens each; none: no trained files")
    parser.add_argument("--kept", action="store_true", help="the files that were measured before, alone")
    parser.add_argument("--write", action="store_true", help="also write benchmarks/results/llama_quantize-cpu.md")
    options = parser.parse_args()
    layers = {kind: layers_of(kind) for kind in options.types}
    ways = [way for way in WAYS if way != "trained" or options.steps]
    benches, parts, figures = [Files(options, seed, layers) for seed in range(options.seeds)], [], {}
    for kind in options.types:
        found = {way: [bench.of(kind, way) for bench in benches] for way in ways}
        found = {way: of_way for way, of_way in found.items() if None not in of_way}
        beside = statistics.median(f["kl"] for f in found["imatrix"])
        rows = [row(WAYS[way], of_way, beside) for way, of_way in found.items()]
        parts.append(f"## {kind.upper()}\n\n{table(HEADER, rows)}")
        figures[kind] = {way: [{**f, "kls": None} for f in of_way] for way, of_way in found.items()}
        print(parts[-1], flush=True)
    body = WHAT.format(**vars(options)) + "\n\n" + "\n\n".join(parts)
    words = [f"--{key.replace('_', '-')} {value}" for key, value in vars(options).items() if isinstance(value, int)]
    words = [word for word in words if not word.startswith(("--write", "--kept"))]
    command = " ".join(
        ["TORCHQAT_LLAMA_CPP=PYTHON python benchmarks/llama_quantize.py --types", *options.types, *words]
    )
    if options.write:
        publish("llama_quantize", "GGUF files beside those of llama.cpp's quantizer", body, figures, command)


HEADER = ["file", "size", "KL", "of the one with a matrix", "perplexity", "top-1", "seconds"]
WHAT = """SmolLM2-135M-Instruct off its lattice. {samples} windows of {length} tokens calibrate, for GPTQ and for the
importance matrix; {held_out} windows of 512 tokens of other documents judge. KL is in nats, with its 95 % interval over
windows. Where 256 does not divide the rows of a layer (576 columns, all but one matrix of a block), both take the type that
llama.cpp falls back to: Q2_K is mostly Q4_0 here, and says little of two bits. Seconds are of making the file on one
thread, beside other work: the importance matrix is not among them, nor GPTQ in those of training. Steps of training are of
1,024 tokens. Seeds: {seeds}."""


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
