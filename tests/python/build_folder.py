"""The folder that make setup builds in, which tests read together and change one at a time."""

import os
from pathlib import Path

from filelock import FileLock

ROOT = Path(__file__).parents[2]
BUILD = Path(os.environ.get("TORCHQAT_BUILD_DIR", ROOT / "build" / "native"))


def alone() -> FileLock:
    """Held by whoever configures, builds or installs there, since tests of several files run side by side."""
    return FileLock(BUILD / ".changing")
