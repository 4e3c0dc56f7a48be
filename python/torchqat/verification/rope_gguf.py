"""Whether a GGUF file has llama.cpp rotate by the frequencies of the model; worked out without the code that writes it."""

import copy
import math

import torch
from torch import Tensor, nn

from torchqat.checkpoints.readers.gguf import LONG_ROPE_FACTORS, ROPE_FACTORS, GgufFile


def rope_factors(whole: GgufFile, model: nn.Module) -> dict[str, Tensor]:
    """What a file must have beside its keys: numbers that the frequencies which these stand for are divided by, float32.

    Of a file whose keys are wrong, these are more than llama.cpp's architecture knows, so that they are missing there.
    """
    config = model.config.get_text_config()
    parameters = getattr(config, "rope_parameters", None) or {}
    if parameters.get("rope_type") == "longrope":
        factors = (parameters["long_factor"], parameters["short_factor"])
        return {name: torch.tensor(f) for name, f in zip(LONG_ROPE_FACTORS, factors, strict=True)}
    found = {}
    for kind, suffix in (("", ""), ("full_attention_", ""), ("sliding_attention_", "_swa")):
        used = _frequencies_of(model, kind)
        if used is not None:
            factors = _frequencies_by_keys(whole, 2 * len(used), suffix) / used
            if not torch.allclose(factors, torch.ones_like(factors), rtol=1e-4):
                found[ROPE_FACTORS + suffix] = factors
    return found


def _frequencies_of(model: nn.Module, kind: str) -> Tensor | None:
    """Those that the model rotates by; by yarn, those of ranges that end at whole channels, as llama.cpp has them."""
    rotary = _rotary(model, kind)
    if rotary is None:
        return None
    config = model.config.get_text_config()
    if (config.rope_parameters or {}).get("truncate", True):
        return getattr(rotary, f"{kind}inv_freq").float().cpu()
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    cut = copy.deepcopy(config)
    cut.rope_parameters["truncate"] = True
    return ROPE_INIT_FUNCTIONS["yarn"](cut, torch.device("cpu"))[0].float()


def rotary_of(model: nn.Module) -> tuple[nn.Module, int] | None:
    """What rotates the heads of ``model``, and by how many frequencies; ``None`` where nothing does."""
    for kind in ("", "full_attention_"):
        if (rotary := _rotary(model, kind)) is not None:
            return rotary, len(getattr(rotary, f"{kind}inv_freq"))
    return None


def _rotary(model: nn.Module, kind: str) -> nn.Module | None:
    named = model.named_modules()
    return next((m for n, m in named if n.endswith("rotary_emb") and hasattr(m, f"{kind}inv_freq")), None)


def _frequencies_by_keys(whole: GgufFile, size: int, suffix: str) -> Tensor:
    base = float(whole.value(f"rope.freq_base{suffix}"))
    plain = 1.0 / base ** (torch.arange(0, size, 2, dtype=torch.float32) / size)
    kind = "" if suffix else whole.optional("rope.scaling.type")
    if kind not in ("linear", "yarn"):
        return plain
    factor = float(whole.value("rope.scaling.factor"))
    if kind == "linear":
        return plain / factor
    context = int(whole.value("rope.scaling.original_context_length"))
    fast, slow = (float(whole.value(f"rope.scaling.yarn_beta_{end}")) for end in ("fast", "slow"))

    def channel(turns: float) -> float:
        return size * math.log(context / (turns * 2 * math.pi)) / (2 * math.log(base))

    low, high = max(0, math.floor(channel(fast))), min(size - 1, math.ceil(channel(slow)))
    ramp = ((torch.arange(size // 2, dtype=torch.float32) - low) / max(0.001, high - low)).clamp(0, 1)
    return plain / factor * ramp + plain * (1 - ramp)
