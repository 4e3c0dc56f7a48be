"""What the CPU kernels run on: instructions and memory."""

import torch


def cpu_capability() -> str:
    """Instructions that the CPU kernels use: ``avx512``, ``avx2`` or ``portable``.

    The environment variable ``TORCHQAT_CPU_CAPABILITY`` asks for less than the processor has; the results are the same.
    """
    return torch.ops.qat.cpu_capability()


def kept_bytes() -> int:
    """Bytes of memory that torchqat keeps for quantized values on the CPU, in use or not."""
    return torch.ops.qat.kept_bytes()


def most_kept_bytes() -> int:
    """The most that ``kept_bytes`` has been since the last ``release_kept_memory``."""
    return torch.ops.qat.most_kept_bytes()


def release_kept_memory() -> None:
    """Give the kept memory that is not in use back to the system, and what the allocator keeps of memory that was freed."""
    torch.ops.qat.release_kept_memory()


def release_all_but_the_largest() -> None:
    """Give back the kept buffers that are not in use but the largest."""
    torch.ops.qat.release_all_but_the_largest()
