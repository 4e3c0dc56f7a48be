"""Training at equal steps, bits and data: torchao's QAT and ours, with cross-entropy and with KL to the float model.

    pip install --no-deps --target build/peers "torchao==0.18.*"
    PYTHONPATH=build/peers python benchmarks/qat_peers.py [--bits 4] [--seeds 3] [--steps 100]

On a small Llama: weights in groups of 128, symmetric, from plain rounding. torchao's fake quantizer trains as its
documentation says (``QATConfig`` with ``step="prepare"``), in the same loop, optimizer and batches as ours. Finished runs
are kept in build/qat_peers.
"""

import argparse
import json
from pathlib import Path

import torch
import torchqat
from common import publish, spread, table
from small_llama import QUARTER_LLAMA
from torch import nn
from torchqat.data.batches import Batches
from torchqat.kinds.losses import cross_entropy
from torchqat.runs.fine_tune import distillation
from torchqat.runs.progress import Progress
from torchqat.runs.run import Run
from torchqat.training.loop import TrainingLoop
from torchqat.training.oscillation import against_oscillation

ROOT = Path(__file__).resolve().parents[1]
KEPT = ROOT / "build" / "qat_peers"
RECIPE = """version: 1
layers:
  - match: "model.layers.*"
    weight: {{dtype: int{bits}, group_size: 128, grid: full, scale: {scale}}}
initialize: {{method: {method}}}
train: {{steps: {steps}, batch_size: 4, sequence_length: 256, learning_rate: {rate}, validate_every: 0, seed: {seed},
        oscillation: {{method: {oscillation}}}}}
"""
# How each trains: whose fake quantization, with scales found how, by which loss, from what, oscillation kept down how.
METHODS = {
    "torchao, cross-entropy": ("torchao", "minmax", "cross_entropy", "rtn", "none"),
    "torchao, KL": ("torchao", "minmax", "kl", "rtn", "none"),
    "torchqat, cross-entropy": ("torchqat", "learned", "cross_entropy", "rtn", "none"),
    "torchqat, KL": ("torchqat", "learned", "kl", "rtn", "none"),
    "torchqat, KL, from GPTQ": ("torchqat", "learned", "kl", "gptq", "none"),
    "torchqat, KL, from GPTQ, dampened": ("torchqat", "learned", "kl", "gptq", "dampen"),
    "torchqat, KL, from GPTQ, frozen": ("torchqat", "learned", "kl", "gptq", "freeze"),
}


def torchao_model(model: nn.Module, bits: int) -> nn.Module:
    from torchao.quantization import quantize_
    from torchao.quantization.qat import IntxFakeQuantizeConfig, QATConfig

    config = IntxFakeQuantizeConfig(getattr(torch, f"int{bits}"), group_size=128, is_symmetric=True)
    quantize_(
        model,
        QATConfig(weight_config=config, step="prepare"),
        filter_fn=lambda module, name: isinstance(module, nn.Linear) and name.startswith("model.layers."),
    )
    return model


def train(start: Run, bits: int, name: str, seed: int, options) -> dict[str, float]:
    peer, scale, loss_name, method, oscillation = METHODS[name]
    path = KEPT / f"{name.replace(', ', '-').replace(' ', '-')}-{bits}-{seed}-{options.steps}.json"
    if path.is_file():
        return json.loads(path.read_text())
    text = RECIPE.format(
        bits=bits,
        scale=scale,
        method=method,
        steps=options.steps,
        rate=options.learning_rate,
        seed=seed,
        oscillation=oscillation,
    )
    run = Run(torchqat.parse_recipe(text), path.with_suffix(""), Progress(), start.float_model, start)
    batches = Batches(start.data.train.tokens, 4, 256, seed)
    if peer == "torchao":
        model = torchao_model(run.fresh_model(), bits)
    else:
        model = torchqat.prepare(run.fresh_model(), run.plan, run.recipe.initialize)
        torchqat.calibrate(model, run.data.calibration)
    distilled = distillation(run, model)

    def loss(tokens: torch.Tensor) -> torch.Tensor:
        if loss_name == "kl":
            return distilled(tokens)
        return cross_entropy(model(input_ids=tokens, use_cache=False).logits, tokens)

    settles = against_oscillation(model, run.recipe.train.oscillation, options.steps) if peer == "torchqat" else None
    TrainingLoop(model, loss, batches, run.recipe.train, settles=settles).run()
    figures = run.measure(model)
    found = {"perplexity": figures.perplexity, "kl": figures.kl}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bits", type=int, nargs="+", default=[4])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--learning-rate", default="1.0e-4")
    options = parser.parse_args()
    recipe = torchqat.load_recipe("quickstart", QUARTER_LLAMA)
    start = Run(recipe, KEPT / "float", Progress())
    baseline = torchqat.evaluate(start.original, start.data.evaluation)
    rows, figures = [["float", "–", f"{baseline.perplexity:.3f}", "–"]], {"float": baseline.perplexity}
    for bits in options.bits:
        for name in METHODS:
            runs = [train(start, bits, name, seed, options) for seed in range(options.seeds)]
            figures[f"INT{bits}, {name}"] = runs
            forms = (("perplexity", "{:.3f}"), ("kl", "{:.5f}"))
            rows.append([f"INT{bits} g128", name, *(spread([run[m] for run in runs], form) for m, form in forms)])
    body = table(["weights", "trained by", "perplexity", "KL to float"], rows)
    settings = f"{options.steps} steps of 4 x 256 tokens, learning rate {options.learning_rate}"
    body += f"\n\n{settings}; {options.seeds} seeds: median (least to most)."
    publish(
        "qat_peers", "Training beside torchao", body, figures, "PYTHONPATH=build/peers python benchmarks/qat_peers.py"
    )


if __name__ == "__main__":
    main()
