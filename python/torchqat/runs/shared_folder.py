"""The folder of a run whose processes are on several machines: all of them must see the same one."""

import os
import secrets
import socket
import time
from pathlib import Path

from torchqat.errors import UserError
from torchqat.training.processes import count, gathered, is_first

# Network file systems show a file to other machines some seconds late.
_PATIENCE = 60.0


def check_shared(folder: Path) -> None:
    """What the first process writes into ``folder``, the others must read. All have to call it.

    Raises:
        UserError: One does not, on all of them.
    """
    if count() == 1:
        return
    token, process = gathered((secrets.token_hex(8), os.getpid()))[0]
    file = folder / f".{token}.pending-{process}"  # removed with what else a process that dies leaves
    if is_first():
        file.write_text(token)
    without = [host for host in gathered("" if _appears(file, token) else socket.gethostname()) if host]
    if is_first():
        file.unlink()
    if without:
        raise UserError(
            f"output must be a folder that all processes share, but {', '.join(sorted(set(without)))} cannot read what the "
            f"first process writes in {folder}."
        )


def _appears(file: Path, token: str) -> bool:
    end = time.monotonic() + _PATIENCE
    while True:
        if file.is_file() and file.read_text() == token:
            return True
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
