"""``calibrate``: what needs data before training: weights by GPTQ, AWQ and the like, and the ranges of inputs."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import chain, islice
from typing import Any

import torch
from torch import nn

from torchqat.data.given import as_batch, check_batches, known_to_give
from torchqat.device import find_device
from torchqat.errors import UserError, first_of
from torchqat.layers.kv_cache import caches
from torchqat.layers.prepared import quant_layers, require_prepared
from torchqat.layers.wrapped import unwrapped
from torchqat.model.calls import check_called
from torchqat.model.noted import check_still_quantized, initialization_of, misfits, note_calibration, solves
from torchqat.model.out_of_memory import explained
from torchqat.model.placement import Placed, on_device
from torchqat.model.vocabulary import check_ids
from torchqat.progress import counted
from torchqat.ptq.block import Forward, keeping_no_caches
from torchqat.ptq.calls import moved
from torchqat.ptq.freed_memory import keeping_freed_memory
from torchqat.ptq.ranges import calibrate_ranges, forget_ranges
from torchqat.ptq.result import Calibration
from torchqat.ptq.unpadded import Unpadded, unpadded
from torchqat.ptq.walk import initialize


@torch.no_grad()
def calibrate(
    model: nn.Module,
    batches: Iterable[Any],
    forward: Callable[[nn.Module, Any], Any] | None = None,
    device: str | torch.device | None = None,
) -> Calibration:
    """Round the weights as the recipe's ``initialize`` says, then fix the scales of inputs and caches that need it.

    Scales that are fixed or learned and were chosen for other weights than are there now, since new ones were assigned after
    ``prepare``, are chosen anew before.

    Weights are calibrated block by block (``torchqat.ptq``), each layer on what the quantized layers before it give. For
    the ranges of inputs, weights are used as they are in force and inputs pass unquantized, so that a layer is calibrated
    on what the layers before it really produce. Elements that are not finite are ignored and counted. Padding is left out:
    rows of a batch with an ``attention_mask`` are run without it, those of one length together.

    Args:
        model: A prepared model, or one that holds it.
        batches: Token tensors ``[batch, sequence]``, tuples or dicts of arguments; each is moved to where the model runs.
        forward: How to run one batch; by default ``model(batch)``, ``model(*batch)`` or ``model(**batch)``.
        device: Where to compute, as recipes say it, while the model stays where it is: its blocks go there one at a time,
            and what is kept between two of them lies where the model does. When ``None``, where the model is.

    Returns:
        Ranges, errors per layer, and warnings.

    Raises:
        UserError: The model is not prepared, is a part of one that was, or holds several of them, has other layers or
            weights by now, does not call a planned layer or reads its weight past it, or there is no batch although a method
            or a layer needs one, or an iterator gives none, or what is given are no batches of tensors or, of a model of
            transformers, of tokens that it embeds, or a row of one has text on both sides of padding, or there is no such
            device.
    """
    require_prepared(model)
    check_batches(batches, rows_are_batches=forward is not None)
    model = unwrapped(model)
    check_still_quantized(model)
    with on_device(model, None if device is None else find_device(device), by_blocks=True) as placed:
        given = forward or _forward
        return _calibrated(model, batches, lambda model, batch: given(model, moved(batch, placed.device)), placed)


def _calibrated(model: nn.Module, batches: Iterable[Any], run: Forward, placed: Placed) -> Calibration:
    settings = initialization_of(model)
    result = Calibration()
    anew = _settle_misfits(model, "rtn" if settings.rounding == "rtn" else "mse")
    training = model.training
    once = iter(batches) is batches
    batches, first = _with_first(unpadded(known_to_give(batches)) if once else Unpadded(batches))
    check_called(model, first, run)
    model.eval()
    forget_ranges(model)
    if any(cache.spec.calibrated for _, cache in caches(model)):
        batches = list(batches)  # they are gone through more than once
    try:
        if solves(settings):
            batches = list(batches)
            if not batches:
                raise UserError(
                    f"initialize.method {settings.method} needs at least one calibration batch, but there is none."
                )
            with (
                explained(model, "calibration", "lower data.calibration.samples or sequence_length"),
                keeping_no_caches(model),
                keeping_freed_memory(),
            ):
                result = initialize(model, batches, run, settings, placed=placed)
        result.warnings += anew
        calibrate_ranges(model, "", partial(_run, model, batches, run), result)
    finally:
        model.train(training)
    note_calibration(model)
    return result


def _settle_misfits(model: nn.Module, method: str) -> list[str]:
    """Choose scales anew where weights were assigned since; a sentence where there are any."""
    found = misfits(model)
    layers = [(name, layer) for name, layer in quant_layers(model) if name in found]
    for _, layer in layers:
        layer.forget_lattice()
    for _, layer in layers:
        layer.unsettle_outer_scales()
        layer.derive_weight_scale(method)
        layer.forget_weight()
    if not layers:
        return []
    return [f"Scales of {first_of(list(found))} were those of other weights, and were chosen anew."]


def needs_data(model: nn.Module) -> bool:
    """Whether data decide what ``calibrate`` makes of ``model``, which was just prepared: by its method or by ranges."""
    ranges = any(not layer.input_ready for _, layer in quant_layers(model))
    return solves(model.qat_initialize) or ranges or any(not cache.calibrated for _, cache in caches(model))


def _with_first(batches: Iterable[Any]) -> tuple[Iterable[Any], list[Any]]:
    """``batches`` to be gone through as often as before, and those to see the model's calls on: a list as it is."""
    if iter(batches) is not batches:
        return batches, batches
    first = list(islice(batches, 1))
    return chain(first, batches), first


def _run(model: nn.Module, batches: Iterable[Any], forward: Forward) -> None:
    count = 0
    for batch in counted(batches, "Calibrating ranges"):
        forward(model, batch)
        count += 1
    if not count:
        raise UserError("Calibration needs at least one batch, but there is none.")


def _forward(model: nn.Module, batch: Any) -> Any:
    batch = as_batch(batch)
    check_ids(model, batch)
    if isinstance(batch, Mapping):
        return model(**batch)
    if isinstance(batch, (tuple, list)):
        return model(*batch)
    return model(batch)
