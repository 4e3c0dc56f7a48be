"""What a run makes of its model, and by which names its report and its exports know that."""

from torch import nn

from torchqat._library import naive_plan
from torchqat.runs.run import Run


def naive_name(bits: int) -> str:
    """Of plain rounding at ``bits``."""
    return f"int{bits}-naive"


def initialized_name(run: Run) -> str:
    """Of what post-training quantization alone gives."""
    return f"{run.width_names}-{run.recipe.initialize.method}".replace("+", "-")


def trained_name(run: Run) -> str:
    """Of what training gives."""
    return f"{run.width_names}-qat"


def last_name(run: Run) -> str:
    """Of what the run is for: what mode auto chose, what was trained or, of a run without training, initialized."""
    if run.recipe.mode == "auto":
        return run.report().chosen
    return trained_name(run) if run.recipe.train.steps else initialized_name(run)


def naive_model(run: Run, bits: int) -> nn.Module:
    """The model rounded to nearest at ``bits``."""
    return run.prepared(naive_plan(run.plan, bits), "rtn", run.folder / "checkpoints" / f"{naive_name(bits)}.pt")
