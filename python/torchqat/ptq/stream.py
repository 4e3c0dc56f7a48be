"""The documented name of ``torchqat.runs.stream``, which is on a floor above: it writes and reads checkpoints."""

import importlib
import sys

sys.modules[__name__] = importlib.import_module("torchqat.runs.stream")
