"""Where torchqat computes: what a recipe, an option or a caller asks for, and where a model lies."""

import gc
import platform
import re
import warnings
from collections.abc import Callable
from itertools import chain

import torch
from torch import Tensor, nn

from torchqat._library import BUILT_WITH_CUDA, REBUILD
from torchqat.errors import UserError, first_line

CPU = torch.device("cpu")


def find_device(asked: str | torch.device = "auto", say: Callable[[str], None] = warnings.warn) -> torch.device:
    """The device that ``asked`` means.

    Args:
        asked: ``cpu``; ``cuda``, the GPU that is current; ``cuda:N``; ``auto``, the GPU that is current where torchqat was
            built for it, else the CPU. A ``torch.device`` of another type is taken as it is.
        say: Told why ``auto`` leaves a GPU alone.

    Returns:
        A device with its index.

    Raises:
        UserError: It is none of them, or a GPU that is not there or that torchqat was not built for.
    """
    if isinstance(asked, torch.device) and asked.type not in ("cpu", "cuda"):
        return asked
    word = str(asked)
    if re.fullmatch(r"auto|cpu|cuda(:\d+)?", word) is None:
        raise UserError(f"device must be auto, cpu, cuda or cuda:N, but is {word}.")
    if word == "cpu" or (word == "auto" and not torch.cuda.is_available()):
        return CPU
    why = _why_not(word)
    if why and word == "auto":
        say(f"{why[0].upper()}{why[1:]}, so the CPU is used.")
        return CPU
    if why:
        raise UserError(f"device must be a GPU that torchqat can use, auto or cpu, but is {word}: {why}.")
    return _gpu(word)


def _gpu(word: str) -> torch.device:
    return torch.device("cuda", int(word.partition(":")[2] or torch.cuda.current_device()))


def _why_not(word: str) -> str:
    """Why a GPU cannot be used, in words; empty where it can."""
    if not torch.cuda.is_available():
        return "torch sees no GPU"
    count = torch.cuda.device_count()
    if int(word.partition(":")[2] or 0) >= count:
        return f"torch sees {'one GPU, cuda:0' if count == 1 else f'{count} GPUs, cuda:0 to cuda:{count - 1}'}"
    if not BUILT_WITH_CUDA:
        return f"torchqat was built without CUDA kernels, which needs the CUDA Toolkit ({REBUILD})"
    gpu = _gpu(word)
    if refusal := _refusal(gpu):
        name, capability = torch.cuda.get_device_name(gpu), "{}.{}".format(*torch.cuda.get_device_capability(gpu))
        return f"the kernels of torchqat do not run on {name}, of compute capability {capability} ({refusal})"
    return ""


def _refusal(gpu: torch.device) -> str:
    """What an operator says that is tried there, if it fails: binaries hold kernels for some GPUs alone."""
    try:
        torch.ops.qat.pack(torch.zeros(1, 2, dtype=torch.int8, device=gpu), 4).cpu()
    except RuntimeError as error:
        return first_line(error)
    return ""


def device_of(model: nn.Module) -> torch.device:
    """Where ``model`` computes: where the first of its tensors is that is not kept on the host; parts of it may be."""
    found = CPU
    for tensor in chain(model.parameters(), model.buffers()):
        place = _place(tensor)
        if place.type not in ("cpu", "meta"):
            return place
    return found


def _place(tensor: Tensor) -> torch.device:
    mesh = getattr(tensor, "device_mesh", None)
    if mesh is not None and mesh.device_type == "cuda":  # parts of parameters may be kept elsewhere
        return torch.device("cuda", torch.cuda.current_device())
    return tensor.device


def name_of(device: torch.device) -> str:
    """What it is called by whoever made it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return platform.processor() or platform.machine()


def release_memory() -> None:
    """Give memory of GPUs that torch keeps for later back to other programs."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
