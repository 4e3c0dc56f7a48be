"""Scales that are fixed beforehand: of inputs, and of caches of keys and values."""

from collections.abc import Callable, Collection

from torch import nn

from torchqat.layers.kv_cache import caches
from torchqat.layers.prepared import quant_layers
from torchqat.layers.quant_layer import QuantLayer
from torchqat.model.calls import same_place
from torchqat.ptq.result import Calibration


def forget_ranges(model: nn.Module) -> None:
    """Let every input and cache whose scale is fixed beforehand pass as it is, until it is calibrated anew."""
    for _, cache in caches(model):
        cache.calibrated = not cache.spec.calibrated
    for _, layer in quant_layers(model):
        layer.forget_input_range()


def calibrate_ranges(
    module: nn.Module, prefix: str, run: Callable[[], None], result: Calibration, later: Collection[int] = ()
) -> bool:
    """Calibrate what in ``module`` is not calibrated yet: caches first, since they change what layers are given.

    Args:
        module: A model or one of its blocks, its weights as they will be used.
        prefix: Its name in the model.
        run: Runs it on all calibration data.
        result: Where ranges, scales and warnings go.
        later: The ``id`` of each module that is left for another time.

    Returns:
        Whether there was something.
    """
    dot = f"{prefix}." if prefix else ""
    open_caches = [
        (dot + name, cache) for name, cache in caches(module) if not cache.calibrated and id(cache) not in later
    ]
    if open_caches:
        ignored = _observed([cache for _, cache in open_caches], run)
        for (name, cache), count in zip(open_caches, ignored, strict=True):
            result.cache_scales[name] = (cache.k_scale, cache.v_scale)
            _note_ignored(result, f"{name}: keys and values", count)
            for note in cache.notes:
                _note(result, f"{name} {note}.")
    layers = [
        (dot + name, layer) for name, layer in quant_layers(module) if not layer.input_ready and id(layer) not in later
    ]
    if layers:
        ignored = _observed([layer for _, layer in layers], run)
        for (name, layer), count in zip(layers, ignored, strict=True):
            result.ranges[name] = (layer.input_low.item(), layer.input_high.item())
            _note_ignored(result, f"{name}: inputs", count)
        _lend_ranges(module, prefix, layers, result)
    return bool(open_caches or layers)


def _lend_ranges(module: nn.Module, prefix: str, layers: list[tuple[str, QuantLayer]], result: Calibration) -> None:
    """An expert that no token was sent to takes the range of all its neighbours together."""
    dot = f"{prefix}." if prefix else ""
    reached = [(name.removeprefix(dot), layer) for name, layer in layers if layer.input_ready]
    for name, layer in layers:
        if layer.input_ready:
            continue
        lenders = [other for other_name, other in reached if same_place(module, name.removeprefix(dot), other_name)]
        if not lenders:
            _note(result, f"{name} {_why_none(layer)}, so its input has no range.")
            continue
        low, high = min(o.input_low.item() for o in lenders), max(o.input_high.item() for o in lenders)
        layer.set_input_range(low, high)
        result.ranges[name] = (low, high)
        result.warnings.append(
            f"{name} {_why_none(layer)}, so its input has the range of the {len(lenders)} beside it."
        )


def _why_none(layer: QuantLayer) -> str:
    return (
        "was given zeros alone by all calibration batches" if layer.saw_zeros else "was reached by no calibration batch"
    )


def _observed(observers: list, run: Callable[[], None]) -> list[int]:
    try:
        for observer in observers:
            observer.start_calibration()
        run()
    finally:
        ignored = [observer.finish_calibration() for observer in observers]
    return ignored


def _note(result: Calibration, sentence: str) -> None:
    """Once: what a block did not find is looked for again in the whole model."""
    if sentence not in result.warnings:
        result.warnings.append(sentence)


def _note_ignored(result: Calibration, what: str, count: int) -> None:
    if count:
        result.warnings.append(f"{what} had {count} elements that are not finite, which were ignored.")
