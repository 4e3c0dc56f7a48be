"""What a reader found on disk, by the names and in the shapes of the model, as transformers' loader puts it together."""

import torch
from torch import nn

from torchqat.checkpoints.readers.reading import Reading
from torchqat.layers.prepared import quant_layers, weight_name
from torchqat.model.disk_sources import DiskSources


def in_model(reading: Reading, model: nn.Module, is_dense: bool = False) -> Reading:
    """``reading`` with the names of ``model``; what the model has no place for keeps a name of its own.

    ``is_dense``: nothing on disk says which weights are those of quantized layers, so the model does.
    """
    dense = {f"{name}.weight": weight for name, weight in reading.weights.items()}
    tensors = {**reading.others, **dense}
    lacking = [f"{name.rpartition('.')[0]}.weight" for name in reading.missing]
    sources = DiskSources(model, [*tensors, *(name for name in lacking if name not in tensors)])
    found = Reading()
    for name in sources.unexpected:
        if name in tensors:
            place = sources.found[name]
            own = place in sources.sources or sources.ignored(name)
            _put(found, name if own else place, tensors[name], name in dense)
    for source in sources.sources.values():
        if not all(name in tensors for name in source.names):
            continue
        try:
            made = source.load(model, tensors.__getitem__)
        except (RuntimeError, ValueError):  # of parts that do not fit together, so that the whole is missing
            continue
        dtypes = {tensors[name].dtype for name in source.names}
        kept = dtypes.pop() if len(dtypes) == 1 else None
        for name, tensor in made.items():
            # Some conversions also give the dtype of the model, which would hide what the file rounds to.
            stored = tensor.to(kept) if kept is not None and tensor.is_floating_point() else tensor
            _put(found, name, stored, any(part in dense for part in source.names))
    for name, layer in zip(reading.missing, lacking, strict=True):
        place, leaf = sources.found[layer], name.rpartition(".")[2]
        found.missing.append(place.removesuffix("weight") + leaf if place.endswith(".weight") else name)
    for name, layer in quant_layers(model) if is_dense else []:
        own = weight_name(name, layer)
        if layer.weight_spec is not None and own in found.others:
            found.weights[name] = found.others.pop(own)
    return found


def _put(reading: Reading, name: str, tensor: torch.Tensor, quantized: bool) -> None:
    if quantized:
        reading.weights[name.removesuffix(".weight")] = tensor
    else:
        reading.others[name] = tensor
