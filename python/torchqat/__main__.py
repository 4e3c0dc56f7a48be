"""The command ``torchqat``, which is also ``python -m torchqat``."""

import sys

from torchqat.collector import no_collection
from torchqat.errors import UserError
from torchqat.extras import needs


def main() -> None:
    """Entry point; ends the process with the exit code."""
    try:
        with needs("cli", "The command line"), no_collection():
            from torchqat.cli import main as command
    except UserError as error:
        print(f"torchqat: {error}", file=sys.stderr)
        sys.exit(2)
    command()


if __name__ == "__main__":
    main()
