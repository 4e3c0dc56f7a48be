"""Reinforcement learning of a 2-bit model with TRL's GRPOTrainer: right sums are rewarded.

    pip install trl && python examples/python/trl_grpo.py

The model that writes the answers is the one that trains, its weights rounded: what is rewarded is what is exported.
"""

import argparse
import copy

import torch
import torchqat
from sums import RECIPE, accuracy, examples, model_that_adds, tokenizer
from trl import GRPOConfig, GRPOTrainer


def is_right(completions: list[str], answer: list[str], **_) -> list[float]:
    """1 for the right sum; a half for a right first digit."""
    return [1.0 if a == b else 0.5 * (a[:1] == b[:1]) for a, b in zip(completions, answer, strict=True)]


def main(steps: int) -> None:
    recipe = torchqat.parse_recipe(RECIPE)
    original = model_that_adds()
    model = torchqat.prepare(copy.deepcopy(original), recipe)
    rounded = accuracy(model)

    settings = GRPOConfig(
        "build/trl_grpo", max_steps=steps, per_device_train_batch_size=200, num_generations=8, max_completion_length=2,
        learning_rate=recipe.train.learning_rate, report_to=[], save_strategy="no", bf16=False, disable_tqdm=True,
    )  # fmt: skip
    optimizer = torch.optim.AdamW(torchqat.parameter_groups(model, recipe))
    data = examples().rename_column("completion", "answer")
    trainer = GRPOTrainer(
        model, is_right, settings, train_dataset=data, processing_class=tokenizer(), optimizers=(optimizer, None),
        callbacks=[torchqat.TrainerCallback(recipe)],
    )  # fmt: skip
    trainer.train()

    for name, value in (("float", accuracy(original)), ("rounded", rounded), ("trained", accuracy(model))):
        print(f"{name:8} {value:.1%} of the sums are right")
    print(torchqat.verify(torchqat.export(model, "build/trl_grpo/export", tokenizer=tokenizer()), model))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=40)
    main(parser.parse_args().steps)
