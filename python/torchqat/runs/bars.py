"""Bars on a terminal, one for each piece of work; they vanish when it is done."""

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

from torchqat.progress import Work


class Bars:
    """Drawn on ``stream`` from the first piece of work on, until ``close``."""

    def __init__(self, stream):
        columns = TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), _Left()
        self._bars = Progress(*columns, console=Console(file=stream), transient=True, redirect_stdout=False)
        self._tasks: dict[int, int] = {}
        self._bars.start()

    def say(self, text: str) -> None:
        """Above the bars."""
        self._bars.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def begin(self, work: Work) -> None:
        self._tasks[id(work)] = self._bars.add_task(work.what, total=work.total, completed=work.done, work=work)

    def moved(self, work: Work) -> None:
        words = f"{work.what}, {work.detail}" if work.detail else work.what
        self._bars.update(self._tasks[id(work)], completed=work.done, description=words)

    def end(self, work: Work) -> None:
        self._bars.remove_task(self._tasks.pop(id(work)))

    def close(self) -> None:
        self._bars.stop()


class _Left(ProgressColumn):
    """As the lines have it: rich's own forgets parts that took longer than half a minute."""

    def render(self, task: Task) -> Text:
        return Text(task.fields["work"].left())
