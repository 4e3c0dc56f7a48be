"""A tiny model under FSDP2 by Accelerate and transformers' Trainer, on two processes of a CPU, whose findings are printed.

Accelerate spreads no model over processes without GPUs, and says nothing: it is told here that there are some.
"""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torchqat
import transformers
from accelerate import Accelerator, FullyShardedDataParallelPlugin, PartialState
from accelerate.utils import DistributedType
from torchqat.layers.prepared import quant_layers
from torchqat.layers.sharded import is_sharded, whole
from trainers import HALT, STEPS, adamw, batch, loss_of, prepared, recipe, tokens

PartialState._prepare_backend = lambda self, *args, **kwargs: ("gloo", DistributedType.MULTI_GPU)
PartialState.set_device = lambda self: setattr(self, "device", torch.device("cpu"))
BLOCK = "LlamaDecoderLayer"


class Training:
    """Of a fresh model by Accelerate, from the first step or from what another has saved."""

    def __init__(self, precision="no"):
        plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2, auto_wrap_policy="transformer_based_wrap", transformer_cls_names_to_wrap=[BLOCK],
            state_dict_type="SHARDED_STATE_DICT",
        )  # fmt: skip
        self.accelerator = Accelerator(fsdp_plugin=plugin, mixed_precision=precision)
        of = recipe()
        model = prepared(of)
        self.model, self.optimizer = self.accelerator.prepare(model, adamw(model, of))
        self.schedule = torchqat.Schedule(self.model, of, STEPS, self.optimizer)

    def train(self, last):
        for step in range(self.schedule.current_step, last):
            row = batch(step)[dist.get_rank() :][:1]
            self.accelerator.backward(loss_of(self.model, row))
            self.optimizer.step()
            self.schedule.step()
            self.optimizer.zero_grad()
        return self

    def state(self):
        return {name: whole(tensor).detach().clone() for name, tensor in self.model.state_dict().items()}


def alone():
    of = recipe()
    model = prepared(of)
    optimizer = adamw(model, of)
    schedule = torchqat.Schedule(model, of, STEPS, optimizer)
    for step in range(STEPS):
        for row in batch(step).split(1):  # each of which a process has
            (loss_of(model, row) / 2).backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return model


def by_accelerate(folder):
    once = Training().train(STEPS)
    Training().train(HALT).accelerator.save_state(folder / "kept")
    again = Training()
    again.accelerator.load_state(folder / "kept")
    found, resumed = once.state(), again.train(STEPS).state()
    ranges = torch.cat([tensor.flatten() for name, tensor in found.items() if ".input_" in name])
    of_all = [torch.empty_like(ranges) for _ in range(dist.get_world_size())]
    dist.all_gather(of_all, ranges)
    full = once.accelerator.get_state_dict(once.model)
    said = {
        "sharded": is_sharded(once.model),
        "same bits": all(torch.equal(resumed[name], tensor) for name, tensor in found.items()),
        "same ranges": all(torch.equal(ranges, other) for other in of_all),
    }
    if dist.get_rank() == 0:
        model, one = prepared(), alone()
        model.load_state_dict(full)
        pairs = zip(quant_layers(model), quant_layers(one), strict=True)
        said["equal codes"] = min((a.codes() == b.codes()).double().mean().item() for (_, a), (_, b) in pairs)
        said["written"] = torchqat.verify(
            torchqat.export(model, folder / "out", "safetensors"), model, engine="reader"
        ).ok
    return said


def by_trainer(folder):
    of = recipe()
    model = prepared(of)
    arguments = transformers.TrainingArguments(
        folder / "trainer", max_steps=STEPS, per_device_train_batch_size=1, report_to=[], save_strategy="no",
        logging_steps=1, disable_tqdm=True, fsdp=True,
        fsdp_config={"version": 2, "transformer_layer_cls_to_wrap": [BLOCK]},
    )  # fmt: skip
    rows = [{"input_ids": row, "labels": row} for row in tokens()]
    trainer = transformers.Trainer(model, arguments, train_dataset=rows, callbacks=[torchqat.TrainerCallback(of)])
    trainer.train()
    widths = [line["qat/weight_bits"] for line in trainer.state.log_history if "loss" in line]
    return {"sharded": is_sharded(model), "widths": widths}


def in_bfloat16(folder):
    try:
        Training("bf16")
    except torchqat.UserError as error:
        return {"refused": str(error)}


if __name__ == "__main__":
    made = {"accelerate": by_accelerate, "trainer": by_trainer, "bf16": in_bfloat16}[sys.argv[1]](Path(sys.argv[2]))
    if dist.get_rank() == 0:
        Path(sys.argv[2], "found.json").write_text(json.dumps(made))
