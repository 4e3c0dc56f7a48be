"""What a training takes on every GPU, on paper: 7B, 70B and 405B parameters, plain fine-tuning beside QAT.

    python benchmarks/memory.py

The models are built on the meta device, prepared, and counted tensor by tensor (`torchqat/training/memory.py`, whose counts
`tests/python/test_training_memory.py` compares with real runs). Parameters, scales and AdamW's moments are float32, and the
teacher as well; INT4 in groups of 128 with learned scales. Activations come on top and are those of plain fine-tuning.
"""

import tempfile
from pathlib import Path

import torch
import torchqat
from common import RESULTS, table
from torchqat.training.memory import TrainingMemory, training_memory
from transformers import LlamaConfig, LlamaForCausalLM

# The published configurations of Llama 2 7B, Llama 3.1 70B and 405B.
MODELS = {
    "7B": (
        {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "vocab_size": 32000},
        32,
        32,
        (1, 8),
    ),
    "70B": (
        {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "vocab_size": 128256},
        64,
        8,
        (16, 32, 64),
    ),
    "405B": (
        {"hidden_size": 16384, "intermediate_size": 53248, "num_hidden_layers": 126, "vocab_size": 128256},
        128,
        8,
        (128, 256, 512),
    ),
}
RECIPE = """version: 1
layers: [{match: "model.layers.*", weight: {dtype: int4, group_size: 128, grid: full, scale: learned}}]
"""
GIB = 2**30


def model_of(name: str) -> LlamaForCausalLM:
    shape, heads, kv_heads, _ = MODELS[name]
    with torch.device("meta"):
        return LlamaForCausalLM(LlamaConfig(num_attention_heads=heads, num_key_value_heads=kv_heads, **shape))


def row(name: str, way: str, processes: int, memory: TrainingMemory) -> list[str]:
    state = memory.weights + memory.gradients + memory.optimizer
    parts = [state, memory.scales, memory.teacher, memory.gathered, memory.rounded, memory.total]
    return [name, str(processes), way, *(f"{part / GIB:.1f}" for part in parts)]


def main() -> None:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        recipe = Path(folder) / "recipe.yaml"
        recipe.write_text(RECIPE)
        for name, (*_, counts) in MODELS.items():
            plain, prepared = model_of(name), torchqat.prepare(model_of(name), torchqat.load_recipe(str(recipe)))
            for processes in counts:
                rows.append(row(name, "plain fine-tuning", processes, training_memory(plain, processes)))
                rows.append(row(name, "QAT, cross-entropy", processes, training_memory(prepared, processes)))
                distilled = training_memory(prepared, processes, teacher=torch.float32)
                rows.append(row(name, "QAT, distilled", processes, distilled))
    head = ["model", "GPUs", "", "weights, gradients, AdamW", "scales", "teacher", "gathered", "rounded", "GiB a GPU"]
    text = f"# What training takes on every GPU, in GiB\n\n{__doc__.split(chr(10) * 2)[2].strip()}\n\n{table(head, rows)}\n"
    (RESULTS / "memory.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
