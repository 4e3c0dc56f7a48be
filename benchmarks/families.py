"""Do the recipes that ship win on models that their defaults were not chosen on?

    python benchmarks/families.py [--families llama qwen2 gpt_neox opt] [--recipes int4 int3 int2 nvfp4] [--steps 80]
        [--set KEY=VALUE ...] [--output build/families] [--write FILE]

Small models of several architectures are trained here on documents of their own (``texts.py``, Muon, as a run trains a
scratch model) and kept. Each recipe runs on each of them as it ships, but for the number of steps and groups of 64: GPTQ,
then training, whose best state on validation windows counts. The table has the KL to the float model on text that neither
saw. ``--set`` tries other settings, such as ``--set train.relative_learning_rate=4.0e-3``. Finished runs are kept.
"""

import argparse
import json
from pathlib import Path

import torch
import torchqat
from common import kept, table
from texts import documents, written
from torchqat._library import TrainSection
from torchqat.data.batches import Batches
from torchqat.data.tokenized import tokenize
from torchqat.device import name_of
from torchqat.files import pending_folder
from torchqat.kinds.losses import cross_entropy
from torchqat.precision import products
from torchqat.recipes.shipped import load_recipe
from torchqat.reports.report import environment
from torchqat.runs.fine_tune import fine_tune
from torchqat.runs.progress import Progress
from torchqat.runs.run import Run
from torchqat.runs.scratch import train_tokenizer
from torchqat.training.loop import TrainingLoop
from torchqat.training.optimizers import scratch_optimizers

ROOT = Path(__file__).resolve().parents[1]
TEXTS = ROOT / "build" / "cache" / "texts"
VOCABULARY, WINDOW = 2048, 256
# Of each: the class of its configuration, what that is given, and which documents are its own (every so manyth, from where).
FAMILIES = {
    "llama": ("LlamaConfig", {"intermediate_size": 768, "num_key_value_heads": 4, "tie_word_embeddings": True}, (2, 0)),
    "qwen2": ("Qwen2Config", {"intermediate_size": 512, "num_key_value_heads": 2, "tie_word_embeddings": True}, (2, 1)),
    "gpt_neox": ("GPTNeoXConfig", {"intermediate_size": 1024}, (3, 0)),
    "opt": ("OPTConfig", {"ffn_dim": 1024, "word_embed_proj_dim": 256, "dropout": 0.0, "pad_token_id": 1}, (3, 1)),
}
SHARED = {
    "vocab_size": VOCABULARY, "hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 8,
    "max_position_embeddings": 1024, "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip


def float_model(family: str, folder: Path, steps: int) -> Path:
    """The folder of a model of ``family``, trained for ``steps`` if it is not there."""
    if (folder / "config.json").is_file():
        return folder
    import transformers

    config, own, (every, first) = FAMILIES[family]
    texts = documents("train", TEXTS)[first::every]
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, config)(**SHARED, **own))
    tokenizer = train_tokenizer(texts, VOCABULARY)
    settings = TrainSection()
    settings.steps, settings.learning_rate = steps, 2e-2
    mixed = products(torch.device("cpu"), torch.bfloat16).multiplied

    def loss(batch):
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            logits = model(input_ids=batch, use_cache=False).logits
        return cross_entropy(logits, batch)

    batches = Batches(tokenize(tokenizer, texts), 8, WINDOW, 0)
    show = Progress().steps(f"Training {family}", steps)
    TrainingLoop(model, loss, batches, settings, scratch_optimizers, on_step=show).run()
    with pending_folder(folder) as pending:
        model.save_pretrained(pending)
        tokenizer.save_pretrained(pending)
    return folder


def figures_of(family: str, recipe: str, options: argparse.Namespace) -> dict[str, float]:
    """KL and perplexity before training and after it; of a finished run as they were."""
    work = options.output / family
    _, _, (every, first) = FAMILIES[family]
    held_out = written(documents("held-out", TEXTS), work / "held-out")
    settings = {
        "model.path": str(float_model(family, options.output / "models" / family, options.scratch_steps)),
        "data.train": str(written(documents("train", TEXTS)[first::every], work / "train")),
        "data.evaluation": {"path": str(held_out), "sequence_length": WINDOW},
        "train.steps": options.steps, "train.batch_size": 4, "train.checkpoint_every": 10**6,
    }  # fmt: skip
    if recipe.startswith("int"):
        settings["layers.0.weight.group_size"] = 32 if recipe == "int2" else 64
    given = dict(entry.split("=", 1) for entry in options.set)
    loaded = load_recipe(recipe, [f"{key}={json.dumps(value)}" for key, value in settings.items()] + options.set)
    name = "-".join([recipe, str(options.steps), *(f"{key}={value}" for key, value in sorted(given.items()))])
    run = Run(loaded, work / name, Progress(quiet=True))
    return kept(run.folder / "figures.json", {"recipe": loaded.text}, lambda: measured(run))


def measured(run: Run) -> dict[str, float]:
    run.folder.mkdir(parents=True, exist_ok=True)
    before, after = run.measure(run.prepared(run.plan)), run.measure(fine_tune(run))
    found = {"before": before.kl, "after": after.kl, "step": run.report().validation["step"]}
    found |= {"perplexity before": before.perplexity, "perplexity after": after.perplexity}
    found["float perplexity"] = torchqat.evaluate(run.original, run.data.evaluation).perplexity
    return found


def row(family: str, recipe: str, found: dict[str, float]) -> list[str]:
    kls = f"{found['before']:.5f}", f"{found['after']:.5f}", f"{found['after'] / found['before']:.2f}"
    perplexities = (f"{found[key]:.2f}" for key in ("float perplexity", "perplexity before", "perplexity after"))
    return [family, recipe, *kls, str(found["step"]), *perplexities]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--families", nargs="+", default=list(FAMILIES), choices=FAMILIES)
    parser.add_argument("--recipes", nargs="+", default=["int4", "int3", "int2", "nvfp4"])
    parser.add_argument("--steps", type=int, default=80, help="of 4 windows of 256 tokens")
    parser.add_argument("--scratch-steps", type=int, default=300)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "families")
    parser.add_argument("--write", type=Path, help="also write the table to this file")
    options = parser.parse_args()
    rows = []
    for family in options.families:
        for recipe in options.recipes:
            rows.append(row(family, recipe, figures_of(family, recipe, options)))
            print(*rows[-1], sep="  ", flush=True)
    header = ["model", "recipe", "KL, GPTQ", "trained", "ratio", "best step", "perplexity, float", "GPTQ", "trained"]
    where = ", ".join(f"{key} {value}" for key, value in environment(name_of(torch.device("cpu"))).items())
    text = f"{options.steps} steps of 4 x {WINDOW} tokens.\n\n{table(header, rows)}\n\n{where}\n"
    print(text)
    if options.write:
        asked = ["--families", *options.families, "--recipes", *options.recipes]
        command = " ".join(["python benchmarks/families.py", *asked, *(f"--set {entry}" for entry in options.set)])
        options.write.write_text(f"# Families\n\n`{command}`\n\n{text}")


if __name__ == "__main__":
    main()
