"""What mlx-lm takes: architectures that it has under the names of transformers, and products that are exact."""

from collections.abc import Iterable

import torch
from torch import nn

from torchqat._library import DTYPES, LayerPlan
from torchqat.errors import UserError
from torchqat.precision import dtype_word

# Whose modules mlx-lm 0.32 calls as transformers does and computes alike, which tests/engines asks a small one of each.
ARCHITECTURES = (
    "glm4", "granite", "hunyuan_v1_dense", "llama", "mistral", "nemotron", "olmo2", "phi3", "qwen2", "qwen3",
    "seed_oss", "smollm3",
)  # fmt: skip
# Codes of seven bits are stored in eight.
_WIDTHS = {7: 8}


def check_architecture(model: nn.Module) -> None:
    """Whether mlx-lm finds the layers of ``model``; a module without a configuration is tensors alone.

    Raises:
        UserError: It does not.
    """
    kind = getattr(getattr(model, "config", None), "model_type", None)
    if kind is not None and kind not in ARCHITECTURES:
        raise UserError(f"mlx takes the architectures {', '.join(ARCHITECTURES)}, but this one is {kind}.")


def check_products(layers: Iterable[LayerPlan], dtype: torch.dtype) -> None:
    """Whether MLX computes the weights of training in a checkpoint of ``dtype``; of ranges it is seen when they are there.

    Raises:
        UserError: Its products would be rounded.
    """
    for layer in layers:
        if not _is_exact(layer, dtype):
            raise UserError(
                f"mlx cannot hold {layer.name} in {dtype_word(dtype)}, because MLX computes scale * code + bias in the "
                f"dtype of the checkpoint, and products of scales in {layer.weight.scale_dtype} with codes of "
                f"{_bits(layer)} bits are not exact there; export in float32 with scale_dtype bfloat16 or float16, or in "
                "bfloat16 with scale_dtype e8m0_even."
            )


def keys_of_mlx(config: dict, quantization: dict) -> dict:
    """What mlx-lm looks for in ``config.json`` beside what transformers 5 writes there.

    It asks for ``quantization`` before ``quantization_config``, and for ``rope_theta`` and ``rope_scaling``, which
    transformers has put together into ``rope_parameters``: without them mlx-lm takes frequencies of its own.
    """
    found: dict = {"quantization": quantization}
    rope = config.get("rope_parameters") or {}
    for key in ("rope_theta", "partial_rotary_factor"):
        if key in rope:
            found[key] = rope[key]
    if rope.get("rope_type", "default") != "default":
        found["rope_scaling"] = {key: value for key, value in rope.items() if key != "rope_theta"}
    return found


def has_exact_products(layers: Iterable[LayerPlan], dtype: torch.dtype) -> bool:
    """Whether ``check_products`` passes."""
    return all(_is_exact(layer, dtype) for layer in layers)


def _is_exact(layer: LayerPlan, dtype: torch.dtype) -> bool:
    scale = layer.weight.scale_dtype
    if scale.startswith("e8m0"):  # whose range float16 has not
        return dtype != torch.float16
    return scale not in DTYPES or _digits(DTYPES[scale]) + _bits(layer) <= _digits(dtype)


def _bits(layer: LayerPlan) -> int:
    return _WIDTHS.get(layer.weight.bits, layer.weight.bits)


def _digits(dtype: torch.dtype) -> int:
    """Binary digits of a number."""
    return {torch.float32: 24, torch.float16: 11, torch.bfloat16: 8}[dtype]
