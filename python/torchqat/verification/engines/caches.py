"""Caches of keys and values that engines keep quantized: which of a recipe's each has, and how it is asked for.

By the engines' own sources of late 2026: ``config/cache.py`` of vLLM, ``models/cache.py`` of mlx-lm, ``common/arg.cpp`` of
llama.cpp, the properties of OpenVINO's runtime, and ``cache_utils.py`` of transformers 5.24.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torchqat._library import KvCacheSpec, holds_kv_cache

_BLOCK = 32  # of ggml
_MLX_GROUPS = (32, 64, 128)


@dataclass(frozen=True)
class Setting:
    """How an engine is told to keep a cache.

    Attributes:
        words: For people; empty where the checkpoint tells it.
        types: Of keys and of values, where ``verify`` tells it, too.
    """

    words: str = ""
    types: tuple[str, ...] = ()


@dataclass(frozen=True)
class Caches:
    """What an engine keeps.

    Attributes:
        kept: In words that follow "it keeps".
        setting: How it is told to keep such a cache; ``None`` where it has none of that type.
    """

    kept: str
    setting: Callable[[KvCacheSpec], Setting | None]

    def refusal(self, spec: KvCacheSpec) -> str:
        """Why it does not keep such a cache, in words that follow "because"; empty where it does."""
        return "" if self.setting(spec) is not None else f"it keeps {self.kept}, but this cache is {spec}"


def _transformers(spec: KvCacheSpec) -> Setting | None:
    if holds_kv_cache(spec):
        return Setting()
    bits = spec.key.bits
    whole = not spec.key.is_float and bits in (2, 3, 4, 8) and spec.value.bits == bits and not spec.first
    if not whole or spec.calibrated:
        return None
    settings = f'{{"backend": "hqq", "nbits": {bits}, "residual_length": {max(spec.recent, 1)}}}'
    return Setting(f'generate(cache_implementation="quantized", cache_config={settings})')


def _vllm(spec: KvCacheSpec) -> Setting | None:
    if holds_kv_cache(spec):
        return Setting()
    if spec.recent or spec.first or spec.key != spec.value or spec.calibrated:
        return None
    side = spec.key
    named = {("int8", "token"): "int8_per_token_head", ("fp8_e4m3", "token"): "fp8_per_token_head"}
    word = "nvfp4" if (side.dtype, side.group_size) == ("fp4_e2m1", 16) else named.get((side.dtype, side.granularity))
    return Setting(f"--kv-cache-dtype {word}") if word and side.symmetric else None


def _llama_cpp(spec: KvCacheSpec) -> Setting | None:
    types = {("int8", True): "q8_0", ("int4", False): "q4_1", ("int5", False): "q5_1"}
    found = []
    for side in (spec.key, spec.value):
        in_blocks = side.granularity == "group" and side.group_size == _BLOCK
        found.append(types.get((side.dtype, side.symmetric)) if in_blocks else None)
    if None in found or spec.recent or spec.first:
        return None
    words = f"--cache-type-k {found[0]} --cache-type-v {found[1]} with LLAMA_ATTN_ROT_DISABLE=1"
    return Setting(words, tuple(found))


def _mlx(spec: KvCacheSpec) -> Setting | None:
    side = spec.key
    grouped = side.granularity == "group" and side.group_size in _MLX_GROUPS
    if not grouped or side.symmetric or side.bits not in (2, 4, 8) or spec.value != side or spec.recent or spec.first:
        return None
    return Setting(f"--kv-bits {side.bits} --kv-group-size {side.group_size}")


def _openvino(spec: KvCacheSpec) -> Setting | None:
    words = []
    for name, side in (("KEY", spec.key), ("VALUE", spec.value)):
        if side.symmetric or side.bits not in (4, 8):
            return None
        size = side.group_size if side.granularity == "group" else 0
        words.append(f"{name}_CACHE_PRECISION=u{side.bits}" + (f" {name}_CACHE_GROUP_SIZE={size}" if size else ""))
    return None if spec.recent or spec.first else Setting(" ".join(words))


TRANSFORMERS_CACHES = Caches(
    "keys and values in fp8_e4m3 by the checkpoint's scales or in int2, int3, int4 or int8", _transformers
)
VLLM_CACHES = Caches(
    "keys and values in fp8_e4m3 by the checkpoint's scales, in fp8_e4m3 or symmetric int8 by token or in nvfp4", _vllm
)
LLAMA_CPP_CACHES = Caches(
    f"keys and values in symmetric int8 or asymmetric int4 or int5, in groups of {_BLOCK}", _llama_cpp
)
MLX_CACHES = Caches("keys and values in asymmetric int2, int4 or int8, in groups of 32, 64 or 128", _mlx)
OPENVINO_CACHES = Caches("keys and values in asymmetric int4 or int8", _openvino)
FLOATING_CACHES = Caches("keys and values in floating point", lambda spec: None)
NO_CACHES = Caches("no keys and values", lambda spec: None)
