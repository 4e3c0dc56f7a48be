"""Quantization-aware fine-tuning with TRL's SFTTrainer: a tiny model that adds digits, at 2 bits.

pip install trl && python examples/python/trl_sft.py
"""

import argparse
import copy

import torch
import torchqat
from sums import RECIPE, accuracy, examples, model_that_adds, tokenizer
from trl import SFTConfig, SFTTrainer


def main(steps: int) -> None:
    recipe = torchqat.parse_recipe(RECIPE)
    original = model_that_adds()
    model = torchqat.prepare(copy.deepcopy(original), recipe)
    rounded = accuracy(model)

    settings = SFTConfig(
        "build/trl_sft", max_steps=steps, per_device_train_batch_size=25, learning_rate=recipe.train.learning_rate,
        report_to=[], save_strategy="no", bf16=False, disable_tqdm=True,
    )  # fmt: skip
    optimizer = torch.optim.AdamW(torchqat.parameter_groups(model, recipe))  # learned scales at a rate of their own
    trainer = SFTTrainer(
        model, settings, train_dataset=examples(), processing_class=tokenizer(), optimizers=(optimizer, None),
        callbacks=[torchqat.TrainerCallback(recipe)],
    )  # fmt: skip
    trainer.train()

    for name, value in (("float", accuracy(original)), ("rounded", rounded), ("trained", accuracy(model))):
        print(f"{name:8} {value:.1%} of the sums are right")
    print(torchqat.verify(torchqat.export(model, "build/trl_sft/export", tokenizer=tokenizer()), model))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=80)
    main(parser.parse_args().steps)
