"""The input of a quantized layer: found in every call, or fixed beforehand on calibration data.

Of blocks under an outer scale (NVFP4), ``input_scale`` is the outer one, and they find their own in every call.
"""

import torch
from torch import Tensor, nn

from torchqat._library import Observer, QuantSpec
from torchqat.layers.fake_quantizer import FakeQuantizer
from torchqat.layers.followed_ranges import as_before
from torchqat.layers.padding import without_padding
from torchqat.layers.replica import in_replica
from torchqat.layers.sharded import assign, whole


class QuantInput(nn.Module):
    """What a layer needs to quantize its input; to be mixed into it.

    Attributes:
        input_spec: How, or ``None``.
        input_bits: The width in force.
        observing: Follow the input's range while training, where its observer does.
        calibrating: Observe the input now, whatever the mode, and let it pass as it is.
        saw_zeros: Calibration gave it nothing else.
        replicated: Whether it is trained in several replicas, each of which sees inputs of its own, since there is a
            ``Schedule``.
    """

    replicated = False

    def _init_input(self, spec: QuantSpec | None, bits: int, device: torch.device) -> None:
        self.input_spec, self.input_bits = spec, bits
        self.observing = False
        self.calibrating = False
        self.saw_zeros = False
        self._observer: Observer | None = None
        self._observed = False  # a calibrated input has a range; before, it passes as it is
        self._input_quantizer = FakeQuantizer()
        self._register_input_parameters(device)

    def _register_input_parameters(self, device: torch.device) -> None:
        spec = self.input_spec
        if spec is None or spec.dynamic:
            return
        self._input_scale_bits = spec.bits  # the width that input_scale was chosen for
        self.register_buffer("input_low", torch.zeros(1, 1, dtype=torch.float32, device=device))
        self.register_buffer("input_high", torch.zeros(1, 1, dtype=torch.float32, device=device))
        if spec.scale == "learned":
            self.input_scale = nn.Parameter(torch.ones(1, 1, dtype=torch.float32, device=device))
            self.input_zero_point = (
                None if spec.symmetric else nn.Parameter(torch.zeros(1, 1, dtype=torch.float32, device=device))
            )
        else:
            self.register_buffer("input_scale", torch.ones(1, 1, dtype=torch.float32, device=device))
            self.register_buffer("input_zero_point", torch.zeros(1, 1, dtype=torch.int8, device=device))

    def quantized_input(self, x: Tensor) -> Tensor:
        """The input that the forward uses, in the shape and dtype of ``x``."""
        return self._input_quantizer(x, *self._input_parameters())

    def _input_parameters(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Scale, zero point and outer scale; what is ``None`` is found in every call, or has no part in this one."""
        if not self._input_quantizer.text or not self.input_ready:
            return None, None, None
        scale, zero_point = getattr(self, "input_scale", None), getattr(self, "input_zero_point", None)
        is_outer = scale is not None and self.input_spec.has_outer_scale
        found = (None, None, scale) if is_outer else (scale, zero_point, None)
        if not self.following:
            return found
        # The next forward may move them before this one's backward reads them.
        return as_before(self, tuple(p if p is None or isinstance(p, nn.Parameter) else p.clone() for p in found))

    @property
    def following(self) -> bool:
        """Whether this forward takes its input into the range."""
        spec = self.input_spec
        return self.observing and self.training and spec is not None and spec.follows

    def _change_input_width(self, bits: int, derive: bool) -> bool:
        """A range that is observed gives the new scale; one that was searched or learned is kept as it is.

        Returns whether the scale changed.
        """
        before, self._input_scale_bits = self._input_scale_bits, bits
        if not derive or before == bits:
            return False
        range = Observer(QuantSpec(8))
        if self.input_spec.scale == "minmax":
            range.restore(self.input_low, self.input_high)
        else:
            zero = 0 if self.input_zero_point is None else whole(self.input_zero_point)
            scale = whole(self.input_scale)
            ends = torch.stack([(end - zero) * scale for end in self.input_spec.quant_range(before)])
            range.restore(ends.amin(), ends.amax())
        self.input_scale_from(range)
        return True

    def see(self, x: Tensor) -> None:
        """Take note of an input, and, for ``Schedule.step``, of whether replicas see others.

        A forward that a backward runs again has seen its input and rounds by the range that followed from it; it is outside
        of the replica. What is evaluated in between says nothing of replicas.
        """
        if self.calibrating or torch._C._current_graph_task_id() == -1:
            self.replicated |= self.training and torch.is_grad_enabled() and in_replica()
            self.observe(x)

    @torch.no_grad()
    def observe(self, x: Tensor) -> None:
        """Take ``x`` into the input's range, but for padding and what is not finite, and follow that unless it is learned.

        Nothing here waits for the device.
        """
        spec = self.input_spec
        if spec is None or spec.dynamic:
            return
        self.observer.observe(without_padding(x))
        if not self.observer.observed:
            return
        self._observed = True
        low, high = self.observer.range()
        self.input_low.copy_(low)
        self.input_high.copy_(high)
        if spec.scale == "minmax" and not self.calibrating:
            self.input_scale_from(self.observer)

    @property
    def has_range(self) -> bool:
        """Whether anything but zeros was observed, which fit under any scale and say nothing of what else may come."""
        return not bool(((self.input_low == 0) & (self.input_high == 0)).all())

    @property
    def input_ready(self) -> bool:
        """Whether the input is rounded, where its width says so: its scale is found in every call, or was calibrated."""
        return not self.calibrating and (self.input_spec is None or self.input_spec.dynamic or self._observed)

    def rounds(self, x: Tensor) -> bool:
        """Whether ``x`` is rounded now: an expert may be given no rows at all, which have no block that a scale is of."""
        return self.input_ready and (torch.compiler.is_compiling() or x.numel() > 0)

    @property
    def observer(self) -> Observer:
        """The observer of the input, which goes on from the range that is in the state."""
        if self._observer is None:
            self._observer = Observer(self.input_spec)
            if self._observed:
                self._observer.restore(self.input_low, self.input_high)
        return self._observer

    @torch.no_grad()
    def set_input_range(self, low: float | Tensor, high: float | Tensor) -> None:
        """Go on from this range, numbers or tensors of one, and take the scale of it unless that is learned."""
        self.observer.restore(low, high)
        self.input_low.fill_(low)
        self.input_high.fill_(high)
        if self.input_spec.scale == "minmax" or not self._observed:
            self.input_scale_from(self.observer)
        self._observed = True

    @torch.no_grad()
    def forget_input_range(self) -> None:
        """Let an input whose scale is fixed beforehand pass as it is, until it is calibrated anew."""
        if self.input_spec is not None and not self.input_spec.dynamic:
            self._observer, self._observed = None, False
            self.input_low.zero_()
            self.input_high.zero_()

    def start_calibration(self) -> None:
        """Observe the input from now on, which passes as it is."""
        self.forget_input_range()
        self.calibrating = True

    def finish_calibration(self) -> int:
        """Take the scale of what was observed; returns how many elements were ignored, since they are not finite."""
        observer, self.calibrating = self.observer, False
        has_range = self.has_range
        self._observed, self.saw_zeros = not observer.empty and has_range, not observer.empty and not has_range
        self.input_scale_from(observer)
        if not self.input_spec.follows or self.saw_zeros:
            self._observer = None  # its histogram is not needed any more; a range that follows begins with what comes
        return observer.ignored

    @torch.no_grad()
    def input_scale_from(self, observer: Observer) -> None:
        scale, zero_point = observer.qparams(self.input_spec, self._input_scale_bits)
        assign(self.input_scale, scale)
        if self.input_zero_point is not None:
            assign(self.input_zero_point, zero_point)

    def _load_input_range(self) -> None:
        """Go on from the range that was loaded."""
        self._observer = None
        if self.input_spec is not None and not self.input_spec.dynamic:
            self._observed = self.has_range
