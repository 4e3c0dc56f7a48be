"""The page of a run, which whatever ends one writes."""

from torchqat.errors import UserError
from torchqat.reports.html import write_html
from torchqat.runs.run import Run


def write_page(run: Run) -> None:
    """``report.html`` into the run's folder. One that cannot be drawn costs a note, not what was trained."""
    try:
        run.progress.say(f"{write_html(run.folder)} shows the run.")
    except UserError as error:
        run.progress.say(f"Note: report.html was not written: {error}")
