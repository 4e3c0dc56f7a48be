"""What the training loop cannot do, said before anything is calibrated or trained."""

from collections.abc import Callable

from torchqat._library import KvCacheSpec, Recipe
from torchqat.errors import UserError
from torchqat.training.other_optimizers import check_optimizer, missing_library
from torchqat.training.processes import count

# Muon's steps need whole matrices; 8-bit moments are of blocks that know nothing of parts.
_WHOLE = ("muon", "adamw_8bit")


def check_training(recipe: Recipe, note: Callable[[str], None] | None = None) -> None:
    """Whether the loop can train what ``recipe`` asks for, with its optimizer, in its dtype, on these processes.

    Args:
        recipe: Of a run.
        note: Given what this machine alone lacks, which is then no error: the training may be meant for another.

    Raises:
        UserError: It cannot.
    """
    settings, dtype = recipe.train, recipe.model.dtype
    if not settings.steps:
        return
    missing = missing_library(settings)
    if missing and note is not None:
        note(missing)
    else:
        check_optimizer(settings)
    if recipe.data.packing:
        _check_cache_packs(recipe.kv_cache)
    if dtype == "float16" and settings.masters == "model":
        raise UserError(
            "train.masters must be float32 where model.dtype is float16, in which the squares of gradients vanish, but is "
            "model."
        )
    if count() == 1 or settings.strategy != "fsdp":
        return
    if settings.optimizer in _WHOLE:
        raise UserError(
            f"train.optimizer: {settings.optimizer} needs whole weights, of which train.strategy: fsdp leaves parts on each "
            "process; use ddp, or adamw or sgd."
        )
    if dtype != "float32" and settings.masters == "float32":
        raise UserError(
            f"train.masters must be model where train.strategy: fsdp spreads weights of {dtype}, but is float32; or set "
            "model.dtype: float32 and train.mixed_precision: bfloat16."
        )


def _check_cache_packs(cache: KvCacheSpec | None) -> None:
    """Raises UserError where what a quantized ``cache`` does to a token depends on its place in the row."""
    if cache is None or (cache.key.granularity != "channel" and not cache.first):
        return
    why = "the first tokens stay as they are" if cache.first else f"{cache.key.group_size} keys share a scale"
    raise UserError(
        f"data.packing must be false beside a kv_cache in which {why}, counted from the beginning of a row: an engine "
        "counts from that of a conversation."
    )
