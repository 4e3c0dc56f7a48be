"""What a quantized cache of keys and values costs in quality, by its form, with nothing else quantized.

    python benchmarks/kv_cache.py [--model DIR]

On the small Llama of small_llama.py (trained and cached if it is not) or a folder of your own: perplexity and KL to
the float model on held-out text, and the bits that an engine stores for each number of the cache.
"""

import argparse
import copy
from pathlib import Path

import torchqat
from common import publish, table
from small_llama import SMALL_LLAMA
from torchqat.layers.kv_cache import attach
from torchqat.ptq.ranges import calibrate_ranges
from torchqat.ptq.result import Calibration
from torchqat.runs.progress import Progress
from torchqat.runs.run import Run

ROOT = Path(__file__).resolve().parents[1]
# Bits a number: parameters of a block are two halves where it has an offset, one where it has none.
FORMS = (
    ("FP8 E4M3, a scale per tensor (vLLM)", "{dtype: fp8_e4m3}", 8.0),
    ("FP8 E4M3, a scale per head", "{dtype: fp8_e4m3, keys: head, values: head}", 8.0),
    ("FP8 E5M2, a scale per tensor", "{dtype: fp8_e5m2}", 8.0),
    ("INT8 per token and head (LMDeploy)", "{dtype: int8, keys: token}", 9.0),
    ("INT8 in blocks of 32 (llama.cpp's Q8_0)", "{dtype: int8, keys: group, values: group, symmetric: true}", 8.5),
    ("INT4 per token and head", "{dtype: int4, keys: token}", 5.0),
    ("INT4, keys per channel over 32 tokens (KIVI)", "{dtype: int4}", 5.0),
    ("INT4, the same, the latest 32 tokens unquantized", "{dtype: int4, recent: 32}", 5.0),
    ("INT2 per token and head", "{dtype: int2, keys: token}", 3.0),
    ("INT2, keys per channel over 32 tokens", "{dtype: int2}", 3.0),
    ("INT2, the same, the latest 32 tokens unquantized", "{dtype: int2, recent: 32}", 3.0),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="")
    options = parser.parse_args()
    recipe = torchqat.load_recipe("int2", SMALL_LLAMA)
    if options.model:
        recipe.model.path, recipe.model.scratch = options.model, None
    run = Run(recipe, ROOT / "build" / "kv_cache", Progress(quiet=True))
    float_figures = torchqat.evaluate(run.original, run.data.evaluation)
    rows, figures = [["float", "32", f"{float_figures.perplexity:.3f}", "–"]], {"float": vars(float_figures)}
    for name, section, bits in FORMS:
        text = f'version: 1\nlayers: [{{match: "*", weight: {{dtype: int8}}}}]\nkv_cache: {section}\n'
        model = copy.deepcopy(run.original)
        attach(model, torchqat.parse_recipe(text, "benchmark").kv_cache)
        calibrate_ranges(
            model, "", lambda m=model: [m(input_ids=b, use_cache=False) for b in run.data.calibration], Calibration()
        )
        found = torchqat.evaluate(model, run.data.evaluation, run.original)
        figures[name] = vars(found)
        rows.append([name, f"{bits:g}", f"{found.perplexity:.3f}", f"{found.kl:.5f}"])
    body = table(["cache", "bits a number", "perplexity", "KL"], rows)
    publish("kv_cache", "A quantized cache of keys and values", body, figures, "python benchmarks/kv_cache.py")


if __name__ == "__main__":
    main()
