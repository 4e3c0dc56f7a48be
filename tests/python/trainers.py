"""A tiny model under each trainer that people use, whole or interrupted and resumed."""

from collections.abc import Callable
from pathlib import Path

import lightning.pytorch as pl
import torch
import torchqat
import transformers
from safetensors.torch import load_file
from torch import nn

STEPS, HALT = 8, 5
RULES = """  - match: "model.layers.*"
    weight: {dtype: int4, group_size: 16, grid: full, scale: SCALE}
    input: {dtype: int8, granularity: tensor}
"""
LADDER = "schedule:\n  - {until: 50%, weight: int8}\n  - {until: 100%, weight: int4}\n"


def recipe(scale: str = "learned", ladder: str = LADDER, rules: str = RULES) -> torchqat._library.Recipe:
    return torchqat.parse_recipe(f"version: 1\nlayers:\n{rules.replace('SCALE', scale)}{ladder}", "recipe")


def llama() -> transformers.PreTrainedModel:
    torch.manual_seed(0)
    settings = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=64, **settings))


def prepared(of: torchqat._library.Recipe | None = None) -> nn.Module:
    model = torchqat.prepare(llama(), of or recipe())
    torchqat.calibrate(model, [tokens()[:4]])
    return model


def tokens(rows: int = 32) -> torch.Tensor:
    return torch.randint(0, 64, (rows, 12), generator=torch.Generator().manual_seed(1))


def batch(step: int) -> torch.Tensor:
    return tokens()[2 * step : 2 * step + 2]


def loss_of(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    return model(input_ids=ids, labels=ids).loss


def adamw(model: nn.Module, of: torchqat._library.Recipe) -> torch.optim.AdamW:
    return torch.optim.AdamW(torchqat.parameter_groups(model, of))


# Each trains a fresh model to its end: at once, or by a first program that stops and a second one that goes on.


def own_loop(folder: Path, interrupted: bool, of: torchqat._library.Recipe) -> nn.Module:
    folder.mkdir()

    def program(first: int, last: int) -> nn.Module:
        model = prepared(of)
        optimizer = adamw(model, of)
        if first:
            kept = torch.load(folder / f"{first}.pt")
            model.load_state_dict(kept["model"])  # strict, and before there is a schedule
            optimizer.load_state_dict(kept["optimizer"])
        schedule = torchqat.Schedule(model, of, STEPS, optimizer)
        for step in range(first, last):
            loss_of(model, batch(step)).backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, folder / f"{last}.pt")
        return model

    if interrupted:
        program(0, HALT)
    return program(HALT if interrupted else 0, STEPS)


def accelerate(folder: Path, interrupted: bool, of: torchqat._library.Recipe) -> nn.Module:
    from accelerate import Accelerator

    def program(first: int, last: int) -> nn.Module:
        accelerator = Accelerator(cpu=True)
        model = prepared(of)
        optimizer = adamw(model, of)
        schedule = torchqat.Schedule(model, of, STEPS, optimizer)
        wrapped, optimizer = accelerator.prepare(model, optimizer)
        if first:
            accelerator.load_state(str(folder / str(first)))
        assert schedule.current_step == first
        for step in range(first, last):
            accelerator.backward(loss_of(wrapped, batch(step)))
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        accelerator.save_state(str(folder / str(last)))
        return model

    if interrupted:
        program(0, HALT)
    return program(HALT if interrupted else 0, STEPS)


class Module(pl.LightningModule):
    def __init__(self, of: torchqat._library.Recipe):
        super().__init__()
        self.net, self.recipe = prepared(of), of

    def training_step(self, ids, index):
        return loss_of(self.net, ids)

    def configure_optimizers(self):
        return adamw(self, self.recipe)


class HaltAt(pl.Callback):
    def __init__(self, step: int):
        self.step = step

    def on_train_batch_end(self, trainer, *_):
        trainer.should_stop = trainer.global_step >= self.step


def lightning(folder: Path, interrupted: bool, of: torchqat._library.Recipe) -> nn.Module:
    def program(first: int, last: int) -> nn.Module:
        module = Module(of)
        saves = pl.callbacks.ModelCheckpoint(folder, filename="{step}", every_n_train_steps=HALT, save_top_k=-1)
        trainer = pl.Trainer(
            max_steps=STEPS, max_epochs=-1, default_root_dir=folder, logger=False, enable_progress_bar=False,
            enable_model_summary=False, accelerator="cpu", callbacks=[torchqat.LightningCallback(of), saves, HaltAt(last)],
        )  # fmt: skip
        # Lightning resumes at a batch of another data loader's only if that has a state: stop where an epoch ends.
        loader = torch.utils.data.DataLoader(list(tokens(2 * HALT)), batch_size=2)
        trainer.fit(module, loader, ckpt_path=folder / f"step={first}.ckpt" if first else None, weights_only=False)
        return module.net

    if interrupted:
        program(0, HALT)
    return program(HALT if interrupted else 0, STEPS)


class Halt(transformers.TrainerCallback):
    """Stops a Trainer as one that is killed after a checkpoint: what it makes of the model at its end is of no interest."""

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step >= HALT


def arguments(folder: Path, **options) -> transformers.TrainingArguments:
    quiet = {"report_to": [], "use_cpu": True, "disable_tqdm": True, "logging_steps": 1, "seed": 0}
    steps = {"max_steps": STEPS, "save_steps": 1, "per_device_train_batch_size": 2, "learning_rate": 1e-3}
    return transformers.TrainingArguments(str(folder), **{**quiet, **steps, **options})


def rows() -> list[dict[str, torch.Tensor]]:
    return [{"input_ids": row, "labels": row} for row in tokens()]


def of_transformers(
    folder: Path,
    interrupted: bool,
    of: torchqat._library.Recipe,
    make: Callable[[], nn.Module] | None = None,
) -> nn.Module:
    def program(resume: str | None, callbacks: list) -> nn.Module:
        model = make() if make else prepared(of)
        trainer = transformers.Trainer(
            model, arguments(folder), train_dataset=rows(), callbacks=[torchqat.TrainerCallback(of), *callbacks],
            optimizers=(adamw(model, of), None),
        )  # fmt: skip
        trainer.train(resume_from_checkpoint=resume)
        return model

    if interrupted:
        program(None, [Halt()])
    return program(str(folder / f"checkpoint-{HALT}") if interrupted else None, [])


def with_adapters(of: torchqat._library.Recipe) -> nn.Module:
    import peft

    model = prepared(of)
    torch.manual_seed(0)
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "up_proj"])
    return torchqat.attach_adapters(peft.get_peft_model(model, config))


def of_transformers_with_peft(folder: Path, interrupted: bool, of: torchqat._library.Recipe) -> nn.Module:
    return of_transformers(folder, interrupted, of, lambda: with_adapters(of))


TRAINERS = {
    "own loop": own_loop,
    "Accelerate": accelerate,
    "Lightning": lightning,
    "transformers' Trainer": of_transformers,
    "Trainer with peft": of_transformers_with_peft,
}


def loaded(trainer: str, folder: Path, of: torchqat._library.Recipe) -> nn.Module:
    """A fresh model with what a trainer that was interrupted in ``folder`` had written at step HALT."""
    if trainer == "Trainer with peft":
        model = with_adapters(of)
        model.load_adapter(folder / f"checkpoint-{HALT}", "default")
        return model.merge_and_unload()
    model = prepared(of)
    if trainer == "own loop":
        state = torch.load(folder / f"{HALT}.pt")["model"]
    elif trainer == "Lightning":
        state = torch.load(folder / f"step={HALT}.ckpt", weights_only=False)["state_dict"]
        state = {name.removeprefix("net."): value for name, value in state.items()}
    else:
        part = {"Accelerate": str(HALT), "transformers' Trainer": f"checkpoint-{HALT}"}[trainer]
        state = load_file(folder / part / "model.safetensors")
    model.load_state_dict(state)
    return model
