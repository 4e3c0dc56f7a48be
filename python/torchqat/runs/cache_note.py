"""What users should know of a quantized cache of keys and values that a checkpoint does not tell engines of."""

from torchqat._library import KvCacheSpec
from torchqat.checkpoints.formats.tensors import cache_note as formats_note
from torchqat.verification.engines import ENGINES


def cache_note(cache: KvCacheSpec | None, format: str, engine: str = "") -> str:
    """One sentence, or two where ``engine`` is one that can be told; empty where there is nothing to tell."""
    note = formats_note(cache, format)
    if cache is None or not note:
        return ""
    setting = ENGINES[engine].caches.setting(cache) if engine in ENGINES else None
    return f"{note} {engine} is told it by {setting.words}." if setting is not None and setting.words else note
