"""Preferences at 2 bits with TRL's DPOTrainer: a tiny model that adds digits learns which answers are preferred.

    pip install trl && python examples/python/trl_dpo.py

The model in full precision is the reference: the quantized one must prefer right answers by more than that does.
"""

import argparse
import copy

import torch
import torchqat
from datasets import Dataset
from sums import RECIPE, SUMS, accuracy, model_that_adds, tokenizer
from trl import DPOConfig, DPOTrainer


def pairs() -> Dataset:
    """Right answers, and answers that are off by one."""
    rejected = [f"{(int(answer) + 1) % 19:02}" for _, answer in SUMS]
    prompts, chosen = zip(*SUMS, strict=True)
    return Dataset.from_dict({"prompt": list(prompts), "chosen": list(chosen), "rejected": rejected})


def main(steps: int) -> None:
    recipe = torchqat.parse_recipe(RECIPE)
    original = model_that_adds()
    model = torchqat.prepare(copy.deepcopy(original), recipe)
    rounded = accuracy(model)

    settings = DPOConfig(
        "build/trl_dpo", max_steps=steps, per_device_train_batch_size=25, learning_rate=recipe.train.learning_rate,
        report_to=[], save_strategy="no", bf16=False, disable_tqdm=True,
        loss_type=["sigmoid", "sft"], loss_weights=[1.0, 1.0],
    )  # fmt: skip
    optimizer = torch.optim.AdamW(torchqat.parameter_groups(model, recipe))
    trainer = DPOTrainer(
        model, original, settings, train_dataset=pairs(), processing_class=tokenizer(), optimizers=(optimizer, None),
        callbacks=[torchqat.TrainerCallback(recipe)],
    )  # fmt: skip
    trainer.train()

    for name, value in (("float", accuracy(original)), ("rounded", rounded), ("trained", accuracy(model))):
        print(f"{name:8} {value:.1%} of the sums are right")
    print(torchqat.verify(torchqat.export(model, "build/trl_dpo/export", tokenizer=tokenizer()), model))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=80)
    main(parser.parse_args().steps)
