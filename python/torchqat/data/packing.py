"""Which conversations share a row, one after the other."""

import numpy as np

# In no order of the data's own: neighbours there are often of one kind.
_SEED = 0


def packed(lengths: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of at most ``most`` tokens: as many conversations as fit, in a random order that is always the same.

    Args:
        lengths: int64 ``[n]``, each at most ``most``.
        most: Tokens of a row.

    Returns:
        The order of the conversations, int64 ``[n]``, and with which place of it each row begins, and the last one ends.
    """
    order = np.random.default_rng(_SEED).permutation(len(lengths))
    begins, size = [0], 0
    for place, length in enumerate(lengths[order].tolist()):
        if size + length > most:
            begins.append(place)
            size = 0
        size += length
    return order, np.array([*begins, len(lengths)])
