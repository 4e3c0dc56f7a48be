"""What a quantized layer keeps beside its weight, and how that survives loading, copying and casts of the model."""

import torch
from torch import Tensor, nn

from torchqat._library import FLOAT
from torchqat.errors import UserError
from torchqat.layers.frozen_weight import FrozenWeight
from torchqat.layers.scale_fit import lattice_misfit
from torchqat.layers.state_text import TEXT, as_buffer, other_grid, text_of_layer
from torchqat.layers.stepped_weight import SteppedWeight
from torchqat.layers.tied_scales import check_learned_together

# What training adds to a layer's state: its scales and zero points, the input's observed range, and the widths in force.
SCALE_NAMES = ("weight_scale", "weight_zero_point", "input_scale", "input_zero_point")
OUTER_NAMES = ("weight_outer_scale", "weight_outer_offset")
LATTICE_NAMES = ("lattice_scale", "lattice_zero_point", "lattice_outer_scale", "lattice_outer_offset")
STATE_NAMES = (
    *SCALE_NAMES,
    *OUTER_NAMES,
    "input_low",
    "input_high",
    *LATTICE_NAMES,
    "frozen_codes",
    "widths",
    "witness",
    TEXT,
)


class LayerState(nn.Module):
    """The state of a quantized layer; to be mixed into it.

    ``widths``, an int8 buffer of the bits of the weight and of the input, says which widths the scales beside it were
    chosen for. A layer that loads a state goes to its widths. ``witness``, int8, holds whole numbers that tell whether what
    keeps an average of the layer has averaged its buffers, too, which cuts off what zero points and codes have beyond one.
    """

    def _init_state(self) -> None:
        self.register_buffer("widths", torch.zeros(2, dtype=torch.int8, device=self.weight.device))
        self.register_buffer("witness", _witness(0, 0).to(self.weight.device))
        self.register_buffer(TEXT, None)
        self._of_unknown_width = False  # of a state from before there were widths in it
        self._is_copy = False
        self.frozen_weight, self.stepped_weight = FrozenWeight(), SteppedWeight()
        self.lost_lattice = False  # weights were loaded that it is not of

    def _init_text(self) -> None:
        """Once it is known how weight and input are quantized."""
        self.quantizer_text = as_buffer(text_of_layer(self.weight_spec, self.input_spec), self.weight.device)

    def _note_widths(self, weight_bits: int, input_bits: int) -> None:
        if not self.widths.is_meta:
            self.widths.copy_(torch.tensor([weight_bits, input_bits], dtype=torch.int8))
            self.witness.copy_(_witness(weight_bits, input_bits))
        self._is_copy = False

    # -- loading -----------------------------------------------------------------------------------------------------

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, strict, missing, unexpected, errors) -> None:
        """A float checkpoint has no scales: derive them from the weights it brings rather than call it incomplete."""
        own: list[str] = []
        check_learned_together(self, state_dict, prefix, errors)
        self._check_text(state_dict, prefix, errors)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, own, unexpected, errors)
        scales = {prefix + name for name in STATE_NAMES}
        missing.extend(key for key in own if key not in scales)
        self.forget_weight()
        self.forget_gathered()
        self.weight_was_given()
        self._is_copy = False
        if prefix + "widths" not in own and not self.widths.is_meta:
            if prefix + "witness" in own:  # of a state from before there was one
                self.witness.copy_(_witness(*self.widths.tolist()))
            elif averaged := self._was_averaged():
                errors.append(averaged)
            self._go_to_widths()
        self._of_unknown_width = prefix + "widths" in own and prefix + "weight_scale" in state_dict
        self._load_input_range()
        if self.quantizer_text is not None and not self.quantizer_text.is_meta:
            self._init_text()  # whatever a state said
        has_weight = self.has_weight(state_dict, prefix)
        if has_weight and self.frozen_codes is not None and prefix + "frozen_codes" in own:
            errors.append(
                f"The codes of {prefix.removesuffix('.') or type(self).__name__} are frozen, so that a weight which is "
                "loaded without codes would have no part in them: load it before torchqat.freeze_codes."
            )
        if has_weight and prefix + "weight_scale" in own and self.weight_bits != FLOAT:
            if prefix + "lattice_scale" in own and lattice_misfit(self):
                self.forget_lattice()
                self.lost_lattice = True
            # Layers that share an outer scale have their weights one after the other, and derive with the last one.
            for layer in self.shared_outer_scale.layers if self.shared_outer_scale else (self,):
                layer.derive_weight_scale()

    def _check_text(self, state_dict, prefix: str, errors: list[str]) -> None:
        if not any(prefix + name in state_dict for name in ("weight_scale", "input_scale")):
            return
        own = text_of_layer(self.weight_spec, self.input_spec)
        if wrong := other_grid(own, state_dict.get(prefix + TEXT), prefix.removesuffix(".") or type(self).__name__):
            errors.append(wrong)

    def _go_to_widths(self) -> None:
        """The scales are there already."""
        weight_bits, input_bits = self.widths.tolist()
        if (weight_bits, input_bits) != (self.weight_bits, self.input_bits):
            self.put_widths(weight_bits, input_bits)
        self._input_scale_bits = input_bits or (self.input_spec.bits if self.input_spec else FLOAT)

    # -- copies ------------------------------------------------------------------------------------------------------

    def __getstate__(self) -> dict:
        return {**vars(self), "_observer": None}  # which goes on from the range that is in the state

    def __setstate__(self, state) -> None:
        super().__setstate__(state)
        self._is_copy, self._widths_version = True, self.widths._version

    def check_copy(self) -> None:
        """Follow the buffers of a copy, such as a moving average of a model, where something has written over them.

        Raises:
            UserError: The widths are others by now, and the scales a mean of those of several widths; or buffers were
                averaged.
        """
        if not self._is_copy or self.widths._version == self._widths_version:
            return
        self.check_not_averaged()
        self._widths_version = self.widths._version
        bits = self.widths.tolist()
        if bits == [self.weight_bits, self.input_bits]:
            return
        if any(isinstance(getattr(self, name, None), nn.Parameter) for name in SCALE_NAMES):
            raise UserError(
                f"Learned scales must be averaged at one width, but this {type(self).__name__} was copied at "
                f"{self.weight_bits} bits and averaged on at {bits[0]}: make the average, such as AveragedModel, after the "
                "last change of widths."
            )
        self._go_to_widths()

    def check_not_averaged(self) -> None:
        """Whether the whole numbers of the state are as they were written.

        Raises:
            UserError: They were averaged.
        """
        if averaged := self._was_averaged():
            raise UserError(averaged)

    def _was_averaged(self) -> str:
        """A sentence, or nothing."""
        if self.witness.is_meta:
            return ""
        if torch.equal(self.witness, _witness(*self.widths.tolist()).to(self.witness.device)):
            return ""
        return (
            "An average of a model must leave its buffers as they are, since zero points and widths are whole numbers, but "
            f"those of this {type(self).__name__} were averaged, or emptied by to_empty: average parameters alone and copy "
            "buffers, as AveragedModel does, and load an emptied model with the state of a prepared one."
        )

    # -- casts -------------------------------------------------------------------------------------------------------

    def weight_was_given(self) -> None:
        """Another weight is here: how the one before it lay and what it was says nothing of this one."""
        self.frozen_weight.forget()
        self.stepped_weight.forget()

    def _apply(self, fn, recurse: bool = True):
        """``to``, ``half`` and their like change the weight's dtype; scales and ranges are float32 in all arithmetic."""
        self.stepped_weight.forget()
        self.forget_weight()  # a copy on the device that the layer leaves, or in another dtype
        self.forget_gathered()
        state = [getattr(self, name, None) for name in STATE_NAMES]
        state += [tensor.grad for tensor in state if isinstance(tensor, Tensor)]
        kept = {id(tensor) for tensor in state if tensor is not None}

        def within_dtype(tensor: Tensor) -> Tensor:
            found = fn(tensor)
            return found if id(tensor) not in kept or found.dtype == tensor.dtype else tensor.to(found.device)

        return super()._apply(within_dtype, recurse)


def _witness(weight_bits: int, input_bits: int) -> Tensor:
    """Each whole number that a mean could fall short of, and two that rise where widths fall, at which a mean stays."""
    return torch.cat([torch.tensor([64 - weight_bits, 64 - input_bits]), torch.arange(1, 128)]).to(torch.int8)
