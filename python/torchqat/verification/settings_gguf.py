"""What a GGUF file says of its architecture beside what the model is; worked out without the code that writes it."""

from pathlib import Path
from typing import Any

from torch import nn

from torchqat.checkpoints.readers.gguf import GgufFile, gguf_files
from torchqat.errors import UserError
from torchqat.verification.rope_gguf import rotary_of

# Keys of a file by the key of the configuration whose number they have; the first that a configuration has counts.
_NUMBERS = {
    "embedding_length": ("hidden_size",),
    "block_count": ("num_hidden_layers",),
    "feed_forward_length": ("intermediate_size",),
    "vocab_size": ("vocab_size",),
    "attention.head_count": ("num_attention_heads",),
    "attention.head_count_kv": ("num_key_value_heads",),
    "attention.layer_norm_rms_epsilon": ("rms_norm_eps",),
    "expert_count": ("num_experts", "num_local_experts"),
    "expert_used_count": ("num_experts_per_tok",),
    "expert_feed_forward_length": ("moe_intermediate_size",),
    "expert_shared_feed_forward_length": ("shared_expert_intermediate_size",),
    "attn_logit_softcapping": ("attn_logit_softcapping",),
    "final_logit_softcapping": ("final_logit_softcapping",),
    "attention.scale": ("attention_multiplier",),
    "embedding_scale": ("embedding_multiplier",),
    "residual_scale": ("residual_multiplier",),
    "logit_scale": ("logits_scaling",),
}
_EPSILONS = ("layer_norm_epsilon", "layer_norm_eps", "norm_epsilon")


def differing_in_gguf(folder: Path, model: nn.Module) -> list[str]:
    """The keys of the configuration of ``model`` of which the files in ``folder`` say something else, in no order.

    Raises:
        UserError: They cannot be read.
    """
    whole, config = GgufFile(gguf_files(folder)), model.config.get_text_config()
    checks = [(key, *_first_of(config, settings)) for key, settings in _NUMBERS.items()]
    checks += _of_heads(config, model) + _of_rope(model, config)
    if getattr(config, "rms_norm_eps", None) is None:
        checks.append(("attention.layer_norm_epsilon", *_first_of(config, _EPSILONS)))
    found = [setting for key, setting, wanted in checks if wanted is not None and not _says(whole, key, wanted)]
    return list(dict.fromkeys([*found, *_windows(whole, config)]))


def _first_of(config: Any, settings: tuple[str, ...]) -> tuple[str, Any]:
    found = {name: getattr(config, name) for name in settings if getattr(config, name, None) is not None}
    return next(iter(found.items()), (settings[0], None))


def _of_heads(config: Any, model: nn.Module) -> list[tuple[str, str, Any]]:
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    found = [(f"attention.{side}_length", "head_dim", size) for side in ("key", "value")]
    rotary = rotary_of(model)
    if rotary is not None:
        found.append(("rope.dimension_count", "partial_rotary_factor", 2 * rotary[1]))
    return found


def _of_rope(model: nn.Module, config: Any) -> list[tuple[str, str, Any]]:
    """Of longrope, whose factors are tensors beside the plain frequencies (other kinds: ``rope_gguf``)."""
    parameters, rotary = getattr(config, "rope_parameters", None) or {}, rotary_of(model)
    if parameters.get("rope_type") != "longrope" or rotary is None:
        return []
    original = parameters.get("original_max_position_embeddings")
    return [
        ("rope.freq_base", "rope_parameters.rope_theta", parameters.get("rope_theta")),
        ("rope.scaling.original_context_length", "rope_parameters.original_max_position_embeddings", original),
        ("rope.scaling.attn_factor", "rope_parameters.attention_factor", getattr(rotary[0], "attention_scaling", None)),
    ]


def _windows(whole: GgufFile, config: Any) -> list[str]:
    """What a file says of how far blocks look back; one that knows no window may be no longer than that."""
    longest, window = config.max_position_embeddings, getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"] * config.num_hidden_layers
    sliding = [bool(window) and kind == "sliding_attention" for kind in kinds]
    said = whole.optional("attention.sliding_window")
    context = min(longest, window) if any(sliding) and said is None else longest
    names = [] if _says(whole, "context_length", context) else ["max_position_embeddings"]
    if said is not None and said != (window if any(sliding) else None):
        names.append("sliding_window")
    pattern = whole.optional("attention.sliding_window_pattern")
    return names + (["layer_types"] if pattern is not None and list(pattern) != sliding else [])


def _says(file: GgufFile, key: str, wanted: float) -> bool:
    """Numbers are 32 bits wide there."""
    try:
        return abs(float(file.value(key)) - wanted) <= 1e-6 * abs(wanted)
    except UserError:  # it has none
        return False
