"""``python -m torchqat``: the command line."""

from torchqat.cli import main

main()
