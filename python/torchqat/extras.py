"""Libraries that parts of torchqat need and that training and exports do without: the extras of its installation."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata

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
        library = (error.name or str(error)).partition(".")[0]
        raise UserError(f"{what} needs {library}, which is not installed: pip install 'torchqat[{extra}]'.") from error


def version_of(distribution: str, missing: str = "not installed") -> str:
    """Of an installed library; else ``missing``."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return missing
