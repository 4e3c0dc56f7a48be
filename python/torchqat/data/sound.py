"""Sounds of speech as numbers, from WAV files."""

import wave
from pathlib import Path

import numpy as np

from torchqat.errors import UserError

# By bytes a sample, as they lie in the file.
_WIDTHS = {2: np.dtype("<i2"), 4: np.dtype("<i4")}


def check_sound(path: Path, rate: int, most: int = 0) -> None:
    """Whether ``path`` is what ``read_sound`` reads, as its header says.

    Args:
        path: A file.
        rate: Samples a second that it must have.
        most: Samples that it may have; any number when 0.

    Raises:
        UserError: It is none.
    """
    with _opened(path) as file:
        channels, width, found, count = file.getparams()[:4]
    if channels != 1 or width not in _WIDTHS or found != rate:
        raise UserError(
            f"sounds must have one channel of 16 or 32 bits and {rate} samples a second, as ffmpeg -i IN -ac 1 -ar {rate} "
            f"OUT.wav makes them, but {path} has {channels} of {8 * width} bits and {found}."
        )
    if not count:
        raise UserError(f"sounds must have a sample, but {path} has none.")
    if most and count > most:
        raise UserError(
            f"sounds must have at most {most} samples, which is what the model hears at once, but {path} has {count}; cut "
            "it and its text apart."
        )


def read_sound(path: Path) -> np.ndarray:
    """The samples of a file that ``check_sound`` has looked at, from -1 to 1, float32 ``[n]``."""
    with _opened(path) as file:
        width, data = file.getsampwidth(), file.readframes(file.getnframes())
    return (np.frombuffer(data, _WIDTHS[width]).astype(np.float64) / 2 ** (8 * width - 1)).astype(np.float32)


def _opened(path: Path) -> wave.Wave_read:
    try:
        return wave.open(str(path), "rb")
    except (OSError, EOFError, wave.Error) as error:
        raise UserError(
            f"sounds must be WAV files of PCM that can be read, but {path} is not: {str(error) or 'it ends too early'}."
        ) from error
