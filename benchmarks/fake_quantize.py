"""What fake quantization of one weight costs, forward and backward, in passes of ``copy_`` over it.

    python benchmarks/fake_quantize.py [--rounds 15] [--compiled] [--earlier LIBRARY]

Ours, torchao, Brevitas, ATen and hand-written straight-through code, eager and compiled, in steady state and in turn
within one run; on a CPU beside the ``libqat_ops.so`` of an earlier state, which no case may exceed by more than 5 %. Before
anything is timed, results are compared: with Brevitas and torchao in units of the scale.
"""

import argparse
from collections.abc import Callable
from dataclasses import asdict
from functools import partial

import peers
import torch
from common import CUDA, DEVICE, paired, publish, synchronize, table, verdict
from torch import Tensor
from torchqat import ops

CASES = [(4096, dtype, group) for dtype in (torch.float32, torch.bfloat16) for group in (32, 128)]
CASES += [(8192, torch.bfloat16, 128)] if CUDA else [(1024, torch.float32, 32)]
# At most this many times what an earlier state took.
SLOWER = 1.05
# At most this many copy passes, for weights that do not fit the cache.
LIMITS = {
    "narrow": 1.5, "full": 3.0, "signed": 3.0, "asymmetric": 3.0, "learned": 4.0, "learned, zero point": 4.0,
    "FP8 per channel": 3.0, "FP8 per tensor": 3.0, "FP8 128 x 128": 3.0, "MXFP4": 4.0, "NVFP4": 4.0,
}  # fmt: skip
# With AVX2 (TORCHQAT_CPU_CAPABILITY and ATEN_CPU_CAPABILITY).
AVX2_LIMITS = {"FP8 per channel": 6.0, "FP8 per tensor": 6.0, "FP8 128 x 128": 6.0, "MXFP4": 8.0, "NVFP4": 8.0}

# Types whose blocks are their own, whatever the group of the others.
TYPES = {
    "FP8 per channel": "minmax fp8_e4m3 1x-1 float32",
    "FP8 per tensor": "minmax fp8_e4m3 -1x-1 float32",
    "FP8 128 x 128": "minmax fp8_e4m3 128x128 float32",
    "MXFP4": "minmax fp4_e2m1 1x32 e8m0_floor",
    "NVFP4": "minmax fp4_e2m1 1x16 e4m3*float32@-1x-1",
}


def step(quantize: Callable[[Tensor], Tensor], weight: Tensor, others: list[Tensor], grad: Tensor) -> None:
    torch.autograd.grad(quantize(weight), [weight, *others], grad)


def text(grid: str, group: int, scale: str = "bfloat16") -> str:
    return f"minmax int4 {grid} 1x{group} {scale}"


def ours(weight: Tensor, group: int) -> dict[str, tuple[Callable[[Tensor], Tensor], list[Tensor]]]:
    grids = {grid: text(grid, group) for grid in ("narrow", "full", "signed", "asymmetric")} | TYPES
    cases = {name: (partial(ops.fake_quantize, quantizer=quantizer), []) for name, quantizer in grids.items()}
    scale, zero = ops.choose_qparams(weight.detach(), text("asymmetric", group))
    scale.requires_grad_()
    learned_zero = zero.float().requires_grad_()
    for name, grid, zero_point in (("learned", "full", None), ("learned, zero point", "asymmetric", learned_zero)):
        quantizer = f"learned int4 {grid} 1x{group} bfloat16 0.1"
        run = partial(ops.fake_quantize, quantizer=quantizer, scale=scale, zero_point=zero_point)
        cases[name] = (run, [scale] if zero_point is None else [scale, zero_point])
    return cases


def others(weight: Tensor, group: int, with_compiled: bool) -> dict[str, Callable[[Tensor], Tensor] | None]:
    eager = {
        "torchao": peers.torchao(group),
        "straight-through by hand": peers.straight_through(group),
    }
    found = dict(eager)
    if with_compiled:
        found |= {f"{name}, compiled": peers.compiled(quantize) for name, quantize in eager.items()}
    if weight.dtype == torch.float32:
        found |= {"ATen per channel": peers.aten_per_channel(group), "ATen learnable": peers.aten_learnable(group)}
    found["Brevitas"] = peers.brevitas(group, weight)
    return {name: quantize for name, quantize in found.items() if quantize is not None}


def on_another_level(group: int, theirs: Tensor, weight: Tensor, quantizer: str) -> str:
    """How many elements a peer has on another level. It divides where we multiply by the reciprocal, so that ties may
    fall to the neighbouring one."""
    scale, _ = ops.choose_qparams(weight, quantizer)
    steps = (theirs - ops.fake_quantize(weight, quantizer)).abs().view(-1, group) / scale.view(-1, 1)
    assert steps.max() < 1.001 and (steps > 1e-3).float().mean() < 1e-4
    return f"{int((steps > 1e-3).sum())} of {steps.numel()} elements on another level, by one"


def check_agreement(group: int) -> list[str]:
    """Compares results before anything is timed, and says by how much they may differ."""
    torch.manual_seed(0)
    weight = torch.randn(256, 512)
    found = [("Brevitas", grid, peers.brevitas(group, weight, grid == "narrow")) for grid in ("narrow", "asymmetric")]
    lines = []
    for name, grid, peer in [*found, ("torchao", "full", peers.torchao(group))]:
        if peer is None:
            continue
        differ = on_another_level(group, peer(weight), weight, text(grid, group, "float32"))
        lines.append(f"{name} and `{grid}` with float32 scales, groups of {group}: {differ}")
    hand = peers.straight_through(group)
    mine = ops.fake_quantize(weight, text("narrow", group, "float32"))
    # Its addition of the weight and its difference rounds twice more.
    assert torch.allclose(hand(weight), mine, rtol=0, atol=1e-6)
    lines.append(f"by hand and `narrow`, groups of {group}: within 1e-6")
    return lines


def measure(size: int, dtype: torch.dtype, group: int, rounds: int, with_compiled: bool, library: str | None) -> dict:
    torch.manual_seed(0)
    weight = (torch.randn(size, size, device=DEVICE) * 0.02).to(dtype).requires_grad_()
    grad = torch.randn(size, size, device=DEVICE).to(dtype)
    into, source = torch.empty_like(grad), weight.detach()
    mine = ours(weight, group)
    candidates = {"copy_": lambda: into.copy_(source)}
    candidates |= {f"ours, {name}": partial(step, run, weight, extra, grad) for name, (run, extra) in mine.items()}
    candidates |= {
        name: partial(step, run, weight, [], grad) for name, run in others(weight, group, with_compiled).items()
    }
    earlier = peers.Earlier(library, size, dtype, group) if library else None
    if earlier:
        candidates |= {f"earlier, {name}": run for name, run in earlier.cases.items()}
    timings = paired(candidates, "copy_", rounds)
    synchronize()
    if earlier:
        earlier.close()
    del candidates
    torch._dynamo.reset()
    return {name: asdict(timing) | {"text": str(timing)} for name, timing in timings.items()}


def reason(name: str) -> str:
    """Why a case falls short: whether it would be as slow without going to memory."""
    size, dtype, group = name.split()
    size, dtype, group = int(size[:-1]), getattr(torch, dtype), int(group[1:])
    times = {}
    for where, side in (("memory", size), ("cache", 512)):
        x = (torch.randn(side, side, device=DEVICE) * 0.02).to(dtype)
        run = partial(ops.fake_quantize, x, text("narrow", group))
        into = torch.empty_like(x)
        timings = paired({"copy": partial(into.copy_, x), "ours": run}, "copy", 15)
        times[where] = 1e6 * timings["ours"].milliseconds / side**2
    bound = "instructions" if times["cache"] > 0.7 * times["memory"] else "memory"
    forward = f"the forward of `narrow` takes {times['memory']:.3f} ns an element"
    return f"{name}: {forward}, and {times['cache']:.3f} on a tensor that stays in the cache: {bound} set the time"


def beside_earlier(figures: dict[str, dict]) -> list[str]:
    """For every case of the earlier state what ours takes in its stead."""
    lines = []
    for name, case in figures.items():
        for earlier in (candidate for candidate in case if candidate.startswith("earlier, ")):
            ours_now = "ours, " + earlier.removeprefix("earlier, ")
            ratio = case[ours_now]["milliseconds"] / case[earlier]["milliseconds"]
            lines.append(f"{name}, {earlier.removeprefix('earlier, ')}: {ratio:.2f}x, {verdict(ratio, SLOWER)}")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--compiled", action="store_true", help="also torch.compile the peers: minutes more")
    parser.add_argument("--earlier", metavar="LIBRARY", help="the libqat_ops.so of an earlier state, to compare with")
    options = parser.parse_args()
    agreement = [line for group in (32, 128) for line in check_agreement(group)]
    figures = {}
    for size, dtype, group in CASES:
        name = f"{size}² {str(dtype).removeprefix('torch.')} g{group}"
        figures[name] = measure(size, dtype, group, options.rounds, options.compiled, options.earlier)
        print(name, {k: v["text"] for k, v in figures[name].items()}, flush=True)
    limits = LIMITS | (AVX2_LIMITS if ops.cpu_capability() == "avx2" else {})
    rows, short = [], set()
    for candidate in dict.fromkeys(name for case in figures.values() for name in case):
        cells = [case[candidate]["text"] if candidate in case else "–" for case in figures.values()]
        limit = limits.get(candidate.removeprefix("ours, "))
        worst = max(
            case[candidate]["ratio"] for name, case in figures.items() if candidate in case and name[:4] != "1024"
        )
        if limit:
            short |= {n for n, case in figures.items() if candidate in case and n[:4] != "1024"
                      and case[candidate]["ratio"] > limit}  # fmt: skip
        rows.append([candidate, *cells, f"{limit}x: {verdict(worst, limit)}" if limit else ""])
    copies = ", ".join(f"{name}: {case['copy_']['milliseconds']:.2f} ms" for name, case in figures.items())
    body = table(["forward + backward, copy passes", *figures, "limit"], rows)
    body += "\n\nMedians over rounds, quartiles in brackets. One copy pass takes " + copies + ".\n\n"
    if short:
        reasons = [reason(name) for name in figures if name in short]
        body += "Where a limit is not met:\n\n" + "\n".join(f"- {line}" for line in reasons) + "\n\n"
    if options.earlier:
        lines = beside_earlier(figures)
        body += f"Times the earlier state, at most {SLOWER}x:\n\n" + "\n".join(f"- {line}" for line in lines) + "\n\n"
    body += "Compared before timing:\n\n" + "\n".join(f"- {line}" for line in agreement)
    command = f"python benchmarks/fake_quantize.py --rounds {options.rounds}" + " --compiled" * options.compiled
    command += " --earlier LIBRARY" if options.earlier else ""
    publish("fake_quantize", "Fake quantization of one weight, in copy passes", body, figures, command)


if __name__ == "__main__":
    main()
