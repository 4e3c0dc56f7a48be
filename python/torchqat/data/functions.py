"""Functions of the user's that a recipe names as ``module:function``."""

import pkgutil
import re
import sys
from collections.abc import Callable
from pathlib import Path

from torchqat.errors import UserError, first_line


def names_function(source: str) -> bool:
    """Whether ``source`` is of the form ``module:function``."""
    return re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", source) is not None and not Path(source).exists()


def find_function(key: str, source: str) -> Callable:
    """The function that ``source`` names, looked for in the working directory as well.

    Args:
        key: Of the recipe, for messages.
        source: ``module:function``.

    Raises:
        UserError: There is no such module, or nothing of that name in it that can be called.
    """
    try:
        if str(Path.cwd()) not in sys.path:
            sys.path.insert(0, str(Path.cwd()))
        found = pkgutil.resolve_name(source)
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"{key} must name a function that can be imported, but {source}: {first_line(error)}."
        ) from error
    if not callable(found):
        raise UserError(f"{key} must name a function, but {source} is {type(found).__name__}.")
    return found
