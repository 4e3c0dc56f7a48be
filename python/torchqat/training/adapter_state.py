"""Scales, widths and the step of a prepared model, and scales of its caches, in what peft saves of its adapters."""

from collections.abc import Iterator

from torch import Tensor, nn

from torchqat.layers.kv_cache import STATE_NAMES as CACHE_NAMES
from torchqat.layers.kv_cache import QuantKvCache
from torchqat.layers.layer_state import STATE_NAMES
from torchqat.layers.prepared import quant_layers
from torchqat.layers.quant_layer import QuantLayer
from torchqat.layers.step import STEP, counting

# The child of a LoRA layer that stands for the state; peft saves what lies in such layers.
_NAME = "lora_quantized"


class AdapterState(nn.Module):
    """Stands for the tensors that quantization added to ``model``, which stay where they are.

    A checkpoint of adapters alone would lack learned scales, and the widths that adapters were trained at.

    Args:
        model: Prepared, with adapters.
        adapters: Their names, which peft looks for in the names of tensors.
    """

    def __init__(self, model: nn.Module, adapters: list[str]):
        super().__init__()
        self._model, self.adapters = (model,), adapters

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        """By the name of each in the model."""
        (model,) = self._model
        if not any(layer.adapter is not None for _, layer in quant_layers(model)):
            return  # merged
        counters = counting(model)
        for place, module in model.named_modules():
            of_cache = CACHE_NAMES if isinstance(module, QuantKvCache) else ()
            leaves = STATE_NAMES if isinstance(module, QuantLayer) else of_cache
            for leaf in (*leaves, *([STEP] if module in counters else [])):
                if getattr(module, leaf, None) is not None:
                    yield f"{place}.{leaf}".removeprefix("."), getattr(module, leaf)

    def _save_to_state_dict(self, destination, prefix, keep_vars) -> None:
        for name, tensor in self._tensors():
            for adapter in self.adapters:  # the last but one of the names, of which dots are the ends
                key = f"{prefix}{adapter}.{name.replace('.', '/')}"
                destination[key] = tensor if keep_vars else tensor.detach()

    def _load_from_state_dict(self, state_dict, prefix, *_) -> None:
        (model,) = self._model
        found: dict[str, dict[str, Tensor]] = {}
        for key, tensor in state_dict.items():
            if key.startswith(prefix):
                name = key.removeprefix(prefix).partition(".")[2].replace("/", ".")
                place, _, leaf = name.rpartition(".")
                found.setdefault(place, {})[leaf] = tensor
        # Modules that count the steps come last: what follows them expects the widths to be there.
        for place in sorted(found, key=lambda place: STEP in found[place]):
            model.get_submodule(place).load_state_dict(found[place], strict=False)


def keep_with_adapters(model: nn.Module, adapted: nn.Module, adapters: list[str]) -> None:
    """Let peft save and load the state of a prepared ``model`` with its adapters, of which ``adapted`` is a layer."""
    if not hasattr(adapted, _NAME):
        adapted.add_module(_NAME, AdapterState(model, adapters))
