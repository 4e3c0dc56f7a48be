"""How the cost of fake quantization grows: with elements, tokens and threads.

    python benchmarks/growth.py [--rounds 7]

Elements from 2^16 to 2^28 in groups of 32 and per token, on one thread and two; and a linear layer of 1024 by 2816 with INT4
weights and INT8 inputs beside a plain one, forward and backward, from 128 to 8192 tokens. Writes a table, JSON and a plot.
"""

import argparse
from dataclasses import asdict

import torch
from common import DEVICE, RESULTS, paired, publish, suffix, table
from torchqat import ops

THREADS = [1] if DEVICE == "cuda" else [1, 2]
WEIGHT, INPUT = "minmax int4 narrow 1x32 bfloat16", "minmax int8 narrow 1x-1 float32"


def over_elements(rounds: int) -> list[dict]:
    rows = []
    for threads in THREADS:
        torch.set_num_threads(threads)
        for power in range(16, 29, 2):
            x = (torch.randn(2**power // 1024, 1024, device=DEVICE) * 0.02).bfloat16()
            into = torch.empty_like(x)
            candidates = {
                "copy_": lambda into=into, x=x: into.copy_(x),
                "weight, groups of 32": lambda x=x: ops.fake_quantize(x, "minmax int4 narrow 1x32 bfloat16"),
                "input, per token": lambda x=x: ops.fake_quantize(x, "minmax int8 narrow 1x-1 float32"),
            }
            for name, timing in paired(candidates, "copy_", rounds).items():
                rows.append({"threads": threads, "elements": 2**power, "what": name, **asdict(timing)})
    return rows


def over_tokens(rounds: int) -> list[dict]:
    rows = []
    weight = torch.randn(2816, 1024, device=DEVICE).bfloat16().requires_grad_()
    for threads in THREADS:
        torch.set_num_threads(threads)
        for tokens in (128, 256, 512, 1024, 2048, 4096, 8192):
            x = torch.randn(tokens, 1024, device=DEVICE).bfloat16().requires_grad_()
            grad = torch.randn(tokens, 2816, device=DEVICE).bfloat16()

            def step(weight_text="", input_text="", x=x, grad=grad):
                if weight_text:
                    y = ops.quant_linear(x, weight, weight_quantizer=weight_text, input_quantizer=input_text)
                else:
                    y = torch.nn.functional.linear(x, weight)
                torch.autograd.grad(y, [x, weight], grad)

            candidates = {
                "plain": step,
                "INT4 weight": lambda step=step: step(WEIGHT),
                "INT4 weight, INT8 input": lambda step=step: step(WEIGHT, INPUT),
            }
            for name, timing in paired(candidates, "plain", rounds).items():
                rows.append({"threads": threads, "tokens": tokens, "what": name, **asdict(timing)})
    return rows


def plot(elements: list[dict], tokens: list[dict], path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for axes, rows, key, value in ((left, elements, "elements", "per"), (right, tokens, "tokens", "ratio")):
        for index, what in enumerate(dict.fromkeys(row["what"] for row in rows)):
            for threads, style in zip(THREADS, ("--", "-"), strict=False):
                line = [row for row in rows if row["what"] == what and row["threads"] == threads]
                scale = [1e6 * row["milliseconds"] / row[key] if value == "per" else row["ratio"] for row in line]
                label = f"{what}, {threads} thread{'s' * (threads > 1)}"
                axes.plot([row[key] for row in line], scale, style, color=f"C{index}", marker=".", label=label)
        axes.set_xscale("log", base=2)
        axes.set_xlabel(key)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    left.set_yscale("log")
    left.set_ylabel("nanoseconds per element, bfloat16")
    right.set_ylabel("time over a plain layer, forward + backward")
    right.set_ylim(bottom=0.8)
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    threads = torch.get_num_threads()
    elements, tokens = over_elements(rounds), over_tokens(rounds)
    torch.set_num_threads(threads)
    plot(elements, tokens, RESULTS / f"growth-{suffix()}.png")
    first = table(
        ["threads", "elements", "what", "ms", "ns per element", "copy passes"],
        [
            [str(r["threads"]), f"2^{r['elements'].bit_length() - 1}", r["what"], f"{r['milliseconds']:.3f}",
             f"{1e6 * r['milliseconds'] / r['elements']:.3f}", f"{r['ratio']:.2f}x"]
            for r in elements
        ],
    )  # fmt: skip
    second = table(
        ["threads", "tokens", "what", "ms", "over plain"],
        [
            [str(r["threads"]), str(r["tokens"]), r["what"], f"{r['milliseconds']:.2f}", f"{r['ratio']:.2f}x"]
            for r in tokens
        ],
    )
    body = f"![growth](growth-{suffix()}.png)\n\nForward, bfloat16, rows of 1024:\n\n{first}\n\n"
    body += f"A linear layer of 1024 by 2816, forward and backward, bfloat16:\n\n{second}"
    figures = {"elements": elements, "tokens": tokens}
    publish("growth", "How the cost grows", body, figures, f"python benchmarks/growth.py --rounds {rounds}")


if __name__ == "__main__":
    main()
