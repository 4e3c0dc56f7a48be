"""Peak memory of GPTQ from a folder into a folder, against the depth of the model.

    python benchmarks/streamed_memory.py [--depths 4 16] [--format gguf]

Llamas of 1024 features, and mixtures of 32 experts (Qwen3-MoE, 512 features), with random weights, INT4 in groups of 128
(Q4_0 in GGUF files), 16 x 256 calibration tokens, the drift made good (two streams of tokens). Each runs in a process of its
own, whose highest resident set the kernel reports; what was resident before the model's folder was opened is shown apart.
Beside it the same with the whole model in memory.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

LLAMA = {"hidden_size": 1024, "intermediate_size": 2816, "num_attention_heads": 16, "num_key_value_heads": 8}
MIXTURE = {
    "hidden_size": 512, "intermediate_size": 1024, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 64,
    "num_experts": 32, "num_experts_per_tok": 4, "moe_intermediate_size": 256, "norm_topk_prob": True,
}  # fmt: skip
RECIPE = """version: 1
layers:
  - match: "model.layers.*"
    weight: WEIGHT
initialize: {method: gptq}
export: [FORMAT]
"""
WEIGHTS = {"compressed-tensors": "{dtype: int4, group_size: 128, grid: full, scale: mse}", "gguf": "{dtype: q4_0}"}


def write_model(folder: Path, depth: int, experts: bool) -> None:
    """A shard a block, so that writing takes no more memory than reading."""
    import transformers
    from safetensors.torch import save_file
    from torchqat.model.disk_names import DiskNames
    from torchqat.model.outline import skeleton

    family, sizes = ("Qwen3Moe", MIXTURE) if experts else ("Llama", LLAMA)
    config = getattr(transformers, f"{family}Config")(
        **sizes, num_hidden_layers=depth, vocab_size=2048, architectures=[f"{family}ForCausalLM"]
    )
    config.save_pretrained(folder)
    model = skeleton(folder)
    generator = torch.Generator().manual_seed(depth)
    shards: dict[str, dict[str, torch.Tensor]] = {}
    for name, parameter in DiskNames(model).on_disk(model.named_parameters()):
        shard = ".".join(name.split(".")[:3]) if ".layers." in name else "rest"
        weight = torch.randn(parameter.shape, generator=generator) * 0.03
        shards.setdefault(shard, {})[name] = torch.ones(parameter.shape) if parameter.dim() == 1 else weight
    for name, tensors in shards.items():
        save_file(tensors, folder / f"{name}.safetensors", {"format": "pt"})
    index = {key: f"{name}.safetensors" for name, tensors in shards.items() for key in tensors}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


def resident() -> float:
    """The highest so far, in MB; unlike getrusage's it does not count what the process was before it began."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def child(folder: str, whole: bool, format: str) -> None:
    import torchqat
    from torchqat.model.loading import load_model
    from torchqat.runs.stream import quantize_folder

    generator = torch.Generator().manual_seed(0)
    batches = [torch.randint(0, 2048, (4, 256), generator=generator) for _ in range(4)]
    text = RECIPE.replace("WEIGHT", WEIGHTS[format]).replace("FORMAT", format)
    recipe = torchqat.parse_recipe(text, "benchmark")
    _warm_up(batches)
    before = resident()
    output = Path(folder) / "out"
    if whole:
        model = torchqat.prepare(load_model(folder), recipe)
        torchqat.calibrate(model, batches, lambda m, batch: m(input_ids=batch, use_cache=False))
        torchqat.export(model, output, format)
    else:
        quantize_folder(folder, output, recipe, batches)
    print(json.dumps({"before": before, "peak": resident()}))


def _warm_up(batches) -> None:
    """What the libraries take the first time is not the model's."""
    import transformers

    config = transformers.LlamaConfig(
        hidden_size=64, intermediate_size=64, num_attention_heads=2, num_hidden_layers=1, vocab_size=2048
    )
    transformers.AutoModelForCausalLM.from_config(config)(input_ids=batches[0][:1, :8])


def measure(depth: int, whole: bool, experts: bool, format: str) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder), depth, experts)
        command = [sys.executable, __file__, "--child", folder, "--format", format, *(["--whole"] if whole else [])]
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return json.loads(printed.strip().splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--depths", type=int, nargs="+", default=[4, 16])
    parser.add_argument("--format", choices=list(WEIGHTS), default="compressed-tensors")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--whole", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child, options.whole, options.format)
        return
    from common import publish, table

    kinds = {"streamed": False, "whole": True}
    figures, rows = {}, []
    for model in ("Llama", "mixture"):
        for depth in options.depths:
            for kind, whole in kinds.items():
                found = figures[f"{model} {kind} {depth}"] = measure(depth, whole, model == "mixture", options.format)
                first = figures[f"{model} streamed {options.depths[0]}"]
                own, of_first = (figure["peak"] - figure["before"] for figure in (found, first))
                row = [model, str(depth), kind, f"{found['peak']:.0f} MB", f"{own:.0f} MB"]
                rows.append([*row, f"{found['peak'] / first['peak']:.2f}x", f"{own / of_first:.2f}x"])
                print(rows[-1], flush=True)
    header = ["", "blocks", "", "peak", "of which after the libraries", "peak, of the first", "after the libraries"]
    note = "A block of the Llama has 51 MB of float32 weights, one of the mixture 53 MB."
    is_gguf = options.format == "gguf"
    publish(
        "streamed_memory_gguf" if is_gguf else "streamed_memory",
        "Peak memory of GPTQ into a GGUF file" if is_gguf else "Peak memory of GPTQ",
        f"{table(header, rows)}\n\n{note}",
        figures,
        "python benchmarks/streamed_memory.py" + (" --format gguf" if is_gguf else ""),
    )


if __name__ == "__main__":
    main()
