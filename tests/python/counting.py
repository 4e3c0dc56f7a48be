"""How many converted layers there are at a time."""

import weakref

from torchqat import QuantLinear


class Converted:
    """Counts what ``QuantLinear.convert`` has made and is still there, from now on.

    Attributes:
        most: The most at a time.
    """

    def __init__(self, monkeypatch):
        self.most, alive, convert = 0, set(), QuantLinear.convert

        def counted(layer, name, dtype):
            weights = convert(layer, name, dtype)
            alive.add(name)
            weakref.finalize(weights, alive.discard, name)
            self.most = max(self.most, len(alive))
            return weights

        monkeypatch.setattr(QuantLinear, "convert", counted)
