"""The version, which pyproject.toml reads here, and that of the arithmetic."""

__version__ = "0.1.0"
# Raised when the same recipe, model and data come to other bits: what was begun with another is not gone on with.
NUMERICS = 1
