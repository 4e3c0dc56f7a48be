"""Every format in every engine that runs on a CPU: does it agree, and what is gained?

    make test-engines && python benchmarks/engines.py

Agreement is what the tests of the engines found (``build/engines/results.jsonl``), on a small Llama and a Qwen2 of its
size. Speed and memory are measured here, on a Llama of 94 M parameters in which linear layers dominate, with random
weights: float and quantized in the same engine, one after the other.
"""

import json
import os
import tempfile
from pathlib import Path

import torch
import torchqat
from common import publish, table
from torch import nn
from torchqat.checkpoints.formats.gguf import write_gguf
from torchqat.files import size_of
from torchqat.runs.scratch import new_model
from torchqat.verification.engines import ENGINES, Bench, Question, Speed
from torchqat.verification.engines.onnxruntime import serve_onnx

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENTS = {"vllm": "vllm", "llama.cpp": "llama.cpp", "transformers": "gptqmodel"}
SPEED_HEADER = [
    "engine", "weights", "file, MB", "of float", "prompt, tok/s", "generation, tok/s", "of float", "peak, MB",
]  # fmt: skip
BENCH = Bench(list(range(256)), new_tokens=48, repeats=5)


class Wide:
    """A Llama whose vocabulary is small beside its layers."""

    hidden_size, intermediate_size, layers, heads, kv_heads, sequence_length = 1024, 2816, 8, 16, 8, 512


FORMS = {
    "llama.cpp": {
        "Q8_0": ("gguf", "{dtype: int8, group_size: 32, scale_dtype: float16}", ""),
        "Q4_1": ("gguf", "{dtype: int4, group_size: 32, symmetric: false, scale_dtype: float16}", ""),
        "Q4_0": ("gguf", "{dtype: int4, group_size: 32, grid: signed, scale_dtype: float16}", ""),
    },
    "vllm": {
        "INT8 weights and inputs": ("compressed-tensors", "{dtype: int8}", ", input: {dtype: int8}"),
        "INT4 g32": ("compressed-tensors", "{dtype: int4, group_size: 32}", ""),
        "INT4 g128": ("compressed-tensors", "{dtype: int4, group_size: 128}", ""),
    },
}


def main() -> None:
    for name, folder in ENVIRONMENTS.items():
        python = ROOT / "build" / "engines" / folder / "bin" / "python"
        if python.exists():
            os.environ.setdefault(ENGINES[name].variable(), str(python))
    agreement, found = agreement_rows()
    speed, figures = speed_rows()
    modules, times = onnx_rows()
    body = "\n\n".join(
        [
            "Agreement with the training forward, on held-out text; every tensor of every checkpoint equal bit for bit.",
            table(["model", "engine", "format", "weights", "KL", "bound", "top-1", "same text"], agreement),
            "Speed and memory, 94 M parameters, a prompt of 256 tokens, 48 written, the best of 5.",
            table(SPEED_HEADER, speed),
            "onnxruntime, 2048 to 8192 to 2048, batch 1, the best of 50.",
            table(["weights", "file, MB", "runs/s", "of float"], modules),
        ]
    )
    everything = {"agreement": found, "speed": figures, "onnx": times}
    publish("engines", "Engines", body, everything, "make test-engines && python benchmarks/engines.py")


def agreement_rows() -> tuple[list[list[str]], list]:
    path = ROOT / "build" / "engines" / "results.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    rows = []
    for model, engine, format, weight, input, other, _layers, got in lines:
        extra = ", ".join(word for word in (input and f"input {input}", *other.strip().split("\n")) if word)
        words = f"`{weight}`" + (f", `{extra}`" if extra else "")
        figures = [f"{got['kl']:.2g}", f"{got['kl_bound']:g}", f"{got['top1']:.1%}"]
        rows.append([model, engine, format, words, *figures, f"{got['same_text']} of {got['prompts']}"])
    return rows, lines


def speed_rows() -> tuple[list[list[str]], dict]:
    rows, figures = [], {}
    model = new_model(Wide, 512, seed=0)
    for engine, forms in FORMS.items():
        with tempfile.TemporaryDirectory() as scratch:
            start = Path(scratch) / "float"
            if engine == "llama.cpp":
                start.mkdir()
                write_gguf(model, [], None, start / "model.gguf")
            else:
                model.to(torch.bfloat16).save_pretrained(start)
            base = run(engine, start)
            figures[engine] = {"float": {**vars(base), "bytes": size_of(start)}}
            rows.append(row(engine, "float16" if engine == "llama.cpp" else "bfloat16", start, base, start, base))
            for name, (format, weight, input) in forms.items():
                folder = exported(model, format, weight, input, Path(scratch) / "out")
                speed = run(engine, folder)
                figures[engine][name] = {**vars(speed), "bytes": size_of(folder)}
                rows.append(row(engine, name, folder, speed, start, base))
    return rows, figures


def run(engine: str, folder: Path) -> Speed:
    format = "gguf" if engine == "llama.cpp" else "compressed-tensors"
    return ENGINES[engine].serve(format, Question(str(folder), [], bench=BENCH)).speed


def exported(model: nn.Module, format: str, weight: str, input: str, folder: Path) -> Path:
    import copy

    recipe = torchqat.parse_recipe(f'version: 1\nlayers:\n  - {{match: "model.layers.*", weight: {weight}{input}}}\n')
    return torchqat.export(torchqat.prepare(copy.deepcopy(model), recipe), folder, format)


def row(engine: str, name: str, folder: Path, speed: Speed, start: Path, base: Speed) -> list[str]:
    return [
        engine, name, f"{size_of(folder) / 1e6:.1f}", f"{size_of(folder) / size_of(start):.2f}x", f"{speed.prefill:.0f}",
        f"{speed.decode:.1f}", f"{speed.decode / base.decode:.2f}x", f"{speed.peak_bytes / 1e6:.0f}",
    ]  # fmt: skip


def onnx_rows() -> tuple[list[list[str]], dict]:
    torch.manual_seed(0)
    x = torch.randn(1, 2048)
    forms = {
        "float32": None,
        "INT8": "{dtype: int8}",
        "INT8, INT8 inputs": "{dtype: int8}, input: {dtype: int8, granularity: tensor}",
        "INT4 g32": "{dtype: int4, group_size: 32}",
    }
    rows, figures = [], {}
    for name, weight in forms.items():
        net = nn.Sequential(nn.Linear(2048, 8192), nn.ReLU(), nn.Linear(8192, 2048)).eval()
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "out"
            if weight is None:
                folder.mkdir()
                torch.onnx.export(net, (x,), dynamo=True, verbose=False, external_data=False).save(
                    folder / "model.onnx"
                )
            else:
                recipe = torchqat.parse_recipe(f'version: 1\nlayers:\n  - {{match: "*", weight: {weight}}}\n')
                net = torchqat.prepare(net, recipe).eval()
                torchqat.calibrate(net, [torch.randn(16, 2048)])
                torchqat.export(net, folder, "onnx", example=x)
            _, speed = serve_onnx(folder, (x,), repeats=50)
            figures[name] = {"bytes": size_of(folder), "runs_per_second": speed.runs}
            ratio = speed.runs / figures["float32"]["runs_per_second"]
            rows.append([name, f"{size_of(folder) / 1e6:.1f}", f"{speed.runs:.0f}", f"{ratio:.2f}x"])
    return rows, figures


if __name__ == "__main__":
    main()
