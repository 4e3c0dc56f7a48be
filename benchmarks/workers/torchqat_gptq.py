"""torchqat's own GPTQ on a model, in a process of its own. See ``common.py`` beside this file for how it is called.

METHOD is ``default`` or ``least``: no drift is made good, columns in plain order, scales by range.
"""

import time

import torch
import torchqat
from common import load, main
from torchqat.layers.prepared import quant_layers

SETTINGS = {"default": "", "least": ", correction: 0.0, order: plain, scale_search: minmax"}


def quantize(folder: str, rows: list[list[int]], bits: int, group: int, method: str):
    model = load(folder)
    recipe = f"""version: 1
layers: [{{match: "model.layers.*", weight: {{dtype: int{bits}, group_size: {group}, grid: full, scale: mse}}}}]
initialize: {{method: gptq{SETTINGS[method]}}}
"""
    batches = [torch.tensor([row]) for row in rows]
    torchqat.prepare(model, torchqat.parse_recipe(recipe, "benchmarks/gptq_time.py"))
    begun = time.monotonic()
    torchqat.calibrate(model, batches)
    seconds = time.monotonic() - begun
    state = {name: tensor for name, tensor in model.state_dict().items() if name.endswith((".weight", ".bias"))}
    return state | {f"{name}.weight": layer.quantized_weight() for name, layer in quant_layers(model)}, seconds


if __name__ == "__main__":
    main(quantize)
