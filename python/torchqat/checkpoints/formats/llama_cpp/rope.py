"""Rotary embeddings as keys and tensors of a GGUF file, and what llama.cpp does not rotate by."""

import math
from typing import Any

import gguf
import torch
from torch import Tensor, nn

from torchqat.checkpoints.formats.llama_cpp.architecture import Architecture
from torchqat.errors import UserError

FACTORS = "rope_freqs.weight"
LONG_FACTORS, SHORT_FACTORS = "rope_factors_long.weight", "rope_factors_short.weight"


def parameters_of(config: Any) -> dict[str, Any]:
    """Of the rotary embedding of blocks that attend to everything; empty for models without one."""
    found = getattr(config, "rope_parameters", None) or {}
    return found.get("full_attention") or found


def _sliding_parameters(config: Any) -> dict[str, Any]:
    """Of blocks that attend to a window, where those rotate in a way of their own."""
    return (getattr(config, "rope_parameters", None) or {}).get("sliding_attention") or {}


def rotates(config: Any) -> bool:
    """Whether positions are rotations; others are embeddings that are added."""
    return bool(parameters_of(config)) or hasattr(config, "rope_theta")


def rope_base(config: Any) -> float:
    return float(parameters_of(config).get("rope_theta") or getattr(config, "rope_theta", None) or 10000.0)


def rotated_size(config: Any) -> int:
    """Channels of a head that are rotated."""
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    part = parameters_of(config).get("partial_rotary_factor") or getattr(config, "partial_rotary_factor", None) or 1.0
    return int(size * part)


def check_rope(model: nn.Module, architecture: Architecture) -> None:
    """Whether llama.cpp rotates as the model does, once the file says how.

    Raises:
        UserError: It does not.
    """
    config = model.config.get_text_config()
    if not rotates(config):
        return
    parameters = parameters_of(config)
    kind = parameters.get("rope_type") or "default"
    taken = ["default", "linear", "yarn"] + ["llama3"] * architecture.divides_frequencies
    taken += ["longrope"] * (architecture.gguf == "phi3")
    if kind not in taken:
        raise UserError(
            f"gguf takes rotary embeddings of a {config.model_type} that are {', '.join(taken[:-1])} or {taken[-1]}, but "
            f"this model's is {kind}."
        )
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if rotated_size(config) != size and not architecture.rotates_part:
        raise UserError(
            f"gguf takes a {config.model_type} whose heads are rotated whole, but of this one {rotated_size(config)} of "
            f"{size} channels are."
        )
    if kind == "default" and not architecture.divides_frequencies and _divisors(model) is not None:
        raise UserError(
            f"gguf takes rotary embeddings of a {config.model_type} whose frequencies are those of rope_theta, but this "
            "model's are others, as half() makes them: give its weights another dtype when it is loaded."
        )
    _check_sliding(config, kind, _sliding_parameters(config))
    if kind == "yarn":
        _check_yarn(config, parameters)


def _check_sliding(config: Any, kind: str, sliding: dict[str, Any]) -> None:
    if sliding and ((sliding.get("rope_type") or "default") != "default" or kind not in ("default", "linear")):
        raise UserError(
            f"gguf takes a {config.model_type} that stretches positions linearly, and those in windows not at all, but this "
            f"one has {kind} and {sliding.get('rope_type')}."
        )


def _check_yarn(config: Any, parameters: dict[str, Any]) -> None:
    factor = parameters["factor"]
    usual = 0.1 * math.log(factor) + 1.0 if factor > 1.0 else 1.0
    given = parameters.get("attention_factor") or usual
    if abs(given - usual) > 1e-4 or parameters.get("mscale") or parameters.get("mscale_all_dim"):
        raise UserError(
            f"gguf takes rotary embeddings by yarn whose attention is scaled by {usual:.4f} = 1 + ln({factor}) / 10, but "
            "this model's is scaled otherwise."
        )
    if rounds_yarn(config) and config.model_type != "gpt_oss":
        raise UserError("gguf takes rotary embeddings by yarn whose truncate is true, but this model's is false.")


def add_rope(writer: gguf.GGUFWriter, model: nn.Module, architecture: Architecture) -> None:
    """The keys of a rotary embedding that ``check_rope`` has nothing against."""
    config = model.config.get_text_config()
    if not rotates(config):
        return
    check_rope(model, architecture)
    parameters = parameters_of(config)
    kind = parameters.get("rope_type") or "default"
    writer.add_rope_freq_base(rope_base(config))
    if "rope_theta" in _sliding_parameters(config):
        writer.add_rope_freq_base_swa(float(_sliding_parameters(config)["rope_theta"]))
    if kind in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(kind))
        writer.add_rope_scaling_factor(float(parameters["factor"]))
    if kind == "yarn":
        writer.add_rope_scaling_orig_ctx_len(_original_context(config))
        writer.add_rope_scaling_yarn_beta_fast(float(parameters.get("beta_fast") or 32.0))
        writer.add_rope_scaling_yarn_beta_slow(float(parameters.get("beta_slow") or 1.0))
    if kind == "longrope":
        writer.add_rope_scaling_orig_ctx_len(_original_context(config))
        writer.add_rope_scaling_attn_factors(_attention_factor(config))


def rope_tensors(model: nn.Module, architecture: Architecture) -> dict[str, Tensor]:
    """What frequencies are divided by, where a key does not say it, float32 ``[rotated / 2]``, by the names in the file."""
    config = model.config.get_text_config()
    parameters = parameters_of(config)
    kind = parameters.get("rope_type")
    if kind == "longrope":
        return {
            LONG_FACTORS: torch.tensor(parameters["long_factor"], dtype=torch.float32),
            SHORT_FACTORS: torch.tensor(parameters["short_factor"], dtype=torch.float32),
        }
    factors = _divisors(model) if kind in (None, "default", "llama3") and architecture.divides_frequencies else None
    return {} if factors is None else {FACTORS: factors}


def _divisors(model: nn.Module) -> Tensor | None:
    """What the frequencies of the base are divided by to be those that ``model`` rotates by; ``None`` when by nothing."""
    config = model.config.get_text_config()
    rotary = next((m for n, m in model.named_modules() if n.endswith("rotary_emb") and hasattr(m, "inv_freq")), None)
    size = rotated_size(config)
    if rotary is None or rotary.inv_freq.is_meta or len(rotary.inv_freq) != size // 2:
        return None
    plain = 1.0 / rope_base(config) ** (torch.arange(0, size, 2, dtype=torch.float32) / size)
    factors = plain / rotary.inv_freq.float().cpu()
    return None if torch.allclose(factors, torch.ones_like(factors), rtol=1e-4) else factors


def rounds_yarn(config: Any) -> bool:
    """Whether llama.cpp rounds the ends of yarn's ranges where the model does not."""
    return not parameters_of(config).get("truncate", True)


def _original_context(config: Any) -> int:
    found = parameters_of(config).get("original_max_position_embeddings")
    return int(found or getattr(config, "original_max_position_embeddings", None) or config.max_position_embeddings)


def _attention_factor(config: Any) -> float:
    """As transformers works it out of how much longer contexts have become."""
    parameters = parameters_of(config)
    if parameters.get("attention_factor") is not None:
        return float(parameters["attention_factor"])
    original = _original_context(config)
    factor = parameters.get("factor") or config.max_position_embeddings / original
    return 1.0 if factor <= 1.0 else math.sqrt(1.0 + math.log(factor) / math.log(original))
