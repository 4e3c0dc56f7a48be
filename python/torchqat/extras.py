"""Libraries that parts of torchqat need and that training and exports do without: the extras of its installation."""

from collections.abc import Iterator
from contextlib import contextmanager

from torchqat.errors import UserError


@contextmanager
def needs(extra: str, what: str) -> Iterator[None]:
    """Around imports of what ``pip install torchqat[extra]`` brings.

    Args:
        extra: As in pyproject.toml.
        what: That cannot be done without them, for the sentence.

    Raises:
        UserError: One is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("torchqat"):
            raise  # a fault of ours
        raise UserError(missing(extra, what, error)) from error


def missing(extra: str, what: str, error: ModuleNotFoundError) -> str:
    library = (error.name or str(error)).partition(".")[0]
    return f"{what} needs {library}, which is not installed: pip install 'torchqat[{extra}]'."
