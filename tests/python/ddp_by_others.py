"""A tiny model under DDP by transformers' Trainer, Accelerate and Lightning: on one process of a CPU, or on several.

``python ddp_by_others.py TRAINER FOLDER`` writes what a process ends with to ``FOLDER/RANK.pt``.
"""

import os
import sys
from pathlib import Path

import lightning.pytorch as pl
import torch
import torchqat
import transformers
from accelerate import Accelerator
from torch.utils.data import DataLoader
from trainers import STEPS, Module, adamw, arguments, loss_of, prepared, recipe, rows, tokens

PROCESSES = int(os.environ.get("WORLD_SIZE", "1"))


def by_trainer(of, folder, **more):
    model = prepared(of)
    asked = {"save_strategy": "no", "gradient_accumulation_steps": 2 // PROCESSES, "max_grad_norm": 0.0}
    transformers.Trainer(
        model,
        arguments(folder, **asked, **more),
        train_dataset=rows(),
        callbacks=[torchqat.TrainerCallback(of)],
        optimizers=(adamw(model, of), None),
    ).train()
    return model


def by_trainer_recomputing(of, folder):
    return by_trainer(of, folder, gradient_checkpointing=True)


def by_accelerate(of, folder):
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2 // PROCESSES)
    model = prepared(of)
    optimizer = adamw(model, of)
    schedule = torchqat.Schedule(model, of, STEPS, optimizer)
    wrapped, optimizer, loader = accelerator.prepare(model, optimizer, DataLoader(tokens(), batch_size=2))
    for ids in loader:
        with accelerator.accumulate(wrapped):
            accelerator.backward(loss_of(wrapped, ids))
            optimizer.step()
            optimizer.zero_grad()
            if accelerator.sync_gradients:
                schedule.step()
    return model


def by_lightning(of, folder):
    module = Module(of)
    os.environ.setdefault("GROUP_RANK", "0")  # by which Lightning knows what torchrun started
    quiet = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    asked = {"accelerator": "cpu", "devices": PROCESSES, "strategy": "ddp" if PROCESSES > 1 else "auto"}
    callbacks = [torchqat.LightningCallback(of)]
    trainer = pl.Trainer(
        max_steps=STEPS, max_epochs=-1, accumulate_grad_batches=2 // PROCESSES, default_root_dir=folder,
        callbacks=callbacks, **asked, **quiet,
    )  # fmt: skip
    trainer.fit(module, DataLoader(list(tokens()), batch_size=2))
    return module.net


if __name__ == "__main__":
    name, folder = sys.argv[1], Path(sys.argv[2])
    train = {
        "trainer": by_trainer,
        "recomputing": by_trainer_recomputing,
        "accelerate": by_accelerate,
        "lightning": by_lightning,
    }[name]
    made = train(recipe("mse"), folder)
    torch.save(made.state_dict(), folder / f"{PROCESSES}-{os.environ.get('RANK', 0)}.pt")
