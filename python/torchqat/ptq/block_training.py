"""One block trained to give what the float block gives (EfficientQAT's Block-AP, AutoRound), in the memory of one block."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchqat._library import BlockTraining
from torchqat.progress import counted
from torchqat.ptq.block import Block
from torchqat.ptq.calls import Call, main_tensor
from torchqat.ptq.sequences import Sequences, join_sequences

_SEED = 0


def train_block(
    block: Block, hidden: list, original: nn.Module, original_hidden: list, settings: BlockTraining
) -> list[str]:
    """Train weights, scales and zero points of ``block``; it never ends worse than it began.

    Every fourth sequence is kept back to choose the best state by.

    Args:
        block: Rounded, its layers at the width in force.
        hidden: What the quantized blocks before it give, per call.
        original: The float block.
        original_hidden: What the float blocks before it give.
        settings: Steps, batch size, rates.

    Returns:
        A warning where training did not help.
    """
    inputs = join_sequences(block, hidden)
    if inputs is None:
        return [
            f"{block.name or 'The model'} cannot be trained as a block, since its inputs differ in shape or cannot be taken "
            "apart into sequences."
        ]
    wanted = torch.cat(_outputs(block, original, original_hidden))
    held = torch.arange(3, len(inputs), 4) if len(inputs) >= 8 else torch.arange(len(inputs))
    taught = torch.tensor([i for i in range(len(inputs)) if i % 4 != 3]) if len(inputs) >= 8 else held
    trainer = _Trainer(block, settings)
    before = best = trainer.loss_on(inputs, wanted, held)
    state = trainer.state()
    generator = torch.Generator().manual_seed(_SEED)
    checks = max(1, settings.steps // 10)
    for step in counted(range(settings.steps), f"Training {block.name or 'the model'}"):
        chosen = taught[torch.randperm(len(taught), generator=generator)[: settings.batch_size]]
        trainer.step(inputs.of(chosen), wanted[chosen], step)
        if (step + 1) % checks == 0 or step + 1 == settings.steps:
            loss = trainer.loss_on(inputs, wanted, held)
            if loss < best:
                best, state = loss, trainer.state()
    trainer.finish(state)
    if best >= before:
        return [f"Training {block.name} did not help: its error stayed at {before:.3g}, so it is as it was."]
    return []


class _Trainer:
    """The optimizer of one block's layers: Adam, or sign descent within half a step of where a weight begins."""

    def __init__(self, block: Block, settings: BlockTraining):
        self.block, self.settings = block, settings
        self._required = [(p, p.requires_grad) for p in block.module.parameters()]
        for parameter, _ in self._required:
            parameter.requires_grad_(False)
        layers = [layer for _, layer in block.own_layers() if layer.weight_spec is not None]
        weights = [self._group(layer.weight, settings.learning_rate * layer.level_distance()) for layer in layers]
        scales = []
        for layer in layers:
            for name in ("weight_scale", "weight_zero_point"):
                parameter = getattr(layer, name, None)
                if isinstance(parameter, nn.Parameter):
                    # Zero points count levels; offsets are as large as weights.
                    counts = name == "weight_zero_point" and not layer.weight_spec.has_offset
                    size = 1.0 if counts else _size(parameter)
                    scales.append(self._group(parameter, settings.scale_learning_rate * size))
        self.trained = [parameter for group in weights + scales for parameter in group["params"]]
        self._limits = []
        if settings.rounding == "signed":
            self._limits = [
                (layer.weight, layer.weight.detach().clone(), 0.5 * layer.level_distance()) for layer in layers
            ]
            optimizers = [_SignDescent(weights)] + ([_adam(scales)] if scales else [])
        else:
            optimizers = [_adam(weights + scales)]
        self.optimizers = optimizers

    @staticmethod
    def _group(parameter: nn.Parameter, rate: float) -> dict:
        parameter.requires_grad_(True)
        return {"params": [parameter], "lr": rate, "peak": rate}

    def step(self, inputs: Call, wanted: Tensor, step: int) -> None:
        progress = step / max(1, self.settings.steps)
        F.mse_loss(main_tensor(self.block.make(inputs)).float(), wanted.float()).backward()
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * 0.5 * (1.0 + math.cos(math.pi * progress))
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            for weight, begin, reach in self._limits:
                weight.copy_(torch.clamp(weight, begin - reach, begin + reach))

    @torch.no_grad()
    def loss_on(self, inputs: Sequences, wanted: Tensor, places: Tensor) -> float:
        total = 0.0
        for chunk in places.split(self.settings.batch_size):
            found = main_tensor(self.block.make(inputs.of(chunk)))
            total += F.mse_loss(found.float(), wanted[chunk].float(), reduction="sum").item()
        return total / max(1, len(places) * wanted[0].numel())

    def state(self) -> list[Tensor]:
        return [parameter.detach().clone() for parameter in self.trained]

    @torch.no_grad()
    def finish(self, state: list[Tensor]) -> None:
        for parameter, best in zip(self.trained, state, strict=True):
            parameter.copy_(best)
        for parameter, required in self._required:
            parameter.requires_grad_(required)


@torch.no_grad()
def _outputs(block: Block, original: nn.Module, hidden: list) -> list[Tensor]:
    return [main_tensor(block.run(index, tokens, original)) for index, tokens in enumerate(hidden)]


class _SignDescent(torch.optim.Optimizer):
    """Steps of one size against the sign of the gradient (SignRound, arXiv 2309.05516)."""

    def __init__(self, groups: list[dict]):
        super().__init__(groups, {})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.sub_(parameter.grad.sign(), alpha=group["lr"])


def _adam(groups: list[dict]) -> torch.optim.Optimizer:
    return torch.optim.Adam(groups, betas=(0.9, 0.95))


@torch.no_grad()
def _size(parameter: Tensor) -> float:
    return max(parameter.detach().abs().mean().item(), 1e-8)
