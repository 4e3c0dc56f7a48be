"""gpt-oss' own format: experts in MXFP4, all of a layer in one tensor of blocks and one of scales."""

import json

import torch
from torch import Tensor, nn

from torchqat._library import CheckpointPlan, LayerPlan, QuantizedWeights, QuantSpec, find_format
from torchqat.checkpoints.formats.dense import check_layers
from torchqat.errors import UserError

_LEAVES = ("gate_up_proj", "down_proj")
_BLOCK = 32
# As in OpenAI's own checkpoints; what else is no experts' module, transformers and vLLM leave alone anyway.
_FLOAT = ("model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head")


def check_whole(model: nn.Module, plan: CheckpointPlan) -> None:
    """Whether ``model`` is one whose experts engines read in MXFP4, and all of them are so.

    Raises:
        UserError: It is not, or one of them is left in floating point.
    """
    kind = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    if kind != "gpt_oss":
        raise UserError(f"mxfp4 takes experts of the architecture gpt_oss, but this one is {kind}.")
    planned = {layer.name for layer in plan.layers}
    stacks = [name for name, _ in model.named_parameters() if name.endswith(_LEAVES) and ".experts." in name]
    if left := [name for name in stacks if name not in planned]:
        raise UserError(f"mxfp4 holds all experts of a model in MXFP4, but {left[0]} is in floating point.")


def _is_mxfp4(spec: QuantSpec | None) -> bool:
    same = spec is not None and (spec.dtype, spec.granularity, spec.group_size) == ("fp4_e2m1", "group", _BLOCK)
    return same and spec.scale_dtype.startswith("e8m0") and not spec.has_outer_scale


class Mxfp4:
    """A format as those of the native library are; see ``formats/known.py``."""

    name = "mxfp4"
    used_by = "transformers, vLLM (gpt-oss)"
    dtype: torch.dtype | None = None

    def refusal(self, layer: LayerPlan) -> str:
        """Why it cannot hold ``layer``, in words that follow "because"; empty when it can."""
        if layer.type != "Experts":
            return f"the layer is of the type {layer.type}, and there is a place for Experts"
        if not _is_mxfp4(layer.weight):
            return f"it takes mxfp4, but there is {layer.weight}"
        return "inputs are rounded, for which it has no place" if layer.input is not None else ""

    def check(self, plan: CheckpointPlan) -> None:
        """Raises ValueError, naming the layer, if it cannot hold one, or the cache."""
        check_layers(self, plan)

    def documents(self, plan: CheckpointPlan) -> dict[str, str]:
        """The ``quantization_config``, for ``config.json``."""
        return {"config.json": json.dumps({"quant_method": self.name, "modules_to_not_convert": [*_FLOAT]})}

    def tensors(self, layer: QuantizedWeights) -> dict[str, Tensor]:
        """Blocks ``[rows, in / 32, 16]``, the first of two elements in the low nibble, and exponents ``[rows, in / 32]``."""
        found = find_format("safetensors").tensors(layer)
        blocks = found[f"{layer.name}.codes"].contiguous().view(torch.uint8)
        scales = found[f"{layer.name}.scale"]
        return {f"{layer.name}_blocks": blocks.view(*scales.shape, _BLOCK // 2), f"{layer.name}_scales": scales}
