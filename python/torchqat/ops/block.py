"""The shape of what shares a scale."""

Block = tuple[int, int]
"""Rows and columns of a block; -1 takes a whole axis."""
