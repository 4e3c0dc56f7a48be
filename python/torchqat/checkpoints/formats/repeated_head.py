"""Whether an output head is the token embedding once more, so that a file may have both once."""

import torch
from torch import nn

from torchqat.layers.prepared import quant_layers


@torch.no_grad()
def repeated_head(model: nn.Module) -> str | None:
    """The name of the output head, where it is quantized to the very numbers of the token embedding; else ``None``.

    They share their weight and its type, and then differ only where scales were chosen for one of them alone, as GPTQ does.
    """
    if not hasattr(model, "get_output_embeddings"):
        return None
    head, table = model.get_output_embeddings(), model.get_input_embeddings()
    name = next((name for name, layer in quant_layers(model) if layer is head and layer.weight_spec is not None), None)
    return name if name is not None and _are_alike(head, table) else None


def _are_alike(head: nn.Module, table: nn.Module) -> bool:
    if head is table or head.weight is not getattr(table, "weight", None):
        return False
    if head.weight_spec != getattr(table, "weight_spec", None) or head.weight_bits != table.weight_bits:
        return False
    if head.adapter is not None or table.adapter is not None:
        return False
    pairs = [*zip(head.stored_qparams(), table.stored_qparams(), strict=True)]
    pairs += [*zip(head.stored_outer_scales(), table.stored_outer_scales(), strict=True)]
    pairs.append((head.frozen_codes, table.frozen_codes))
    return all((a is None and b is None) or (a is not None and b is not None and torch.equal(a, b)) for a, b in pairs)
