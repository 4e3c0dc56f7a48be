"""How far long work is: who does it says so here, and who started it may listen, whatever lies between the two."""

import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

T = TypeVar("T")


@dataclass(eq=False)
class Work:
    """One piece of long work.

    Attributes:
        what: A title, such as ``Calibrating blocks``.
        total: Its parts; ``None`` where nobody knows how many.
        done: Those that are done.
        first: Those that were done when it began.
        detail: What else there is to say, such as a loss.
        begun: When, in seconds of ``time.monotonic``.
    """

    what: str
    total: int | None = None
    done: int = 0
    first: int = 0
    detail: str = ""
    begun: float = field(default_factory=time.monotonic)

    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self.begun

    def seconds_left(self) -> float | None:
        """If the other parts take as long as those that are done; ``None`` while nothing says how long that is."""
        done = self.done - self.first
        return None if self.total is None or done <= 0 else self.seconds() / done * (self.total - self.done)

    def state(self) -> str:
        """``Calibrating blocks: 3 of 30``."""
        count = f": {self.done} of {self.total}" if self.total is not None else f": {self.done}" if self.done else ""
        return f"{self.what}{count}{', ' + self.detail if self.detail else ''}"

    def left(self) -> str:
        """``4 min left``, or how long it has taken where nothing more is known."""
        left = self.seconds_left()
        return f"{duration(self.seconds())} so far" if left is None else f"{duration(left)} left"


def duration(seconds: float) -> str:
    """``42 s``, ``3 min`` or ``2 h 10 min``."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


class Listener(Protocol):
    """Is told of each piece of work; pieces inside of others begin later and end earlier."""

    def begin(self, work: Work) -> None: ...

    def moved(self, work: Work) -> None: ...

    def end(self, work: Work) -> None: ...


_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)


@contextmanager
def told(listener: Listener) -> Iterator[None]:
    """While it lasts, ``listener`` is told, in the place of one further out."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


@contextmanager
def working(what: str, total: int | None = None) -> Iterator[Callable[[], None]]:
    """Around a piece of work; gives what is to be called after each of its ``total`` parts."""
    listener, work = _listener.get(), Work(what, total)

    def part() -> None:
        work.done += 1
        if listener is not None:
            listener.moved(work)

    if listener is not None:
        listener.begin(work)
    try:
        yield part
    finally:
        if listener is not None:
            listener.end(work)


def counted(items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """``items``, each being a part of a piece of work that is done when the next is asked for.

    Args:
        items: Gone through once.
        what: The title.
        total: How many there are; asked of ``items`` when ``None``.
    """
    total = len(items) if total is None and isinstance(items, Sized) else total
    with working(what, total) as part:
        for item in items:
            yield item
            part()
