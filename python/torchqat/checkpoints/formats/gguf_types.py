"""llama.cpp's types of tensors by name, number and size, those among them that the gguf package lacks."""

import gguf

from torchqat._library import CheckpointPlan, LayerPlan, gguf_type
from torchqat.errors import UserError

Q2_0 = 42  # ggml.h; blocks of 64 columns in 18 bytes
_SIZES = {Q2_0: (64, 18)}
# A file has one label, for people; a K-quant's is that of the mix it is in most often.
_FILE_TYPES = {"MXFP4": "MXFP4_MOE", "Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}
_MOSTLY_Q2_0 = 41  # llama.h
# The same codes and scales: the first is multiplied with faster, the second is smaller.
TERNARY = ("tq2_0", "tq1_0")


def layer_type(layer: LayerPlan, ternary: str = "tq2_0") -> int:
    """What the trained ``layer`` is stored as; -1, 0 and 1 as ``ternary`` says."""
    name = _type_name(layer, ternary)
    return Q2_0 if name == "Q2_0" else gguf.GGMLQuantizationType[name]


def check_ternary(plan: CheckpointPlan | None, ternary: str) -> None:
    """Whether ``ternary`` is a type, and of a layer of ``plan`` where it is not the usual one.

    Raises:
        UserError: It is not.
    """
    if ternary not in TERNARY:
        raise UserError(f"ternary must be {' or '.join(TERNARY)}, but is {ternary}.")
    layers = plan.layers if plan is not None else []
    if ternary != TERNARY[0] and not any(_type_name(layer, ternary) == ternary.upper() for layer in layers):
        raise UserError(
            f"ternary: {ternary} is of layers of -1, 0 and 1 in groups of a multiple of 256 (dtype: tq2_0), but the model "
            "has none."
        )


def _type_name(layer: LayerPlan, ternary: str) -> str:
    name = gguf_type(layer.weight, layer.in_features)
    return ternary.upper() if name == "TQ2_0" else name


def shape_in_bytes(shape: tuple[int, ...], kind: int) -> tuple[int, ...]:
    """Of a tensor of so many elements: the last axis becomes that of bytes."""
    elements, size = _SIZES[kind] if kind in _SIZES else gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind)]
    return (*shape[:-1], shape[-1] // elements * size)


def file_type(plan: CheckpointPlan | None, ternary: str = "tq2_0") -> int:
    """The label of a file with the layers of ``plan``: the type that most of them have."""
    kinds = [_type_name(layer, ternary) for layer in plan.layers] if plan is not None else []
    label = max(sorted(set(kinds)), key=kinds.count) if kinds else "F16"
    return _MOSTLY_Q2_0 if label == "Q2_0" else gguf.LlamaFileType[f"MOSTLY_{_FILE_TYPES.get(label, label)}"]
