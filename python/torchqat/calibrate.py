"""``calibrate``: what needs data before training: weights by GPTQ, AWQ and the like, and the ranges of inputs."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from torchqat.errors import UserError
from torchqat.linear import QuantLinear
from torchqat.prepare import quant_layers, require_prepared
from torchqat.ptq.initialize import Calibration, initialize

# Elements kept per layer for a search of the least squared error.
_SAMPLED = 1 << 16


@torch.no_grad()
def calibrate(
    model: nn.Module, batches: Iterable[Any], forward: Callable[[nn.Module, Any], Any] | None = None
) -> Calibration:
    """Round the weights as the recipe's ``initialize`` says, then set the scale of every input that is not found per call.

    Weights are calibrated block by block (``torchqat.ptq``), each layer on what the quantized layers before it give. For
    the ranges of inputs, weights are used as they are in force and inputs pass unquantized, so that a layer is calibrated
    on what the layers before it really produce. Elements that are not finite are ignored and counted.

    Args:
        model: A prepared model.
        batches: Token tensors ``[batch, sequence]``, tuples or dicts of arguments.
        forward: How to run one batch; by default ``model(batch)``, ``model(*batch)`` or ``model(**batch)``.

    Returns:
        Ranges, errors per layer, and warnings.

    Raises:
        UserError: The model is not prepared, or there is no batch although a method or a layer needs one.
    """
    require_prepared(model)
    run = forward or _forward
    settings = getattr(model, "qat_initialize", None)
    result = Calibration()
    if settings is not None and (settings.needs_data or settings.transforms):
        batches = list(batches)
        if not batches:
            raise UserError(
                f"initialize.method {settings.method} needs at least one calibration batch, but there is none."
            )
        training = model.training
        model.eval()
        try:
            result = initialize(model, batches, run, settings)
        finally:
            model.train(training)
    result.ranges = _calibrate_inputs(model, batches, run)
    return result


def _calibrate_inputs(
    model: nn.Module, batches: Iterable[Any], forward: Callable[[nn.Module, Any], Any]
) -> dict[str, tuple[float, float]]:
    layers = [(n, m) for n, m in quant_layers(model) if m.input_spec is not None and not m.input_spec.dynamic]
    if not layers:
        return {}
    samplers = {name: _Sampler(layer) for name, layer in layers}
    training = model.training
    model.eval()
    try:
        for _, layer in layers:
            layer.calibrating = True
        seen = sum(1 for batch in batches if forward(model, batch) is not None)
    finally:
        for name, layer in layers:
            layer.calibrating = False
            samplers[name].remove()
        model.train(training)
    if seen == 0:
        raise UserError("Calibration needs at least one batch, but there is none.")
    for name, layer in layers:
        if layer.input_spec.scale != "minmax":
            layer.derive_input_scale(samplers[name].samples(), "mse")
    return {name: (layer.input_low.item(), layer.input_high.item()) for name, layer in layers}


class _Sampler:
    """Keeps evenly spaced elements of what enters a layer, for ranges that are searched."""

    def __init__(self, layer: QuantLinear):
        self._kept: list[Tensor] = []
        self._handle = None
        if layer.input_spec.scale != "minmax":
            self._handle = layer.register_forward_pre_hook(self._keep)

    def _keep(self, _module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        flat = inputs[0].detach().flatten()
        self._kept.append(flat[:: max(1, flat.numel() // _SAMPLED)].float())

    def samples(self) -> Tensor:
        return torch.cat(self._kept)

    def remove(self) -> None:
        if self._handle is not None:
            self._handle.remove()


def _forward(model: nn.Module, batch: Any) -> Any:
    if isinstance(batch, dict):
        return model(**batch)
    if isinstance(batch, (tuple, list)):
        return model(*batch)
    return model(batch)
