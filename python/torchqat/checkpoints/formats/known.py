"""All formats by their names: those of the native library, which C++ programs write as well, and those of Python alone."""

from torchqat import _library
from torchqat._library import Format, QuantizedWeights, QuantSpec
from torchqat.checkpoints.formats.dense import Dense
from torchqat.checkpoints.formats.mxfp4 import Mxfp4

_OWN = {format.name: format for format in (Mxfp4(), Dense())}


def formats() -> list[Format | Mxfp4 | Dense]:
    """In the order of ``docs/formats.md``."""
    return [*_library.formats(), *_OWN.values()]


def bits_per_weight(format: str, layer: QuantizedWeights) -> float:
    """Bits that a checkpoint in ``format`` spends on a weight of ``layer``, scales and zero points included."""
    found = find_format(format)
    return found.bits_per_weight(layer) if isinstance(found, Format) else layer.bits_per_weight


def size_of_weight(
    format: str, spec: QuantSpec, shape: tuple[int, int], scale_bits: int = 0, input: QuantSpec | None = None
) -> int:
    """Bits that a checkpoint in ``format`` spends on a weight ``[rows, columns]`` under ``spec``, scales included, of which
    one that is a number takes ``scale_bits``; 0 for those of its dtype. ``input``: how that of its layer is quantized."""
    found = find_format(format)
    if not isinstance(found, Format):
        return _library.size_of_weight(spec, *shape, scale_bits)
    return found.size_of_weight(spec, *shape, scale_bits, input)


def find_format(name: str) -> Format | Mxfp4 | Dense:
    """The format called ``name``.

    Raises:
        ValueError: There is none.
    """
    found = next((format for format in formats() if format.name == name), None)
    if found is None:
        *names, last = (format.name for format in formats())
        raise ValueError(f"format must be {', '.join(names)} or {last}, but is {name}.")
    return found
