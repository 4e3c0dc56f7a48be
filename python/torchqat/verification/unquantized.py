"""What a checkpoint must hold beside its quantized layers, worked out from the model without the code that writes it."""

from torch import Tensor, nn

from torchqat.layers.kv_cache import QuantKvCache
from torchqat.layers.prepared import quant_layers
from torchqat.layers.quant_layer import STATE_NAMES


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
