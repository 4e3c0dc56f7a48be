"""The cache of keys and values, quantized as an engine would store it, in transformers' attention.

transformers looks an attention's function up by the name in its configuration. ``attach`` puts a name there whose function
rounds the keys (after the rotary embedding) and values and hands them on to the function that was there before.
"""

import sys
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from torchqat import ops
from torchqat._library import KvCache, KvCacheSpec
from torchqat.errors import UserError
from torchqat.layers.attention import CacheShape, cache_shape, causal_attention
from torchqat.layers.state_text import TEXT, as_buffer, other_grid, text_of_cache

_PREFIX = "torchqat-"
# State that a quantized cache adds to an attention layer; engines read the same names.
SCALE_NAMES = ("k_scale", "v_scale")
# And what else it keeps: which levels they are for.
STATE_NAMES = (*SCALE_NAMES, TEXT)


class QuantKvCache(nn.Module):
    """How one attention layer's cache is quantized. ``k_scale`` and ``v_scale`` are its state, where they are calibrated.

    Args:
        spec: The recipe's ``kv_cache``.
        heads: Key and value heads.
        head_size: Channels of a head.
        value_size: Those of a value, where they are others than those of a key.

    Attributes:
        calibrated: Whether it has the scales that it needs, without which it rounds nothing.
        notes: What calibration did not find, in words that follow the layer's name.

    Raises:
        UserError: A group does not divide the size of a head.
    """

    def __init__(self, spec: KvCacheSpec, heads: int, head_size: int, value_size: int | None = None):
        super().__init__()
        self.spec, self.heads, self.head_size = spec, heads, head_size
        self.shape = CacheShape(heads, head_size, value_size or head_size)
        self.enabled = True
        self.calibrated = not spec.calibrated
        self.notes: list[str] = []
        self._observer: KvCache | None = None
        try:
            for size in (self.shape.key_size, self.shape.value_size):
                KvCache(spec, heads, size)
        except ValueError as error:
            raise UserError(str(error)) from error
        for name, side in zip(SCALE_NAMES, (spec.key, spec.value), strict=True):
            size = heads if side.granularity == "head" else 1
            self.register_buffer(name, None if side.dynamic else torch.zeros(size, dtype=torch.float32))
        self.register_buffer(TEXT, as_buffer(text_of_cache(spec)) if spec.calibrated else None)

    def forward(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values ``[batch, heads, tokens, head_size]`` as attention reads them back."""
        return self._rounded(key, self.spec.key, self.k_scale), self._rounded(value, self.spec.value, self.v_scale)

    def _rounded(self, x: Tensor, side: Any, scale: Tensor | None) -> Tensor:
        return ops.fake_quantize_cache(
            x, scale, side.granularity, side.group_size, side.bits, side.grid, self.spec.first, side.scale_dtype
        )

    @property
    def ready(self) -> bool:
        """Whether it rounds: switched on, and calibrated where it must be."""
        return self.enabled and self.calibrated and self._observer is None

    @property
    def group(self) -> int:
        """Tokens that are quantized together."""
        return self.spec.key.group_size if self.spec.key.granularity == "channel" else 1

    # -- calibration -------------------------------------------------------------------------------------------------

    def start_calibration(self) -> None:
        """Observe keys and values, and let them pass as they are."""
        self._observer = KvCache(self.spec, self.heads, self.head_size)

    def observe(self, key: Tensor, value: Tensor) -> None:
        if self._observer is not None:
            self._observer.observe(key.detach(), value.detach())

    @torch.no_grad()
    def finish_calibration(self) -> int:
        """Take the scales of what was observed; returns how many elements were ignored, since they are not finite."""
        observer, self._observer = self._observer, None
        sides = [(self.k_scale, observer.key_scale), (self.v_scale, observer.value_scale)]
        sides = [(buffer, scale) for buffer, scale in sides if buffer is not None]
        self.calibrated = all(scale is not None for _, scale in sides)
        for buffer, scale in sides:
            buffer.copy_(scale if self.calibrated else torch.zeros(()))
        self.notes = observer.notes
        if not self.calibrated and not self.notes:
            self.notes = ["was reached by no calibration batch, so its cache has no range"]
        return observer.ignored

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, strict, missing, unexpected, errors) -> None:
        """A float checkpoint has no scales; it is not incomplete for that."""
        own: list[str] = []
        place = prefix.removesuffix(".")
        if wrong := other_grid(text_of_cache(self.spec), state_dict.get(prefix + TEXT), place):
            errors.append(wrong)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, own, unexpected, errors)
        missing.extend(key for key in own if key.removeprefix(prefix) not in STATE_NAMES)
        if self.quantizer_text is not None and not self.quantizer_text.is_meta:
            self.quantizer_text.copy_(as_buffer(text_of_cache(self.spec)))  # whatever a state said
        scales = [scale for scale in (self.k_scale, self.v_scale) if scale is not None]
        self.calibrated = all(bool((scale > 0).all()) for scale in scales)

    def extra_repr(self) -> str:
        return str(self.spec)


def attach(model: nn.Module, spec: KvCacheSpec) -> None:
    """Give every causal attention layer of ``model`` a quantized cache.

    Raises:
        UserError: The model has no attention of transformers' interface, or some that keeps no keys and values as heads.
    """
    for _, layer, shape in check_attention(model, spec):
        layer.kv_cache = QuantKvCache(spec, shape.heads, shape.key_size, shape.value_size)
        weight = next(layer.parameters())
        if not weight.is_meta:  # weights that will be loaded later
            layer.kv_cache.to(weight.device)
        _redirect(layer.config)
        layer.register_forward_pre_hook(_redirect_again)


def check_attention(model: nn.Module, spec: KvCacheSpec) -> list[tuple[str, nn.Module, CacheShape]]:
    """The causal attention layers of ``model``, of which nothing but shapes is looked at, and what their caches hold.

    Raises:
        UserError: As ``attach``, or a group of ``spec`` does not divide the size of a head.
    """
    layers = causal_attention(model)
    if not layers:
        raise UserError(
            "kv_cache needs a model with causal attention of transformers' attention interface, but "
            f"{type(model).__name__} has none."
        )
    kept = [(name, layer, cache_shape(layer)) for name, layer in layers]
    for name, layer, shape in kept:
        if shape is None:
            raise UserError(_no_heads(name, layer))
        QuantKvCache(spec, shape.heads, shape.key_size, shape.value_size)
    return kept


def _no_heads(name: str, layer: nn.Module) -> str:
    return (
        f"kv_cache needs attention that keeps keys and values as heads, but {name} ({type(layer).__name__}) "
        "keeps something else."
    )


def caches(model: nn.Module) -> list[tuple[str, QuantKvCache]]:
    """The quantized caches of ``model`` by the name of their attention layer, in model order."""
    found = ((name, module) for name, module in model.named_modules() if isinstance(module, QuantKvCache))
    return [(name.rpartition(".")[0], cache) for name, cache in found]


@contextmanager
def without_quantization(module: nn.Module):
    """Caches give back what was put in."""
    found = [(cache, cache.enabled) for _, cache in caches(module)]
    try:
        for cache, _ in found:
            cache.enabled = False
        yield
    finally:
        for cache, enabled in found:
            cache.enabled = enabled


def _redirect(config: Any) -> None:
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    own = (config._attn_implementation or "eager").removeprefix(_PREFIX)
    if own.startswith("paged|"):
        raise UserError(
            f"kv_cache rounds keys and values of one row of tokens, but attention of {own} reads pages of several: generate "
            "without them, or in an engine."
        )
    name = _PREFIX + own
    if name not in ALL_ATTENTION_FUNCTIONS:
        # By the class: the registries of all architectures are one.
        type(ALL_ATTENTION_FUNCTIONS).register(name, _attention(own))
        if own in ALL_MASK_ATTENTION_FUNCTIONS:
            type(ALL_MASK_ATTENTION_FUNCTIONS).register(name, ALL_MASK_ATTENTION_FUNCTIONS[own])
    config._attn_implementation = name


def _redirect_again(layer: nn.Module, _args: tuple) -> None:
    """Another attention may have been chosen since, by ``set_attn_implementation``, or another program have loaded this."""
    _redirect(layer.config)


def _attention(own: str):
    """The function under our name for what the attention function ``own`` did."""

    def attend(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs):
        run = _function(module, own)
        cache = module._modules.get("kv_cache")
        if cache is not None:
            if CacheShape(key.shape[1], key.shape[3], value.shape[3]) != cache.shape or value.shape[1] != key.shape[1]:
                raise UserError(_no_heads("a layer", module))
            cache.observe(key, value)
        if cache is None or not cache.ready:
            return run(module, query, key, value, attention_mask, **kwargs)
        rounded_key, rounded_value = cache(key, value)
        if not cache.spec.mixes:
            return run(module, query, rounded_key, rounded_value, attention_mask, **kwargs)
        mask = _mixed_mask(cache, query, key, attention_mask)
        keys, values = torch.cat([rounded_key, key], 2), torch.cat([rounded_value, value], 2)
        return run(module, query, keys, values, mask, **kwargs)

    return attend


def _function(module: nn.Module, own: str):
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    return ALL_ATTENTION_FUNCTIONS.get_interface(own, eager)


def _mixed_mask(cache: QuantKvCache, query: Tensor, key: Tensor, mask: Tensor | None) -> Tensor:
    """The mask over quantized and then unquantized tokens, each query seeing every token once."""
    queries, keys = query.shape[2], key.shape[2]
    if mask is None:
        order = torch.arange(keys, device=query.device)
        mask = (order <= order[keys - queries :, None])[None, None]
    if mask.dim() != 4:
        raise UserError(
            "kv_cache with keys per channel or recent tokens needs attention that takes a mask of four dimensions; "
            "load the model with attn_implementation sdpa or eager."
        )
    mask = mask[..., :keys]
    pairs = ops.quantized_pairs(query, queries, keys, cache.group, cache.spec.recent, cache.spec.first)
    if mask.dtype == torch.bool:
        return torch.cat([mask & pairs, mask & ~pairs], -1)
    never = torch.finfo(mask.dtype).min
    return torch.cat([mask.masked_fill(~pairs, never), mask.masked_fill(pairs, never)], -1)
