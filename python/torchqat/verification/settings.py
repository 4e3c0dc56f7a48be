"""What a checkpoint says of its architecture beside what the model is: a key that it lost, readers fill with a default."""

import tempfile
from pathlib import Path
from typing import Any

from torch import nn

from torchqat.errors import UserError, first_line
from torchqat.extras import needs

# Of a config.json: how the checkpoint is stored and loaded, not what it computes; and what an exported head makes other.
_OF_STORAGE = {"quantization_config", "dtype", "torch_dtype", "transformers_version", "architectures"}
_OF_STORAGE |= {"tie_word_embeddings", "use_cache", "_name_or_path"}
# Of the top of one, what mlx-lm reads beside it: the storage again, and rope_parameters, which are compared, in older words.
_OF_MLX = {"quantization", "rope_theta", "rope_scaling", "partial_rotary_factor"}
# Of a GGUF file, by the key of the configuration whose number it has.
_OF_GGUF = {
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "expert_count": "num_experts",
    "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "moe_intermediate_size",
    "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "attention.scale": "attention_multiplier",
    "embedding_scale": "embedding_multiplier",
    "residual_scale": "residual_multiplier",
    "logit_scale": "logits_scaling",
}


def differing_settings(folder: Path, format: str, model: nn.Module) -> list[str]:
    """The keys of the configuration in ``folder`` that readers take otherwise than ``model`` has them; nested ones by dots.

    Models without a configuration of transformers have none, and neither have graphs.

    Raises:
        UserError: It cannot be read.
    """
    config = getattr(model, "config", None)
    if not hasattr(config, "to_diff_dict") or format == "onnx":
        return []
    return _in_gguf(folder, config) if format == "gguf" else _in_folder(folder, config)


def _in_folder(folder: Path, config: Any) -> list[str]:
    """Both as transformers reads them, with its defaults for what is not there."""
    with tempfile.TemporaryDirectory() as scratch:
        config.to_json_file(Path(scratch) / "config.json")
        wanted = type(config).from_json_file(Path(scratch) / "config.json").to_dict()
    try:
        found = type(config).from_json_file(folder / "config.json").to_dict()
    except Exception as error:
        raise UserError(
            f"{folder / 'config.json'} must be a configuration that transformers can read, but {first_line(error)}"
        ) from error
    return _differing(found, wanted, "")


def _differing(found: dict[str, Any], wanted: dict[str, Any], place: str) -> list[str]:
    names, added = [], set() if place else _OF_MLX - wanted.keys()
    for key in sorted((found.keys() | wanted.keys()) - _OF_STORAGE - added):
        ours, theirs = wanted.get(key), found.get(key)
        if isinstance(ours, dict) and isinstance(theirs, dict):
            names += _differing(theirs, ours, f"{place}{key}.")
        elif ours != theirs:
            names.append(f"{place}{key}")
    return names


def _in_gguf(folder: Path, config: Any) -> list[str]:
    with needs("hf", "A GGUF file"):
        from torchqat.checkpoints.readers.gguf import GgufFile, gguf_files

    whole, names = GgufFile(gguf_files(folder)), []
    for key, setting in _OF_GGUF.items():
        wanted = getattr(config.get_text_config(), setting, None)
        if wanted is not None and not _says(whole, key, wanted):
            names.append(setting)
    return names


def _says(file: Any, key: str, wanted: float) -> bool:
    """Numbers are 32 bits wide there."""
    try:
        return abs(float(file.value(key)) - wanted) <= 1e-6 * abs(wanted)
    except UserError:  # it has none
        return False
