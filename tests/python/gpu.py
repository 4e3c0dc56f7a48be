"""A GPU for machines that have none: fake tensors of the device ``cuda``, which refuse to meet those of the host."""

import ctypes
from pathlib import Path

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_any

CUDA = torch.device("cuda:0")
# Another device that is not the host, for what runs backwards: a torch without CUDA does not walk back over tensors of it.
OTHER = torch.device("xla:0")
_ATEN = torch.ops.aten


class Gpu(TorchDispatchMode):
    """While it is on, devices other than the host work, but for the numbers.

    A tensor there has a shape and a dtype. Operators compute those, and refuse tensors of two devices as a GPU does. What
    is copied to the host is real there, and full of ones; a number that is read from the device is 0.
    """

    def __init__(self):
        super().__init__()
        self._fake = FakeTensorMode()
        let_autograd_ask_for_streams()

    def __enter__(self):
        self._fake.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self._fake.__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        there = tree_any(lambda x: isinstance(x, FakeTensor), (args, kwargs))
        to = kwargs.get("device")
        if not there and (to is None or to.type == "cpu"):
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        if func is _ATEN._to_copy.default and to is not None and there == (to.type == "cpu"):
            return _copied(args[0].shape, kwargs.get("dtype") or args[0].dtype, to)
        if func is _ATEN.copy_.default and isinstance(args[0], FakeTensor) != isinstance(args[1], FakeTensor):
            return args[0] if isinstance(args[0], FakeTensor) else _filled(args[0])
        if func is _ATEN._local_scalar_dense.default:
            return 0
        if func is _ATEN.equal.default:
            return _equal(*args)
        if func is _ATEN.masked_select.default:  # all of them
            return args[0].new_empty(args[0].numel())
        return func(*args, **kwargs)

    @staticmethod
    def tensor(real):
        """A tensor on the GPU, like ``real`` but for its numbers."""
        return torch.empty(real.shape, dtype=real.dtype, device=CUDA).requires_grad_(real.requires_grad)


def _copied(shape, dtype, to):
    if to.type != "cpu":
        return torch.empty(shape, dtype=dtype, device=to)
    with unset_fake_temporarily():
        return torch.ones(shape, dtype=dtype)


def _filled(host):
    with unset_fake_temporarily():
        return host.fill_(1)


def _equal(one, other):
    if one.device != other.device:
        raise RuntimeError("Expected all tensors to be on the same device, but found two.")
    return one.shape == other.shape


def let_autograd_ask_for_streams():
    """Autograd asks a tensor's device for its stream. Where torch does not know it, the meta device answers."""
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
    guards = (ctypes.c_void_p * 15).in_dll(library, "_ZN3c104impl26device_guard_impl_registryE")
    cuda, xla, meta = 1, 9, 14  # of c10::DeviceType
    for device in (cuda, xla):
        guards[device] = guards[device] or guards[meta]
