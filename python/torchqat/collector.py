"""When Python's cyclic garbage collector rests."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def no_collection() -> Iterator[None]:
    """Around what makes many objects that stay, such as imports; also decorates a function that ends soon.

    Going through all objects again and again took a quarter of what importing torch and transformers takes.
    """
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
