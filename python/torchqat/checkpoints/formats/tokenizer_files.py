"""A tokenizer's files beside a checkpoint."""

import os
import re
from pathlib import Path
from typing import Any

from torchqat.errors import UserError, first_line

# The end of what libraries in Rust say of the system.
_OF_THE_SYSTEM = re.compile(r"\(os error (\d+)\)")


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """The files of ``tokenizer`` into ``folder``.

    Raises:
        OSError: The disk does not take them.
        UserError: It cannot be written.
    """
    try:
        tokenizer.save_pretrained(folder)
    except OSError:
        raise
    except Exception as error:
        if found := _OF_THE_SYSTEM.search(str(error)):
            raise OSError(int(found[1]), os.strerror(int(found[1]))) from error
        raise UserError(f"The tokenizer must be one that can be written, but {first_line(error)}") from error
