"""What a run ends with, on the Hub."""

from torchqat.runs.cards import put_card
from torchqat.runs.hub import push
from torchqat.runs.run import Run
from torchqat.runs.variants import last_name


def push_last(run: Run, repository: str) -> None:
    """Push the export of what ``run`` is for, in the first of its formats, unless it misses the recipe's limits.

    Raises:
        UserError: The Hub does not take it.
    """
    report = run.report()
    variant = report.variant(last_name(run))
    if report.accepted is False:
        run.progress.say(
            f"Nothing was pushed, since the limits are not met: torchqat export {run.folder} --push-to-hub {repository} "
            "pushes it all the same."
        )
        return
    folder = run.folder / variant.export
    put_card(run, folder, variant, repository)
    push(folder, repository, run.progress.say)
