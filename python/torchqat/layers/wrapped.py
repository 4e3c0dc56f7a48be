"""What other libraries put around a model, under whose names layers are called otherwise."""

from torch import nn
from torch.optim.swa_utils import AveragedModel

from torchqat.errors import UserError

_IN_PARALLEL = (nn.parallel.DistributedDataParallel, nn.DataParallel)


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside of what ``torch.compile``, DDP and ``AveragedModel`` return; it is the same model.

    Raises:
        UserError: An average has averaged buffers as well, whole numbers among them.
    """
    while True:
        if "_orig_mod" in model._modules:  # of torch.compile, whose class takes long to import
            model = model._orig_mod
        elif isinstance(model, AveragedModel):
            if model.use_buffers:
                raise UserError(
                    "AveragedModel must leave buffers as they are, with use_buffers=False: zero points are whole numbers, "
                    "which have no mean."
                )
            model = model.module
        elif isinstance(model, _IN_PARALLEL):
            model = model.module
        else:
            return model


def before_parallel(model: nn.Module) -> nn.Module:
    """``unwrapped``, for what changes parameters.

    Raises:
        UserError: DDP has taken note of the parameters already.
    """
    if isinstance(model, _IN_PARALLEL):
        raise UserError(
            f"The model must be prepared before it is given to {type(model).__name__}, which would not know of the scales "
            "that are learned."
        )
    return unwrapped(model)
