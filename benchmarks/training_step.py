"""What quantization-aware training costs a training step: time and peak memory against plain training and torchao.

    python benchmarks/training_step.py [--rounds 9] [--case bfloat16-512 ...]

A Llama of 103 M parameters (hidden 1024, FFN 2816, 8 layers), forward, backward and AdamW: INT4 weights in groups of 32,
with and without INT8 inputs per token, NVFP4 and MXFP4 weights, and bfloat16 with float32 masters on all sides. Every
mode has a model of its own and takes its step in turn, so that each round compares like with like; peak memory is that
of a process of its own. On a GPU: the shape of Llama-1B and 2048 to 16384 tokens.
First of all, logits are compared with torchao's on the grid that both have.
"""

import argparse
import copy
import json
from dataclasses import asdict, dataclass

import peers
import torch
import torchqat
from common import CUDA, DEVICE, MEGABYTE, RESULTS, alone, paired, peak_megabytes, publish, suffix, table, verdict
from torch import nn
from torchqat.training.masters import Masters
from transformers import LlamaConfig, LlamaForCausalLM

MODES = ["plain", "none", "codes", "weights", "together", "learned", "torchao"]
CACHES = {"none": "none", "codes": "codes", "weights": "weights", "together": "weights"}


@dataclass(frozen=True)
class Case:
    dtype: torch.dtype
    tokens: int
    inputs: bool = False
    limit: float = 1.03
    weights: str = "int4"
    masters: bool = False

    @property
    def group(self) -> int:
        """Of so many weights each is one scale."""
        return 16 if self.weights == "nvfp4" else 32

    @property
    def modes(self) -> list[str]:
        """The large cases leave out what shows as well in the small ones."""
        if self.weights != "int4" or self.masters:
            return ["plain", "none", "learned", "torchao"]
        return MODES if self.tokens == 512 and not self.inputs else ["plain", "none", "codes", "learned", "torchao"]

    @property
    def measures_memory(self) -> bool:
        return CUDA or (self.tokens == 512 and not (self.inputs and self.dtype == torch.float32))

    @property
    def name(self) -> str:
        others = "-int8" * self.inputs + f"-{self.weights}" * (self.weights != "int4") + "-masters" * self.masters
        return f"{str(self.dtype).removeprefix('torch.')}-{self.tokens}{others}"


BF16, FP32 = torch.bfloat16, torch.float32
CASES = [
    Case(BF16, 512, limit=1.06), Case(BF16, 2048), Case(FP32, 512, limit=1.06), Case(FP32, 2048),
    Case(BF16, 512, True, 1.10), Case(BF16, 2048, True, 1.10), Case(FP32, 512, True, 1.10),
    Case(BF16, 512, limit=1.10, weights="nvfp4"), Case(BF16, 512, limit=1.10, weights="mxfp4"),
    Case(BF16, 512, limit=1.06, masters=True),
]  # fmt: skip
if CUDA:
    CASES = [Case(BF16, tokens) for tokens in (2048, 4096, 8192, 16384)]
    CASES += [Case(BF16, 4096, True, 1.10), Case(BF16, 4096, limit=1.10, weights="nvfp4")]


def plain_model(dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    shape = {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 8, "num_attention_heads": 16}
    if CUDA:
        shape = {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32}
    config = LlamaConfig(**shape, vocab_size=1024, max_position_embeddings=8192, attn_implementation="sdpa")
    return LlamaForCausalLM(config).to(DEVICE, dtype).train()


def recipe(case: Case, cache: str = "none", rest: str = "") -> torchqat._library.Recipe:
    tail = ", input: {dtype: int8, granularity: token}" if case.inputs else ""
    weight = f"dtype: int4, group_size: {case.group}" if case.weights == "int4" else f"dtype: {case.weights}"
    rule = f'{{match: "model.layers.*", weight: {{{weight}{rest}}}{tail}}}'
    return torchqat.parse_recipe(f"version: 1\nlayers: [{rule}]\ntrain: {{weight_cache: {cache}}}\n")


def model_for(mode: str, case: Case) -> nn.Module | None:
    model = plain_model(case.dtype)
    if mode == "torchao":
        return peers.torchao_model(model, case.weights, case.inputs)
    if mode == "learned":
        grid = ", grid: full" * (case.weights == "int4")
        return torchqat.prepare(model, recipe(case, rest=f"{grid}, scale: learned"), method="rtn")
    return model if mode == "plain" else torchqat.prepare(model, recipe(case, CACHES[mode]))


def stepper(mode: str, case: Case):
    """A function that takes one training step, or None where the peer is missing."""
    model = model_for(mode, case)
    if model is None:
        return None
    masters = Masters(model) if case.masters else None
    groups = [{"params": list(model.parameters())}]
    optimizer = torch.optim.AdamW(masters.instead(groups) if masters else groups, lr=1e-5, fused=True)
    tokens = torch.randint(0, 1024, (1, case.tokens), generator=torch.Generator().manual_seed(1)).to(DEVICE)

    schedule = torchqat.Schedule(model, recipe(case, "weights"), 10**6) if mode == "together" else None

    def step() -> float:
        loss = model(input_ids=tokens, labels=tokens, use_cache=False).loss
        loss.backward()
        if masters is not None:
            masters.take_gradients()
        optimizer.step()
        if masters is not None:
            masters.give()
        optimizer.zero_grad()
        if schedule is not None:
            schedule.step()
        return loss.detach()

    return step


def check_agreement() -> str:
    """Logits against torchao's: symmetric INT4 in groups of 32, float32."""
    model = plain_model(FP32)
    peer = peers.torchao_model(copy.deepcopy(model), "int4", inputs=False)
    if peer is None:
        return "torchao is missing: nothing to compare with"
    ours = torchqat.prepare(model, recipe(Case(FP32, 64), rest=", grid: full, scale_dtype: float32"))
    tokens = torch.arange(64, device=DEVICE)[None] * 7
    with torch.no_grad():
        difference = (ours(input_ids=tokens).logits - peer(input_ids=tokens).logits).abs().max().item()
    assert difference < 1e-4, difference  # a product's sums may be ordered otherwise; a wrong level would show at 1e-2
    return f"logits of `full` with float32 scales against torchao, float32: at most {difference:.1e} apart"


def measure_time(case: Case, rounds: int) -> dict:
    steps = {mode: stepper(mode, case) for mode in case.modes}
    steps = {mode: step for mode, step in steps.items() if step is not None}
    losses = {mode: step().item() for mode, step in steps.items()}
    kept = {losses[mode] for mode in CACHES if mode in losses}
    assert len(kept) == 1, losses
    return {
        mode: asdict(timing) | {"text": str(timing)}
        for mode, timing in paired(steps, "plain", rounds, warmup=1).items()
    }


def probe(mode: str, case: Case) -> None:
    """Print the peak memory of three steps; none where the peer is missing."""
    step = stepper(mode, case)
    for _ in range(3 if step else 0):
        step()
    print(json.dumps(peak_megabytes() if step else None))


def allowed_megabytes(mode: str, case: Case) -> float:
    """What the mode may take beyond plain training: one layer's weight, scales while they live, and what is kept."""
    model = plain_model(case.dtype)
    layers = [m.weight.numel() for n, m in model.named_modules() if isinstance(m, nn.Linear) and n != "lm_head"]
    size = torch.finfo(case.dtype).bits // 8
    one, of_all = max(layers) * size, sum(layers) / case.group
    scales, codes = max(layers) / case.group * 5, sum(layers) / 2 + of_all * 5
    if mode == "learned":
        scales = of_all * 4 * 4  # parameter, gradient and AdamW's two moments
    weights = sum(layers) * size + of_all * 5
    kept = {"codes": codes, "weights": weights, "together": weights}.get(mode, 0.0)
    inputs = case.tokens * 2816 * size if case.inputs else 0
    return (one + scales + kept + inputs) / MEGABYTE


def reason(case: Case) -> str:
    """Why a limit is not met: what part of a step, by the profiler, quantization itself takes."""
    step = stepper("none", case)
    step()
    with torch.profiler.profile() as profile:
        step()
    times = {event.key: event.self_cpu_time_total for event in profile.key_averages()}
    part = sum(time for key, time in times.items() if key.startswith("qat::")) / sum(times.values())
    return f"{case.name}: quantization takes {100 * part:.1f} % of a profiled step; the rest is noise and caches"


def kept_figures() -> dict:
    return json.loads((RESULTS / f"training_step-{suffix()}.json").read_text())["figures"]


def report_rows(figures: dict) -> tuple[list[list[str]], list[list[str]]]:
    times, memories = [], []
    for case in (case for case in CASES if case.name in figures):
        found = figures[case.name]
        cells = [found["time"][mode]["text"] if mode in found["time"] else "–" for mode in MODES[1:]]
        ratio = found["time"].get("none", {}).get("ratio", 0.0)
        times.append([case.name, f"{found['time']['plain']['milliseconds']:.0f} ms" if found["time"] else "", *cells,
                      f"{case.limit}x: {verdict(ratio, case.limit)}"])  # fmt: skip
        memory = found["memory"]
        if not memory:
            continue
        cells = []
        for mode in MODES[1:]:
            extra = memory[mode] - memory["plain"] if memory.get(mode) else None
            bound = f" (bound {allowed_megabytes(mode, case):+.0f})" if mode != "torchao" else ""
            cells.append("–" if extra is None else f"{memory[mode] / memory['plain']:.2f}x, {extra:+.0f} MB{bound}")
        memories.append([case.name, f"{memory['plain']:.0f} MB", *cells])
    return times, memories


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--case", nargs="*", choices=[case.name for case in CASES])
    parser.add_argument("--probe", choices=MODES, help=argparse.SUPPRESS)
    parser.add_argument(
        "--memory-only", action="store_true", help="measure memory anew; keep the times of the last run"
    )
    options = parser.parse_args()
    chosen = [case for case in CASES if not options.case or case.name in options.case]
    if options.probe:
        return probe(options.probe, chosen[0])
    agreement = check_agreement()
    figures = kept_figures() if options.memory_only else {}
    for case in chosen:
        if options.memory_only and not case.measures_memory:
            continue
        rounds = options.rounds if case.tokens <= 512 or CUDA else max(3, options.rounds // 3)
        if not options.memory_only:
            figures[case.name] = {"time": measure_time(case, rounds)}
        modes = case.modes if case.measures_memory else []
        figures[case.name]["memory"] = {mode: alone(__file__, "--probe", mode, "--case", case.name) for mode in modes}
        print(case.name, {k: v["text"] for k, v in figures[case.name]["time"].items()}, figures[case.name]["memory"],
              flush=True)  # fmt: skip
    times, memories = report_rows(figures)
    body = "Time of a step over a plain one, medians over rounds, quartiles in brackets; `none`, `codes` and `weights` are "
    body += "`train.weight_cache`, `together` is `weights` rounded in one call by `schedule.step()`, "
    body += "`learned` has trained scales on the `full` grid.\n\n"
    body += table(["dtype-tokens", *MODES, "limit of none"], times)
    body += "\n\nPeak memory: that of plain training, and what each mode takes beyond it.\n\n"
    body += (
        table(["dtype-tokens", *MODES], memories) + f"\n\nCompared before timing: {agreement}; the losses of `none`, "
    )
    body += "`codes`, `weights` and `together` are equal bit for bit."
    ratios = {case: figures.get(case.name, {}).get("time", {}).get("none", {}).get("ratio", 0.0) for case in CASES}
    short = [case for case, ratio in ratios.items() if ratio > case.limit]
    if short:
        body += "\n\nWhere a limit is not met:\n\n" + "\n".join(f"- {reason(case)}" for case in short)
    command = (
        f"python benchmarks/training_step.py --rounds {options.rounds}" + ", then --memory-only" * options.memory_only
    )
    publish("training_step", "A training step, against plain training", body, figures, command)


if __name__ == "__main__":
    main()
