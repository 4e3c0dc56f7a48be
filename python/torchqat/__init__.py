"""Quantization-aware training for PyTorch: bit-width schedules, and exports that are bit for bit what training saw.

The life cycle in five verbs::

    recipe = torchqat.load_recipe("int4")
    model = torchqat.prepare(model, recipe)
    torchqat.calibrate(model, batches)
    schedule = torchqat.Schedule(model, recipe, total_steps=1000)
    ...  # your loop; schedule.step() after optimizer.step()
    torchqat.export(model, "out", format="compressed-tensors", tokenizer=tokenizer)
    report = torchqat.verify("out", model)
"""

from typing import TYPE_CHECKING

from torchqat import losses as losses
from torchqat import monitor as monitor
from torchqat import ops
from torchqat import sensitivity as sensitivity
from torchqat import tasks as tasks
from torchqat._library import FileError, QuantSpec, RecipeError, parse_recipe
from torchqat._version import __version__ as __version__
from torchqat.checkpoints.convert import QuantizedWeights, convert
from torchqat.checkpoints.deploy import load, pack
from torchqat.checkpoints.export import export
from torchqat.checkpoints.live import live_weights
from torchqat.data.tasks import load_task
from torchqat.errors import UserError
from torchqat.evaluation.evaluate import Evaluation, evaluate
from torchqat.evaluation.mixed_widths import mixed_widths
from torchqat.kinds.losses import forward_kl
from torchqat.layers.conv import QuantConv2d
from torchqat.layers.embedding import QuantEmbedding
from torchqat.layers.linear import QuantLinear
from torchqat.layers.packed_linear import PackedLinear
from torchqat.model.prepare import make_plan, prepare
from torchqat.ptq.calibrate import calibrate
from torchqat.recipes.shipped import load_recipe
from torchqat.reports.report import Report, Variant
from torchqat.runs.flow import run
from torchqat.runs.imatrix import imatrix
from torchqat.runs.stream import quantize_folder
from torchqat.training.lora import attach_adapters
from torchqat.training.optimizers import parameter_groups
from torchqat.training.parameters import freeze_codes
from torchqat.training.schedule import Schedule
from torchqat.verification.result import Verification
from torchqat.verification.verify import verify

if TYPE_CHECKING:  # what __getattr__ gives, for editors and for the reference
    from torchqat.training.lightning_callback import LightningCallback
    from torchqat.training.trainer_callback import TrainerCallback


def __getattr__(name: str):
    """Callbacks need trainers that take seconds to import, or are not there: only when they are asked for."""
    if name == "LightningCallback":
        from torchqat.training.lightning_callback import LightningCallback

        return LightningCallback
    if name == "TrainerCallback":
        from torchqat.training.trainer_callback import TrainerCallback

        return TrainerCallback
    raise AttributeError(f"module 'torchqat' has no attribute {name!r}")


__all__ = [
    "Evaluation",
    "FileError",
    "LightningCallback",
    "PackedLinear",
    "QuantConv2d",
    "QuantEmbedding",
    "QuantLinear",
    "QuantSpec",
    "QuantizedWeights",
    "RecipeError",
    "Report",
    "Schedule",
    "TrainerCallback",
    "UserError",
    "Variant",
    "Verification",
    "attach_adapters",
    "calibrate",
    "convert",
    "evaluate",
    "export",
    "forward_kl",
    "freeze_codes",
    "imatrix",
    "live_weights",
    "load",
    "load_recipe",
    "load_task",
    "make_plan",
    "mixed_widths",
    "ops",
    "pack",
    "parameter_groups",
    "parse_recipe",
    "prepare",
    "quantize_folder",
    "run",
    "verify",
]
