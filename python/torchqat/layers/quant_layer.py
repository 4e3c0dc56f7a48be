"""What every quantized layer is: a weight whose forward uses the numbers that a checkpoint will hold, and an input."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from torchqat import ops
from torchqat._library import FLOAT, LayerPlan, QuantizedWeights, QuantSpec, WeightCache, quantize_weights
from torchqat.layers.fake_quantizer import FakeQuantizer
from torchqat.layers.kept_weight import Maker
from torchqat.layers.layer_state import LATTICE_NAMES as LATTICE_NAMES
from torchqat.layers.layer_state import OUTER_NAMES as OUTER_NAMES
from torchqat.layers.layer_state import SCALE_NAMES as SCALE_NAMES
from torchqat.layers.layer_state import STATE_NAMES as STATE_NAMES
from torchqat.layers.layer_state import LayerState
from torchqat.layers.learned_scales import LearnedScales
from torchqat.layers.quant_input import QuantInput
from torchqat.layers.rounded_shards import RoundedShards
from torchqat.layers.sharded import assign, whole
from torchqat.layers.shared_outer_scale import SharedOuterScale
from torchqat.layers.taken import take_hooks, take_more
from torchqat.layers.weight_scales import WeightScales


class QuantLayer(LayerState, WeightScales, LearnedScales, QuantInput, RoundedShards):
    """Fake quantization of the weight and input of a layer; its subclasses are the layers, each with its forward.

    The parameters keep their names, so a float checkpoint loads into it and its own loads into the float model. What
    training adds is state where torch looks for it: ``weight_scale`` and ``weight_zero_point`` for searched (buffers)
    or learned (parameters) scales (``weight_zero_point`` has the offsets where the grid has some), ``weight_outer_scale``
    and ``weight_outer_offset`` (buffers) for what searched ones are multiples of, ``input_scale`` and
    ``input_zero_point`` for calibrated inputs, ``widths`` for the bits that these belong to.

    Weights are quantized as a matrix: a row for each output, or for each entry of an embedding.

    Args:
        layer: The layer to replace; its parameters are shared, not copied.
        weight: How to quantize the weight, or ``None``.
        input: How to quantize the input, or ``None``.
        method: How searched and learned scales begin: ``rtn`` (from the range) or ``mse``.
        weight_cache: What to keep of the quantized weight while it does not change: ``none`` (it is quantized in every
            forward and backward), ``codes``, ``weights``, or ``auto``: nothing until a ``Schedule`` decides
            (``cache_choice.py``). The results are the same bits.
        keeps_scales: Scales are chosen before training together with codes (GPTQ, AWQ, block training), and a schedule
            returns to them.

    Attributes:
        weight_shape: Of the parameter, as it was when the layer was made.
        called: Whether its forward ran since it was put in; ``model/calls.py`` asks.
        adapter: What is added to the weight before it is quantized, as a function of nothing (``lora.py``); or ``None``.
    """

    kind: str  # as recipes call the class that it stands for
    _settings: tuple[str, ...]  # what the layer's own class keeps

    def __init__(
        self,
        layer: nn.Module,
        weight: QuantSpec | None,
        input: QuantSpec | None,
        method: str = "mse",
        weight_cache: str = "none",
        keeps_scales: bool = False,
    ):
        nn.Module.__init__(self)
        self._take(layer)
        take_hooks(self, layer)
        if isinstance(layer, nn.Module) and not isinstance(layer, QuantLayer):
            take_more(self, layer)
        self.training = layer.training
        self.called = False
        self.adapter: Callable[[], Tensor | None] | None = None
        self.shared_outer_scale: SharedOuterScale | None = None
        self.weight_spec, self.weight_bits = weight, FLOAT
        self._weight_quantizer = FakeQuantizer()
        self._cache, self._maker = WeightCache(weight_cache), Maker()
        self._init_shards()
        self.keeps_scales = keeps_scales and weight is not None and not weight.finds_scale
        self.register_buffer("frozen_codes", None)
        self.weight_shape = tuple(self.weight.shape)
        self._init_state()
        self._register_weight_parameters()
        self._init_input(input, FLOAT, self.weight.device)
        self._init_text()
        self.set_bits(weight.bits if weight else FLOAT, input.bits if input else FLOAT, method)

    def _take(self, layer: nn.Module) -> None:
        """What stays of the layer that this one is put in the place of."""
        for name in self._settings:
            setattr(self, name, getattr(layer, name))
        self.weight = layer.weight

    def name_of(self, place: str) -> str:
        """What plans and checkpoints call the layer that is the module ``place``."""
        return place

    def has_weight(self, state_dict: dict[str, Tensor], prefix: str) -> bool:
        """Whether the weight was loaded of a state that has the layer's own tensors under ``prefix``."""
        return f"{prefix}weight" in state_dict

    def plan(self, name: str) -> LayerPlan:
        """What is planned for it, under that name."""
        rows, cols = self.matrix_shape
        return LayerPlan(name, cols, rows, self.weight_spec, self.input_spec, self.kind)

    # -- the weight as a matrix --------------------------------------------------------------------------------------

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """Rows and columns of the weight as it is quantized."""
        return self.weight.shape[0], self.weight.numel() // self.weight.shape[0]

    @property
    def master(self) -> Tensor:
        """The weight before it is rounded, ``[rows, cols]``, an adapter's share added; one gathered rounded as it is."""
        weight = whole(self.weight)
        matrix = weight if weight.dim() == 2 else weight.flatten(1)
        added = None if self.adapter is None else self.adapter()
        return matrix if added is None else matrix + whole(added).to(matrix.dtype)

    def shaped(self, matrix: Tensor) -> Tensor:
        """A matrix like ``master`` in the shape of the parameter."""
        return matrix.view(self.weight.shape)

    @torch.no_grad()
    def set_master(self, matrix: Tensor) -> None:
        """Put ``matrix`` in the place of the weight. A layer with an adapter has no such place."""
        self.weight_was_given()
        assign(self.weight, self.shaped(matrix))

    @property
    def on_integer_levels(self) -> bool:
        """Whether the weight is rounded now, to integers."""
        spec = self.weight_spec
        return spec is not None and self.weight_bits != FLOAT and not spec.is_named

    # -- widths ------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def set_bits(self, weight_bits: int, input_bits: int, method: str = "mse", derive: bool = True) -> list[str]:
        """Set the widths in force; ``FLOAT`` switches off. Returns the names of the scales and zero points that changed.

        A changed weight width re-derives its scales from the master weight, never from rounded values. ``derive=False``
        keeps them: they were loaded for that width.
        """
        weight_changed = weight_bits not in (self.weight_bits, FLOAT)
        derive, self._of_unknown_width = derive and not self._of_unknown_width, False
        if (weight_bits, input_bits) == (self.weight_bits, self.input_bits):
            return []
        self.put_widths(weight_bits, input_bits)
        changed = []
        fixed = self.input_spec is not None and not self.input_spec.dynamic and input_bits != FLOAT
        if fixed and self._change_input_width(input_bits, derive):
            changed += ["input_scale", "input_zero_point"]
        if not derive or not weight_changed or self.weight_spec is None or self.weight_spec.finds_scale:
            return changed
        self.derive_weight_scale(method)
        return [*changed, "weight_scale", "weight_zero_point"]

    def put_widths(self, weight_bits: int, input_bits: int) -> None:
        """Go to these widths and leave the scales as they are."""
        self.weight_bits, self.input_bits = weight_bits, input_bits
        self._weight_quantizer = FakeQuantizer.of_weight(self.weight_spec, weight_bits, *self.matrix_shape)
        self._input_quantizer = FakeQuantizer.of_input(self.input_spec, input_bits, self.matrix_shape[1])
        self._note_widths(weight_bits, input_bits)
        self.forget_weight()

    # -- forward -----------------------------------------------------------------------------------------------------

    def _observe(self, x: Tensor) -> None:
        if not torch.compiler.is_compiling():
            self.called = True
            self.check_copy()
            self.frozen_weight.see(self)
        if not self.calibrating and not self.following:
            return
        if torch.compiler.is_compiling():
            from torchqat.layers.uncompiled import see  # which imports the compiler

            see(self, x)
        else:
            self.see(x)

    @property
    def multiplies_rows(self) -> bool:
        """Whether all rows of the weight are multiplied with the same vectors, which ``input_rows`` gives."""
        return True

    def input_rows(self, x: Tensor) -> Tensor:
        """The vectors that the rows of the weight are multiplied with, ``[..., cols]``."""
        return x

    @property
    def keeps_weight(self) -> bool:
        """Whether the forward asks the cache for the rounded weight."""
        return False

    def train(self, mode: bool = True):
        """As of any module. Averages are put in the place of weights to evaluate them, often through ``.data``, which no
        version shows."""
        if mode != self.training:
            self.forget_weight()
        return super().train(mode)

    def forget_weight(self) -> None:
        """Drop what is kept of the quantized weight. Needed only after writing to it through ``.data``, and not before
        ``train()``, ``eval()``, a step of the schedule or an export."""
        self._cache.clear()
        if self.shared_outer_scale is not None:
            self.shared_outer_scale.forget()

    def quantized_weight(self) -> Tensor:
        """The weight that the forward uses, as a matrix ``[rows, cols]``, in the dtype of the master weight."""
        if self.frozen_codes is not None:
            return self._frozen_weight(self.weight.dtype)
        if self.gathered_rounded:
            return self.master
        return self._weight_quantizer(self.master, *self._weight_parameters(), self.outer_scale())

    @torch.no_grad()
    def freeze_codes(self) -> None:
        """Keep the codes of the weight as they are, so that its scales alone are left to train (EfficientQAT's E2E-QP).

        Needs a learned scale and an integer grid; zero points stay as they are, too. numerics.md (29).
        """
        self.frozen_codes = self.codes()
        self.weight.requires_grad_(False)
        if self.weight_zero_point is not None:
            self.weight_zero_point.requires_grad_(False)

    def _frozen_weight(self, dtype: torch.dtype) -> Tensor:
        stored, zero_point = self.stored_qparams()
        scale = self.weight_scale + (stored - self.weight_scale).detach()  # exactly the stored one
        return ops.dequantize(self.frozen_codes, scale, zero_point, self.weight_spec.block, dtype)

    # -- convert -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def codes(self) -> Tensor:
        """The integer codes of the weight in force, int8 ``[rows, cols]``."""
        return ops.quantize(self.master, self.weight_spec.quantizer(self.weight_bits, "fixed"), *self.stored_qparams())

    def check_converts(self, name: str) -> None:
        """Whether it can be converted, as far as its numbers do not matter.

        Raises:
            ValueError: A schedule has not ended, an adapter is not merged, its input has no range, or its state was
                averaged.
        """
        self.check_copy()
        self.check_not_averaged()
        if self.weight_bits != self.weight_spec.bits:
            raise ValueError(
                f"{name} must be at its exported width, {self.weight_spec.dtype}, but its schedule has it at "
                f"{'float' if self.weight_bits == FLOAT else f'int{self.weight_bits}'}; finish the schedule first."
            )
        if self.adapter is not None:
            raise ValueError(f"The adapter of {name} must be merged first, with merge_and_unload(), but is not.")
        if self.input_spec is not None and not self.input_spec.dynamic and not (self._observed and self.has_range):
            raise ValueError(
                f"The input of {name} must have a range to be exported, but no batch was calibrated that reached it with "
                "anything but zeros; give torchqat.calibrate such batches, or leave it by a rule with input: float."
            )

    @torch.no_grad()
    def convert(self, name: str, dtype: torch.dtype) -> QuantizedWeights:
        """Codes and scales at the exported width, for a checkpoint in ``dtype``.

        Raises:
            ValueError: What ``check_converts`` says, the weight or a learned scale is not finite, or ``dtype`` cannot hold
                the scales.
        """
        self.check_converts(name)
        self.check_learned(name)
        if self.frozen_codes is not None:
            self.set_master(self._frozen_weight(self.weight.dtype))
        weights = quantize_weights(
            name, self.weight_spec, self.master, *self.stored_qparams(), dtype, *self.stored_outer_scales()
        )
        spec = weights.input = self.input_spec
        if spec is not None and not spec.dynamic:
            scale, zero_point = self.input_scale, self.input_zero_point
            if spec.scale == "learned":
                scale, zero_point = ops.round_qparams(scale, spec.quantizer(spec.bits, "learned"), zero_point)
            weights.input_scale = scale.reshape(1)
            weights.input_zero_point = None if spec.symmetric else zero_point.reshape(1)
        return weights

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, weight={self.weight_spec or 'float'}, input={self.input_spec or 'float'}"
