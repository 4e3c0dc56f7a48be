"""``Architecture``: what has to be known of one that both transformers and llama.cpp have."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gguf


@dataclass(frozen=True)
class Fixed:
    """What llama.cpp computes whatever the file says, so that a model must have it so.

    Attributes:
        name: Of the key in the configuration of transformers.
        must: What it must be, for a sentence.
        holds: Whether a configuration has it so.
    """

    name: str
    must: str
    holds: Callable[[Any], bool]


@dataclass(frozen=True)
class Architecture:
    """One that both sides know.

    Attributes:
        gguf: Its name in llama.cpp.
        interleaved: llama.cpp rotates neighbouring pairs of a head where transformers rotates its halves.
        norm_offset: What transformers adds to the weight of a norm when it runs, and llama.cpp expects in the file.
        scales_products: llama.cpp multiplies products by the numbers that NVFP4 has for whole weights.
        slides: llama.cpp lets a block of it attend to a window alone, those that the file says.
        divides_frequencies: llama.cpp divides each frequency of its rotary embedding by a number that the file has.
        rotates_part: llama.cpp takes heads of which only the first channels are rotated.
        interleaved_experts: Rows of gates and of ups alternate in a parameter of experts.
        encoder: The class of transformers that it is, where it writes no text but makes vectors; else empty.
        passes_over: What names of tensors begin with that llama.cpp has no use for.
        keys: What else goes into the file, by a function of the writer and the configuration.
        fixed: What it has of its own that no file changes.
    """

    gguf: str
    interleaved: bool = False
    norm_offset: float = 0.0
    scales_products: bool = False
    slides: bool = False
    divides_frequencies: bool = False
    rotates_part: bool = False
    interleaved_experts: bool = False
    encoder: str = ""
    passes_over: tuple[str, ...] = ()
    keys: tuple[Callable[[gguf.GGUFWriter, Any], None], ...] = ()
    fixed: tuple[Fixed, ...] = ()
