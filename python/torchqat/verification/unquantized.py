"""What a checkpoint must hold beside its quantized layers, worked out from the model without the code that writes it."""

from pathlib import Path

import gguf
import gguf.quants
import numpy as np
import torch
from torch import Tensor, nn

from torchqat.checkpoints.readers.gguf import ROPE_FACTORS, GgufFile, gguf_files
from torchqat.layers.kv_cache import QuantKvCache
from torchqat.layers.prepared import quant_layers
from torchqat.layers.quant_layer import STATE_NAMES

_Types = gguf.GGMLQuantizationType
# What llama.cpp multiplies a norm's input by; transformers adds 1 to the weight when it runs.
_NORM_OFFSETS = {"gemma": 1.0}


def unquantized(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter and persistent buffer but what training quantized and brought; shared ones by their first name."""
    skipped = {"qat_step"}
    for name, layer in quant_layers(model):
        skipped |= {f"{name}.{leaf}" for leaf in STATE_NAMES}
        if layer.weight_spec is not None:
            skipped.add(f"{name}.weight")
    for name, module in model.named_modules():
        if isinstance(module, QuantKvCache):
            skipped |= {f"{name}.{leaf}" for leaf, _ in module.named_buffers()}
    found: dict[str, Tensor] = {}
    shared: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if name not in skipped and id(tensor) not in shared:
            shared.add(id(tensor))
            found[name] = tensor.detach()
    return found


def unquantized_in_gguf(folder: Path, model: nn.Module) -> dict[str, Tensor]:
    """The same as the GGUF files in ``folder`` have it, in the types that they give each tensor, float32."""
    whole, expected = GgufFile(gguf_files(folder)), unquantized(model)
    types = {tensor.name: tensor.tensor_type for _, tensor in whole.tensors}
    kinds = {of_model: types[name] for name, of_model in whole.names(list(expected)).items() if name in types}
    factors = _rope_factors(whole, model)
    found = {} if factors is None else {ROPE_FACTORS: factors}
    for name, tensor in expected.items():
        offset = _NORM_OFFSETS.get(whole.architecture, 0.0) if name.endswith("norm.weight") else 0.0
        found[name] = _stored(tensor.float().cpu() + offset, kinds.get(name, _Types.F32))
    return found


def _stored(values: Tensor, kind: gguf.GGMLQuantizationType) -> Tensor:
    data = gguf.quants.quantize(values.numpy(), kind)
    return torch.from_numpy(np.array(gguf.quants.dequantize(data, kind))).float()


def _rope_factors(whole: GgufFile, model: nn.Module) -> Tensor | None:
    """What the frequencies of the file's base must be divided by to be the model's; ``None`` when by nothing."""
    rotary = next((m for m in model.modules() if hasattr(m, "inv_freq")), None)
    if rotary is None:
        return None
    used = rotary.inv_freq.float().cpu()
    exponents = torch.arange(0, 2 * len(used), 2, dtype=torch.float32) / (2 * len(used))
    factors = 1.0 / float(whole.value("rope.freq_base")) ** exponents / used
    return None if torch.allclose(factors, torch.ones_like(factors), rtol=1e-4) else factors
