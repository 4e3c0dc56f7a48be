"""The CUDA kernels of the table, as their demangled names describe them."""

from dataclasses import dataclass, field

HALF = "c10::BFloat16"  # float16 costs the same
INPUT, OUTPUT = rf"(?P<input>float|{HALF})", rf"(?P<output>{HALF})"
WHOLE, FLOAT = (rf"qat::Rounding<qat::{kind}Levels, \(qat::Shift\)0>" for kind in ("Whole", "Float"))
OURS = r"qat::\(anonymous namespace\)::"


@dataclass(frozen=True)
class Kernel:
    """What is looked for among the demangled names. Reads and writes are groups of the pattern, or bytes an element."""

    label: str
    pattern: str
    reads: tuple[str | float, ...]
    writes: tuple[str | float, ...] = ()
    passes: tuple[str, ...] = ("store",)  # or "load", of a loop that only reads, or "copy", that does both
    beside: int = 1  # tensors that a pass which only reads has side by side
    around: bool = False  # the loop around the main loop counts: a thread has one vector of a group
    turns: dict[str, int] = field(default_factory=dict)  # of inner loops, by the elements to a vector


# Reductions over the threads of a group of 128.
BUTTERFLY = {"4": 5, "8": 4}


def mapped(label: str, value: str, reads: tuple, writes: tuple, types: str, around: bool = True) -> Kernel:
    """A Map of ops/cuda/walk.cuh: ``types`` are those of its result and its arguments."""
    params = rf"{OURS}Dequantized" if value == "Dequantize" else "qat::StoredParams"
    return Kernel(
        label, rf"walk_kernel<qat::Map<[48], {params}, {OURS}{value}, {types}> >", reads, writes, around=around
    )


KERNELS = [
    *(
        Kernel(
            f"fake_quantize, minmax, groups, {name}",
            rf"round_groups_kernel<(?P<size>[48]), false, {rounding}, {INPUT}, {OUTPUT}>",
            ("input",),
            ("output",),
            turns=BUTTERFLY,
        )
        for name, rounding in (("int", WHOLE), ("float levels", FLOAT))
    ),
    Kernel(
        "fake_quantize, minmax, rows, int",
        rf"walk_kernel<{OURS}RoundSegment<8, false, {WHOLE}, (?P<input>{HALF}), {OUTPUT}>",
        ("input",),
        ("output",),
        ("load", "store"),
    ),
    mapped("fake_quantize, fixed, groups, int", f"Value<{WHOLE} >", ("input",), ("output",), f"{OUTPUT}, {INPUT}"),
    mapped("fake_quantize, fixed, rows, int", f"Value<{WHOLE} >", ("input",), ("output",), f"{OUTPUT}, {INPUT}", False),
    mapped(
        "fake_quantize, fixed, groups, int, backward",
        f"StraightThrough<{WHOLE} >",
        ("input", "input"),
        ("input",),
        f"{HALF}, (?P<input>{HALF}), {HALF}",
    ),
    Kernel(
        "fake_quantize, learned, groups, int, backward",
        rf"walk_kernel<{OURS}LearnGroups<8, {WHOLE}, {INPUT}>",
        ("input", "input"),
        ("input",),
        around=True,
    ),
    Kernel(
        "choose_qparams, minmax, groups",
        rf"walk_kernel<{OURS}SeePiece<(?P<size>8), false, {INPUT}>",
        ("input",),
        passes=("load",),
        around=True,
        turns=BUTTERFLY,
    ),
    mapped("quantize, groups, int", f"Code<{WHOLE} >", ("input",), (1,), f"signed char, (?P<input>{HALF})"),
    mapped("dequantize, groups, int", "Dequantize", (1,), ("output",), f"{OUTPUT}, signed char"),
    Kernel(
        "encode, groups, int4",
        rf"walk_kernel<{OURS}Encode<8, true, (?P<input>{HALF})>",
        ("input",),
        (0.5,),
        around=True,
    ),
    Kernel("decode, groups, int4", rf"walk_kernel<{OURS}Decode<8, true, {OUTPUT}>", (0.5,), ("output",), around=True),
    # Each pass reads the logits of a token again, which of a large vocabulary no cache holds.
    Kernel(
        "kl_divergence with its gradient",
        rf"kl_divergence_kernel<(?P<input>float|{HALF}), (?P=input)>",
        ("input",) * 6,
        ("input",),
        ("load", "load", "copy"),
        beside=2,
    ),
]
