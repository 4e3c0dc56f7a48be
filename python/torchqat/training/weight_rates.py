"""The learning rates of weights: relative to the distance between two of their levels, unless a recipe gives one."""

from collections import defaultdict
from statistics import fmean

from torch import Tensor, nn

from torchqat._library import TrainSection
from torchqat.layers.prepared import quant_layers
from torchqat.training import processes

# Of AdamW, where nothing is rounded: float models, adapters, and models of which scales alone train.
UNRELATED = 2e-4
# Up to so many quantized weights for every so many tokens of a step, the rate of the recipe holds as it is.
WEIGHTS, TOKENS = 5_000_000, 1024
# Bits below which it holds for any number: what rounding takes from the model then outweighs the noise of a step.
NARROW = 3


def weight_rates(model: nn.Module, settings: TrainSection) -> tuple[list[tuple[list[Tensor], float]], float]:
    """Parameters that have a rate of their own, with it, and the rate of all others: the mean of these over weights.

    Weights of one shape, such as those of one projection in all blocks, share a rate, so that which groups there are depends
    on the model alone, and a training that is resumed finds them again.
    """
    if settings.learning_rate is not None:
        return [], settings.learning_rate
    alike: dict[tuple[str, tuple[int, ...]], list[tuple[Tensor, float, int]]] = defaultdict(list)
    known: set[int] = set()  # a head may have the weight of an embedding
    for _, layer in quant_layers(model):
        if layer.weight_spec is not None and layer.weight.requires_grad and id(layer.weight) not in known:
            known.add(id(layer.weight))
            key = layer.weight_spec.type_name, layer.weight_shape
            alike[key].append((layer.weight, layer.level_distance(), layer.weight_spec.bits))
    share = share_of_rate(sum(weight.numel() for layers in alike.values() for weight, _, _ in layers), settings)
    found = []
    for layers in alike.values():
        rate = settings.relative_learning_rate * (1.0 if layers[0][2] < NARROW else share)
        found.append(([weight for weight, _, _ in layers], rate * fmean(distance for _, distance, _ in layers)))
    rates = [rate for weights, rate in found for _ in weights]
    return found, fmean(rates) if rates else UNRELATED


def share_of_rate(weights: int, settings: TrainSection) -> float:
    """How much of the relative rate is taken where so many weights learn from the tokens of a step (numerics.md 38)."""
    tokens = settings.batch_size * settings.sequence_length * settings.gradient_accumulation * processes.count()
    return min(1.0, (tokens / TOKENS * WEIGHTS / max(weights, 1)) ** 0.5)
