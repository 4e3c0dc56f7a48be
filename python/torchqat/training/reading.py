"""Numbers of a device, read on the host: all of a step at once, since each reading waits for the device."""

import torch
from torch import Tensor


def read_together(numbers: dict[str, Tensor], device: torch.device) -> dict[str, list[float]]:
    """The elements of all ``numbers`` on the host, by name; put together on ``device`` and copied once."""
    flat = {name: tensor.detach().reshape(-1).to(device, torch.float64) for name, tensor in numbers.items()}
    found = torch.cat(list(flat.values())).cpu().split([len(tensor) for tensor in flat.values()])
    return {name: values.tolist() for name, values in zip(flat, found, strict=True)}


class OnTheWay:
    """Numbers that are copied to the host while the device goes on; who asks for them waits for no more than that copy.

    Args:
        numbers: ``[n]``, on any device; as they are now, whatever becomes of them.
    """

    def __init__(self, numbers: Tensor):
        self._numbers = numbers.to("cpu", non_blocking=numbers.is_cuda)  # to pinned memory
        on_gpu = numbers.is_cuda and torch.cuda.is_available()
        self._done = torch.cuda.current_stream(numbers.device).record_event() if on_gpu else None

    def get(self) -> list[float]:
        if self._done is not None:
            self._done.synchronize()
        return self._numbers.tolist()
