"""``torchqat export``: the model that a run ends with, in another format, read back."""

from pathlib import Path
from typing import Any

from torchqat.checkpoints.export import export_notes
from torchqat.extras import needs
from torchqat.runs.cards import put_terms
from torchqat.runs.kept_state import kept_state
from torchqat.runs.restore import trained_model
from torchqat.runs.run import Run
from torchqat.runs.steps import keep_notes, later_cache_note, write_export
from torchqat.verification.result import Verification
from torchqat.verification.verify import verify


def export_run(run: Run, output: Path, format: str, **options: Any) -> Verification:
    """Write what ``run`` ends with to the folder ``output``, and compare it with what training had.

    A GGUF file is written in the memory of one block where the run's state allows it (``kept_state``).

    Args:
        run: Which has come to its end.
        output: A folder; replaced if it exists.
        format: The name of one that can hold it, as of ``export``.
        options: As ``export`` takes them.

    Raises:
        UserError: The run has not come to its end, or ``export`` refuses.
    """
    if format == "gguf" and (state := kept_state(run)) is not None:
        with needs("hf", "A GGUF file"):
            from torchqat.runs.export_by_blocks import export_by_blocks, goes_by_blocks

        if goes_by_blocks(run):
            checked = export_by_blocks(run, state, output, **options)
            put_terms(run, output)
            keep_notes(run, [later_cache_note(run, format), *export_notes(run.float_model.outline, format, output)])
            return checked
    model = trained_model(run)
    return verify(write_export(run, model, output, format, **options), model, device=run.device)
