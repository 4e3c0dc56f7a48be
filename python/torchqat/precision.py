"""Which dtypes of 16 bits a device multiplies itself, and which it only emulates, many times slower than float32."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from torchqat._library import DTYPES, Recipe

# By dtype and architecture: what torch.cpu.get_capabilities() calls the instructions, and their makers.
_INSTRUCTIONS = {
    torch.bfloat16: {
        "x86_64": {"amx_bf16": "AMX_BF16", "avx512_bf16": "AVX512_BF16"},
        "arm64": {"sve_bf16": "SVE's BF16", "bf16": "BF16"},
    },
    torch.float16: {
        "x86_64": {"amx_fp16": "AMX_FP16", "avx512_fp16": "AVX512_FP16"},
        "arm64": {"fp16_arith": "FP16"},
    },
}
# The least compute capability whose tensor cores take it.
_TENSOR_CORES = {torch.bfloat16: (8, 0), torch.float16: (7, 0)}
# Values of oneDNN's variable that leave it these products.
_ONEDNN_ENOUGH = re.compile(r"ALL|DEFAULT|AVX10.*|AVX512_CORE_(BF16|FP16|AMX|AMX_FP16)")


@dataclass(frozen=True)
class Products:
    """Of one dtype on one device.

    Attributes:
        multiplied: Whether the device has instructions for them.
        why: Which, or why it has not; the end of a sentence.
    """

    multiplied: bool
    why: str


def products(device: torch.device, dtype: torch.dtype) -> Products:
    """Whether ``device`` multiplies matrices of ``dtype`` itself: only then is it quicker than float32.

    That is told by what the device has, not timed, so that it is the same in every run. Variables that hide instructions
    from torch (``ATEN_CPU_CAPABILITY``, ``ONEDNN_MAX_CPU_ISA``) or from torchqat (``TORCHQAT_CPU_CAPABILITY``) count.

    Args:
        device: Where; of types other than ``cpu`` and ``cuda`` nothing is known, and they are believed.
        dtype: bfloat16 or float16; others need no special instructions.
    """
    if dtype not in _INSTRUCTIONS:
        return Products(True, f"every device multiplies {dtype_word(dtype)}")
    if device.type == "cuda":
        return _of_gpu(device, dtype)
    if device.type == "cpu":
        return _of_processor(dtype)
    return Products(True, f"{device.type} is believed to multiply it")


def emulated(device: torch.device, dtype: torch.dtype, what: str) -> str:
    """A sentence for who asked for ``dtype`` where ``device`` emulates it; empty where it does not.

    Args:
        device: Where.
        dtype: What was asked for.
        what: By what name, such as ``model.dtype``.
    """
    found = products(device, dtype)
    if found.multiplied:
        return ""
    return (
        f"{what} is {dtype_word(dtype)}, whose products {device} emulates, many times slower than those of float32: "
        f"{found.why}."
    )


def emulated_choices(recipe: Recipe, device: torch.device) -> list[str]:
    """A sentence for each dtype that ``recipe`` asks for and ``device`` emulates."""
    asked = {"model.dtype": recipe.model.dtype}
    if (recipe.train.steps or recipe.train.epochs) and recipe.train.mixed_precision != "none":
        asked["train.mixed_precision"] = recipe.train.mixed_precision
    return [said for what, word in asked.items() if (said := emulated(device, DTYPES[word], what))]


def dtype_word(dtype: torch.dtype) -> str:
    """``bfloat16`` and the like."""
    return str(dtype).removeprefix("torch.")


def _of_gpu(device: torch.device, dtype: torch.dtype) -> Products:
    if torch.version.hip:
        return Products(True, "ROCm multiplies it")
    found, least = torch.cuda.get_device_capability(device), _TENSOR_CORES[dtype]
    has = f"compute capability {found[0]}.{found[1]}"
    if found < least:
        return Products(False, f"it has {has}, and tensor cores take {dtype_word(dtype)} from {least[0]}.{least[1]} on")
    return Products(True, f"tensor cores of {has}")


def _of_processor(dtype: torch.dtype) -> Products:
    has: Mapping[str, Any] = torch.cpu.get_capabilities()
    known = _INSTRUCTIONS[dtype].get(has["architecture"], {})
    found = [name for instruction, name in known.items() if has.get(instruction)]
    if not found:
        return Products(False, f"the processor has no {' or '.join(known.values()) or 'known instructions for it'}")
    if hidden := _hidden(has["architecture"]):
        return Products(False, f"{hidden} hides {found[0]}")
    return Products(True, f"the processor has {found[0]}")


def _hidden(architecture: str) -> str:
    """What keeps instructions that are there from being used; empty if nothing does."""
    if not torch.backends.mkldnn.is_available():
        return "this torch, which has no oneDNN,"
    if architecture != "x86_64":
        return ""
    if torch.ops.qat.cpu_capability() != "avx512":
        return "TORCHQAT_CPU_CAPABILITY"
    if torch.backends.cpu.get_cpu_capability() not in ("AVX512", "AVX10_2", "AMX"):
        return "ATEN_CPU_CAPABILITY"
    most = os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA") or "ALL"
    return "" if _ONEDNN_ENOUGH.fullmatch(most.upper()) else "ONEDNN_MAX_CPU_ISA"
