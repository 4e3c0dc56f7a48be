"""What a model has put into a layer beside the layer's own weight and settings, for others to find there."""

from torch import nn

# What every module has of its own; the last is of one that was compiled, and calls the layer as it was.
_OF_MODULES = {*vars(nn.Module()), "_is_full_backward_hook", "_compiled_call_impl"}
# The last says of which kind the backward hooks are: without it torch calls none.
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_is_full_backward_hook")
_STATE_HOOKS = (
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)


def take_hooks(stand_in: nn.Module, layer: nn.Module) -> None:
    """Those of the layer go on here; what registered them can still remove them."""
    for name in vars(layer):
        if name.startswith((*_HOOKS, *_STATE_HOOKS)):
            setattr(stand_in, name, getattr(layer, name))
    before_loading = getattr(layer, "_load_state_dict_pre_hooks", {})
    for key, hook in before_loading.items():
        if getattr(hook, "with_module", False):  # it is given the module that it was registered with, while that lives
            before_loading[key] = type(hook)(hook.hook, stand_in)


def take_more(stand_in: nn.Module, layer: nn.Module) -> None:
    """Parameters, buffers, modules and attributes that a layer of its class need not have."""
    for name, parameter in layer._parameters.items():
        if name not in ("weight", "bias"):
            stand_in.register_parameter(name, parameter)
    for name, buffer in layer._buffers.items():
        stand_in.register_buffer(name, buffer, persistent=name not in layer._non_persistent_buffers_set)
    for name, module in layer._modules.items():
        stand_in.add_module(name, module)
    for name in more_attributes(layer, stand_in._settings):
        setattr(stand_in, name, getattr(layer, name))


def more_attributes(layer: nn.Module, settings: tuple[str, ...]) -> list[str]:
    """The plain attributes of a layer beside those of any module and its ``settings``."""
    return [name for name in vars(layer) if name not in _OF_MODULES and name not in settings]
