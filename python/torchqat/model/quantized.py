"""Models that are quantized already: made dense on the way in, with their scales, where transformers can do that."""

import inspect
import re
from typing import Any

import torch
from torch import nn

from torchqat.errors import UserError, first_of

# Of what engines round as they run: no weight is made of them.
_OF_ACTIVATIONS = re.compile(
    r"\.((in|out)put_|activation_|[qkv]_|kv_)(global_)?(scale|zero_point|observer)$|\.input_low$"
)
# What safetensors files hold codes in.
_CODES = ("F8_E4M3", "F8_E5M2", "I8", "U8", "I32", "F4")
_CODED = re.compile(r"[._](weight|packed|blocks|proj)$")


class Quantized:
    """The quantization that a configuration names, and how transformers undoes it.

    Args:
        config: As transformers reads it; told to make weights dense, where that is a setting of the method.
        path: For messages.

    Attributes:
        method: As ``quant_method`` says, or ``mlx``.

    Raises:
        UserError: transformers cannot make the weights dense.
    """

    def __init__(self, config: Any, path: str):
        self.path = path
        self._holder, found = _holder_of(config)
        self.method = _method_of(found)
        self._found, self._own_way = found, self._way(found)
        if self._own_way == "setting":
            self._holder.quantization_config = {**found, "dequantize": True}

    def _way(self, found: dict[str, Any]) -> str:
        """How its weights become dense: by a ``setting``, ``dequantize`` or ``decompress``."""
        from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING
        from transformers.quantizers.base import HfQuantizer

        if self.method == "torchqat":
            raise UserError(
                f"model must be in floating point, but {self.path} is what torchqat exported in the format safetensors: "
                "give the model that it was made from."
            )
        method = self.method
        if method == "bitsandbytes":
            method += "_4bit" if found.get("load_in_4bit") else "_8bit"
        settings = AUTO_QUANTIZATION_CONFIG_MAPPING.get(method)
        if settings is not None and "dequantize" in inspect.signature(settings.__init__).parameters:
            return "decompress" if _differs_by_layer(found) else "setting"
        quantizer = AUTO_QUANTIZER_MAPPING.get(method)
        if quantizer is not None and quantizer._dequantize is not HfQuantizer._dequantize:
            return "dequantize"
        raise UserError(self.refusal)

    @property
    def refusal(self) -> str:
        return (
            f"model must be in floating point, but {self.path} is quantized by {self.method}, which transformers does not "
            "make dense here: give the model that it was made from."
        )

    @property
    def is_dense_at_once(self) -> bool:
        """Whether loading is all that it takes."""
        return self._own_way == "setting"

    @property
    def needs_weights(self) -> bool:
        """Whether nothing can be found out without them."""
        return self._own_way == "dequantize"

    def check_libraries(self) -> None:
        """Raises what transformers does where a library lacks that it reads such weights with."""
        from transformers.quantizers.auto import AutoHfQuantizer

        AutoHfQuantizer.from_config(self._found, pre_quantized=True).validate_environment(device_map=None)

    @property
    def note(self) -> str:
        return (
            f"{self.path} is quantized by {self.method}: its weights are made dense with their scales, and what is called "
            "full precision is what they then are."
        )

    def check_scales(self, tensors: dict[str, dict[str, Any]]) -> None:
        """Raises UserError, naming the first, if codes have no scale beside them: they would be taken for weights."""
        if self.needs_weights:
            return  # which keeps them under names of its own, and says what it misses
        leaves: dict[str, list[str]] = {}
        for name in tensors:
            leaves.setdefault(name.rpartition(".")[0], []).append(name.rpartition(".")[2])
        coded = [n for n, entry in tensors.items() if entry["dtype"] in _CODES and _CODED.search(n)]
        bare = [name for name in coded if not _has_scale(name.rpartition(".")[2], leaves[name.rpartition(".")[0]])]
        if bare:
            raise UserError(f"{self.path} is quantized by {self.method}, but has no scale for {first_of(bare)}.")

    @torch.no_grad()
    def dense(self, model: nn.Module, dtype: torch.dtype) -> nn.Module:
        """``model``, as it was loaded, with plain layers and weights in ``dtype`` or what the model keeps above it.

        Raises:
            UserError: A weight has not become dense.
        """
        if self._own_way == "dequantize":
            model = model.dequantize(dtype)
        elif self._own_way == "decompress":
            model.hf_quantizer.compressor.decompress_model(model)
        plain = self._plain(model, dtype)
        state = model.state_dict()
        names = {name: parameter.shape for name, parameter in plain.named_parameters()}
        wrong = [n for n, s in names.items() if n not in state or state[n].shape != s or state[n].element_size() < 2]
        wrong += [name for name in names if name not in wrong and not state[name].is_floating_point()]
        if wrong:
            raise UserError(
                f"{self.path} is quantized by {self.method}, of which transformers did not make {first_of(wrong)} dense: "
                "give the model that it was made from."
            )
        if self.is_dense_at_once:
            return model
        own = {name: state[name].to(tensor.dtype) for name, tensor in plain.state_dict().items()}
        plain.load_state_dict(own, assign=True)
        plain.tie_weights()
        plain.generation_config = getattr(model, "generation_config", None)
        return plain

    def _plain(self, model: nn.Module, dtype: torch.dtype) -> nn.Module:
        """The same model before it was quantized: its weights take no memory yet."""
        from accelerate import init_empty_weights

        config = type(model.config).from_dict(
            {k: v for k, v in model.config.to_dict().items() if k != "quantization_config"}
        )
        config._attn_implementation = model.config._attn_implementation
        poolable = "add_pooling_layer" in inspect.signature(type(model).__init__).parameters
        without = {"add_pooling_layer": False} if poolable and getattr(model, "pooler", self) is None else {}
        with init_empty_weights(include_buffers=False):
            return type(model)._from_config(config, dtype=dtype, **without)


def quantization_of(config: Any, path: str) -> Quantized | None:
    """How the model of ``config`` is quantized already; ``None`` where it is not.

    Raises:
        UserError: As ``Quantized``.
    """
    return Quantized(config, path) if _holder_of(config)[1] else None


def is_of_activations(name: str) -> bool:
    """Whether a tensor of a quantized checkpoint scales what is computed, not what is kept."""
    return _OF_ACTIVATIONS.search(name) is not None


def _method_of(found: dict[str, Any]) -> str:
    """MLX alone does not say that it is the method."""
    method = getattr(found.get("quant_method"), "value", found.get("quant_method"))
    if method is None:
        return "mlx" if {"group_size", "bits"} <= found.keys() else "a method that config.json does not name"
    return str(method)


def _has_scale(leaf: str, siblings: list[str]) -> bool:
    stem = leaf.removesuffix("_packed").removesuffix("_blocks")
    return any("scale" in s and (s.startswith(stem) or s in ("scale", "qscale_weight")) for s in siblings)


def _holder_of(config: Any) -> tuple[Any, dict[str, Any]]:
    """The configuration that names the quantization, which may be that of the text alone, and what it says."""
    for holder in (config, config.get_text_config(decoder=True)):
        found = getattr(holder, "quantization_config", None)
        if found is not None:
            return holder, found if isinstance(found, dict) else found.to_dict()
    return config, {}


def _differs_by_layer(found: dict[str, Any]) -> bool:
    """Whether compressed-tensors has schemes of which transformers, making weights dense, would take one for all layers.

    It tells the experts' from the others', and nothing else apart.
    """
    groups = [group for group in (found.get("config_groups") or {}).values() if isinstance(group, dict)]
    of_experts = [any(str(t).startswith("re:") and "experts" in str(t) for t in g.get("targets", [])) for g in groups]
    schemes: dict[bool, set[str]] = {True: set(), False: set()}
    for group, is_of_experts in zip(groups, of_experts, strict=True):
        schemes[is_of_experts].add(repr((group.get("weights"), group.get("format"))))
    return any(len(one) > 1 for one in schemes.values())
