"""A GPU for machines that have none, whose numbers count: what it computes are the host's own bits.

``gpu.Gpu`` knows shapes alone. Code that looks at numbers (a solver, whether a fold held) runs here: each tensor there wraps
one of the host, which does the work, and tensors of two devices refuse to meet as they do on a GPU.
"""

import weakref
from contextlib import ExitStack
from unittest import mock

import torch
from gpu import let_autograd_ask_for_streams
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

_ATEN = torch.ops.aten
_COPIES = {_ATEN.copy_.default, _ATEN._to_copy.default}
_INDEXES = {_ATEN.index.Tensor, _ATEN.index_put_.default, _ATEN.index_put.default, _ATEN._index_put_impl_.default}


class There(Tensor):
    """A tensor on the pretended device; ``_real`` is that of the host."""

    @staticmethod
    def __new__(cls, real: Tensor, device: torch.device):
        layout = real.shape, real.stride(), real.storage_offset()
        made = Tensor._make_wrapper_subclass(cls, *layout, dtype=real.dtype, device=device)
        made._real = real
        return made

    def __init__(self, real: Tensor, device: torch.device):
        pass

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise RuntimeError(f"{func} met a tensor of a GPU after it was gone.")

    def __reduce_ex__(self, protocol):
        """In a file, that of the host, as ``torch.load(map_location="cpu")`` gives it."""
        return self._real.__reduce_ex__(protocol)

    def __deepcopy__(self, memo):
        if id(self) not in memo:
            copied = self.detach().clone()
            is_parameter = isinstance(self, torch.nn.Parameter)
            memo[id(self)] = torch.nn.Parameter(copied, self.requires_grad) if is_parameter else copied
        return memo[id(self)]


class PretendGpu(TorchDispatchMode):
    """While it is on, ``device`` works.

    Args:
        device: ``cuda:0``, or ``xla:0`` for what runs backwards: a torch without CUDA does not walk back over tensors of it.
        memory: Bytes that it has.

    Attributes:
        bytes: What tensors there take.
        most: The most that they took.
    """

    def __init__(self, device: str = "cuda:0", memory: int = 1 << 34):
        super().__init__()
        self.device, self.memory, self.bytes, self.most = torch.device(device), memory, 0, 0
        self._held: set[int] = set()
        self._stream = mock.NonCallableMagicMock(spec=torch.cuda.Stream)  # the only one: nothing waits
        self._modes = ExitStack()
        let_autograd_ask_for_streams()

    def __enter__(self):
        self._modes.enter_context(_Attributes(self))
        torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device=) is a copy from the host
        self._modes.callback(torch._C._set_only_lift_cpu_tensors, False)
        self._modes.enter_context(mock.patch.multiple(torch.cuda, **self._driver()))
        self._modes.enter_context(torch.autograd.set_multithreading_enabled(False))  # there are no threads of devices
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self._modes.close()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        there = any(map(_is_there, given))
        asked = None if kwargs.get("device") is None else torch.device(kwargs["device"])
        goes = there if asked is None else asked.type == self.device.type
        if there:
            _check_one_device(func, args, given)
        if asked is not None and goes:
            kwargs["device"] = torch.device("cpu")
        found = _computed(func, tree_map(_real, args), tree_map(_real, kwargs))
        if func is _ATEN._to_copy.default and there != goes:
            found = found.clone()
        if func._schema.is_mutable:
            own = {id(_real(leaf)): leaf for leaf in given}
            return tree_map(lambda value: own.get(id(value), self.tensor(value) if there else value), found)
        return tree_map(self.tensor, found) if goes else found

    def tensor(self, real):
        """``real`` there, its numbers shared."""
        if not isinstance(real, Tensor) or _is_there(real):
            return real
        storage = real.untyped_storage()
        place, size = storage._cdata, storage.nbytes()
        if place not in self._held:
            self._held.add(place)
            self.bytes += size
            self.most = max(self.most, self.bytes)
            weakref.finalize(storage, self._freed, place, size)
        return There(real, self.device)

    def _driver(self):
        """What torch would say of it."""
        return {
            "_lazy_init": lambda: None,
            "is_available": lambda: True,
            "is_initialized": lambda: True,
            "empty_cache": lambda: None,
            "device_count": lambda: 1,
            "current_device": lambda: 0,
            "current_stream": lambda device=None: self._stream,
            "get_device_name": lambda device=None: "Pretended",
            "get_device_capability": lambda device=None: (9, 0),
            "mem_get_info": lambda device=None: (self.memory - self.bytes, self.memory),
            "is_current_stream_capturing": lambda: False,
            "get_rng_state": lambda device=None: torch.zeros(16, dtype=torch.uint8),
            "get_rng_state_all": lambda: [torch.zeros(16, dtype=torch.uint8)],
            "set_rng_state": lambda state, device=None: None,
            "set_rng_state_all": lambda states: None,
            "manual_seed_all": lambda seed: None,
        }

    def _freed(self, place, size):
        self._held.discard(place)
        self.bytes -= size


class _Attributes(TorchFunctionMode):
    """What of a tensor is no operator."""

    def __init__(self, gpu: PretendGpu):
        super().__init__()
        self._gpu = gpu

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func == Tensor.data.__set__:
            self._set_data(*args)
            return None
        if args and isinstance(args[0], Tensor) and _is_there(args[0]):
            if func in (Tensor.tolist, Tensor.data_ptr, Tensor.untyped_storage):
                return func(_real(args[0]))
            if func == Tensor.data.__get__:
                return There(_real(args[0]), args[0].device)
            if func in (Tensor.numpy, Tensor.__array__):
                raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")
        return func(*args, **(kwargs or {}))

    @staticmethod
    def _set_data(tensor: Tensor, value: Tensor) -> None:
        real = vars(value).get("_real")
        Tensor.data.__set__(tensor, value)
        vars(tensor).pop("_real", None)
        if real is not None:
            tensor._real = real


def _computed(func, args, kwargs):
    if func is _ATEN.histc.default and not args[0].is_floating_point():  # a GPU counts integers, the host does not
        return func(args[0].float(), *args[1:], **kwargs).to(args[0].dtype)
    return func(*args, **kwargs)


def _check_one_device(func, args, given) -> None:
    on_host = [tensor for tensor in given if not _is_there(tensor) and tensor.dim()]  # a number goes anywhere
    if func in _COPIES or not on_host:
        return
    if func in _INDEXES and _is_there(args[0]):  # places may be on the host
        on_host = [tensor for tensor in tree_leaves(args[2:]) if isinstance(tensor, Tensor) and not _is_there(tensor)]
    if on_host:
        raise RuntimeError(f"Expected all tensors to be on the same device, but {func} was given two.")


def _is_there(tensor: Tensor) -> bool:
    return "_real" in vars(tensor)


def _real(value):
    return value._real if isinstance(value, Tensor) and _is_there(value) else value
