"""The command ``torchqat``, which is also ``python -m torchqat``."""

import sys

from torchqat.extras import missing


def main() -> None:
    """Entry point; ends the process with the exit code."""
    try:
        from torchqat.cli import main as command
    except ModuleNotFoundError as error:
        print(f"torchqat: {missing('cli', 'The command line', error)}", file=sys.stderr)
        sys.exit(2)
    command()


if __name__ == "__main__":
    main()
