"""News of a run: bars on a terminal, plain lines in a pipe."""

import sys
import time
from collections.abc import Callable

from torchqat.extras import needs


class Progress:
    """Prints to ``stream``; ``quiet`` says nothing."""

    def __init__(self, stream=None, quiet: bool = False):
        self.stream, self.quiet = stream or sys.stderr, quiet

    def say(self, text: str) -> None:
        if not self.quiet:
            print(text, file=self.stream, flush=True)

    def steps(self, what: str, total: int) -> Callable[[int, dict[str, float]], None]:
        """A callback for a training loop: step count, loss and time left."""
        bar = self._bar(what, total) if self.stream.isatty() and not self.quiet else None
        begun: list[tuple[float, int]] = []

        def show(step: int, figures: dict[str, float]) -> None:
            if not begun:
                begun.append((time.monotonic(), step))
            if bar is not None:
                bar(step, figures)
            elif step == total or step % max(1, total // 10) == 0:
                since, first = begun[0]
                left = (time.monotonic() - since) / max(1, step - first) * (total - step)
                self.say(f"{what}: step {step} of {total}, loss {figures['loss']:.4f}, {left:.0f} s left")

        return show

    def _bar(self, what: str, total: int) -> Callable[[int, dict[str, float]], None]:
        with needs("cli", "A bar of progress"):
            from rich.console import Console
            from rich.progress import Progress as Bar

        progress = Bar(console=Console(file=self.stream))
        task = progress.add_task(what, total=total)
        progress.start()

        def show(step: int, figures: dict[str, float]) -> None:
            progress.update(task, completed=step, description=f"{what}, loss {figures['loss']:.4f}")
            if step == total:
                progress.stop()

        return show
