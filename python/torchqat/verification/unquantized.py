"""What a checkpoint must hold beside its quantized layers, worked out from the model without the code that writes it."""

from torch import Tensor, nn

from torchqat.layers.experts import QuantExperts
from torchqat.layers.kv_cache import QuantKvCache
from torchqat.layers.prepared import quant_layers
from torchqat.layers.quant_layer import STATE_NAMES


def unquantized(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter and persistent buffer but what training quantized and brought; shared ones by their first name."""
    state = model.state_dict()
    skipped = {name for name in state if name.rpartition(".")[2] == "qat_step"}
    for name, layer in quant_layers(model):
        own = STATE_NAMES if layer.weight_spec is None else (*STATE_NAMES, "weight")
        skipped |= {f"{name}.{leaf}".removeprefix(".") for leaf in own}
    for place, layer in model.named_modules():
        if isinstance(layer, QuantExperts):
            skipped |= {f"{place}.{leaf}" for leaf in STATE_NAMES}
            skipped |= {layer.name_of(place)} if layer.weight_spec is not None else set()
    for name, module in model.named_modules():
        if isinstance(module, QuantKvCache):
            skipped |= {f"{name}.{leaf}" for leaf, _ in module.named_buffers()}
    found: dict[str, Tensor] = {}
    shared: set[tuple] = set()
    for name, tensor in state.items():
        memory = (tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tensor.shape, tensor.stride())
        if name not in skipped and (tensor.numel() == 0 or memory not in shared):
            shared.add(memory)
            found[name] = tensor
    return found
