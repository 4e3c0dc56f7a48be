"""Training loops of random windows, and their settings."""

import torch
import torchqat
from torchqat._library import TrainSection
from torchqat.data.batches import Batches
from torchqat.training.loop import TrainingLoop


def settings(**values):
    section = TrainSection()
    for name, value in values.items():
        setattr(section, name, value)
    return section


def loop_for(model, section, **options):
    tokens = torch.randint(0, 400, (500,))

    def loss(batch):
        return torchqat.losses.cross_entropy(model(input_ids=batch, use_cache=False).logits, batch)

    return TrainingLoop(model, loss, Batches(tokens, 4, 16, 0), section, **options)
