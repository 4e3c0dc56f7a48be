"""News of a run: bars on a terminal, in a pipe a line a minute of whatever lasts."""

import importlib.util
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torchqat.progress import Work, duration, told

# Seconds after which work is worth a line, and between two lines of it.
_LASTS, _BETWEEN = 5.0, 60.0


class Progress:
    """Prints to ``stream``, standard error when ``None``; ``quiet`` says nothing."""

    def __init__(self, stream=None, quiet: bool = False):
        self.stream, self.quiet = stream or sys.stderr, quiet
        self._open: list[Work] = []
        self._shows: Any = None

    def say(self, text: str) -> None:
        if self.quiet:
            return
        if self._shows is not None:
            self._shows.say(text)
        else:
            print(text, file=self.stream, flush=True)

    @contextmanager
    def listens(self) -> Iterator[None]:
        """While it lasts, work that says how far it is (torchqat/progress.py) is shown here."""
        before = len(self._open)
        try:
            with told(self):
                yield
        finally:
            for work in reversed(self._open[before:]):  # what an error cut off
                self.end(work, finished=False)

    def steps(self, what: str, total: int) -> Callable[[int, dict[str, float]], None]:
        """A callback for a training loop: step count, loss and time left."""
        shown: list[Work] = []

        def show(step: int, figures: dict[str, float]) -> None:
            if not shown:
                shown.append(Work(what, total, step - 1, step - 1))
                self.begin(shown[0])
            work = shown[0]
            work.done, work.detail = step, f"loss {figures['loss']:.3g}"
            self.moved(work)
            if step == total:
                self.end(work)

        return show

    # -- what work tells (torchqat.progress.Listener) ---------------------------------------------------------------

    def begin(self, work: Work) -> None:
        self._open.append(work)
        if self.quiet:
            return
        if self._shows is None:
            self._shows = self._bars() or _Lines(self.stream, self._open)
        self._shows.begin(work)

    def moved(self, work: Work) -> None:
        if self._shows is not None:
            self._shows.moved(work)

    def end(self, work: Work, finished: bool = True) -> None:
        if work not in self._open:
            return
        self._open.remove(work)
        if self._shows is None:
            return
        self._shows.end(work)
        if not self._open:
            self._shows.close()
            self._shows = None
            if finished and work.seconds() >= _LASTS:
                self.say(f"{work.state()} in {duration(work.seconds())}")

    def _bars(self) -> Any:
        """Bars where there is a terminal, and rich to draw them; else ``None``."""
        if not self.stream.isatty() or importlib.util.find_spec("rich") is None:
            return None
        from torchqat.runs.bars import Bars

        return Bars(self.stream)


class _Lines:
    """Lines by a clock of their own: work may take minutes between two of its parts."""

    def __init__(self, stream, works: list[Work]):
        self._stream, self._works, self._lock = stream, works, threading.Lock()
        self._over = threading.Event()
        self._clock = threading.Thread(target=self._tick, daemon=True)
        self._clock.start()

    def _tick(self) -> None:
        wait = _LASTS
        while not self._over.wait(wait):
            wait = _BETWEEN
            if works := list(self._works):
                self.say("; ".join(f"{work.state()}, {work.left()}" for work in works))

    def say(self, text: str) -> None:
        with self._lock:
            print(text, file=self._stream, flush=True)

    def begin(self, work: Work) -> None:
        pass

    def moved(self, work: Work) -> None:
        pass

    def end(self, work: Work) -> None:
        pass

    def close(self) -> None:
        self._over.set()
        self._clock.join()
