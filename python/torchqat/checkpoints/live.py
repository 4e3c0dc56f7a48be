"""``live_weights``: a model in training as a checkpoint's tensors, for an engine that runs."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from torchqat.checkpoints.convert import convert_layers
from torchqat.checkpoints.dtype import stored_dtype
from torchqat.checkpoints.export import FOLDERS, FORMATS, format_for
from torchqat.checkpoints.formats.folder import folder_tensors
from torchqat.checkpoints.formats.mlx import check_products
from torchqat.checkpoints.formats.naming import documents_on_disk
from torchqat.checkpoints.formats.numbers import check_numbers
from torchqat.checkpoints.formats.tensors import checkpoint_plan
from torchqat.device import device_of
from torchqat.errors import UserError
from torchqat.layers.prepared import require_prepared
from torchqat.layers.wrapped import named_as_on_disk
from torchqat.model.disk_names import DiskNames
from torchqat.model.noted import check_still_quantized


def live_weights(
    model: nn.Module,
    format: str = "compressed-tensors",
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Iterator[tuple[str, Tensor]]:
    """The names and tensors that the files of ``export(model, folder, format, dtype=dtype)`` would hold now, bit for bit.

    Nothing is written, and layers are converted one at a time, so that an engine which serves an export of ``model`` takes
    what it has learned since by its own loader: vLLM by ``reload_weights``, SGLang by ``update_weights_from_tensor``.
    Packed weights come with their scales, experts as engines read them, tied weights once, and what stays in floating
    point as it is, all of it copied: the model may train on. Call it anew for each update. Of a model that is spread over
    processes (FSDP2) every process gets all tensors, so that all have to take them, in step. Wrappers are looked through,
    those of ``torch.compile``, DDP and ``AveragedModel``, as ``export`` does.

    Args:
        model: A prepared model at its exported widths; ``train`` or ``eval`` makes no difference.
        format: As of ``export``, but for gguf and onnx, which are one file.
        dtype: As of ``export``.
        device: Where the tensors come; by default where the model is.

    Raises:
        UserError: At once, where ``export`` would refuse the model, the format, the plan or the dtype, or a schedule has it
            at another width. While tensors are taken, where a weight is not finite or ``dtype`` cannot hold a scale.
    """
    if format in FORMATS and format not in FOLDERS:
        raise UserError(
            f"format must be one whose tensors engines load one by one, {', '.join(FOLDERS)}, but is {format}, which is one "
            "file: an engine takes it by starting anew on an export."
        )
    model = named_as_on_disk(model)
    require_prepared(model)
    check_still_quantized(model)
    plan = checkpoint_plan(model)
    check_numbers(model, plan)
    chosen = format_for(model, plan, format)
    dtype = stored_dtype(chosen, dtype)
    if format == "mlx":
        check_products(plan.layers, dtype or next(model.parameters()).dtype)
    names = DiskNames(model)
    documents_on_disk(model, plan, chosen, names)  # which refuses what cannot be described
    layers = convert_layers(model, dtype)
    groups = folder_tensors(model, layers, plan, chosen, names, dtype)
    return _copies(groups, torch.device(device or device_of(model)))


def _copies(groups: Iterator[dict[str, Tensor]], device: torch.device) -> Iterator[tuple[str, Tensor]]:
    for tensors in groups:
        for name, tensor in tensors.items():
            yield name, tensor.to(device, copy=True)
