"""What is asked of an engine, and what it answers."""

from dataclasses import asdict, dataclass, field

import numpy as np
import torch


@dataclass(frozen=True)
class Bench:
    """What to time: the reading of ``prompt`` and the writing of ``new_tokens`` after it, the best of ``repeats``."""

    prompt: list[int]
    new_tokens: int = 32
    repeats: int = 3


@dataclass(frozen=True)
class Question:
    """A checkpoint to load and what to compute with it.

    Attributes:
        checkpoint: Its folder.
        prompts: Token ids; log probabilities are wanted after each of them, and a greedy continuation.
        new_tokens: Length of that.
        texts: To be tokenized, by engines that do.
        bench: What to time; nothing when ``None``.
        context: Most tokens of a prompt with its continuation.
        threads: Of the engine.
        device: ``cpu`` or ``cuda:N``, where an engine that runs on either computes.
        cache: The engine's types of keys and of values, where it is told them; its own choice when empty.
    """

    checkpoint: str
    prompts: list[list[int]]
    new_tokens: int = 8
    texts: list[str] = field(default_factory=list)
    bench: Bench | None = None
    context: int = 512
    threads: int = field(default_factory=torch.get_num_threads)
    device: str = "cpu"
    cache: tuple[str, ...] = ()

    def as_dict(self) -> dict:
        return asdict(self)


@dataclass(frozen=True)
class Speed:
    """What a checkpoint costs in an engine.

    Attributes:
        load_seconds: From a folder to a model that answers.
        peak_bytes: The most memory that the process held, caches set aside included: of the GPU that it ran on, else of the
            host.
        prefill: Tokens of a prompt read per second; ``None`` when not timed.
        decode: Tokens written per second; ``None`` when not timed.
        runs: Runs per second of a model that writes no text, on the whole example; ``None`` when not timed.
        on_gpu: Whether ``peak_bytes`` is memory of a GPU.
    """

    load_seconds: float
    peak_bytes: int
    prefill: float | None = None
    decode: float | None = None
    runs: float | None = None
    on_gpu: bool = False


def speed_rows(columns: dict[str, Speed]) -> list[tuple[str, list[str]]]:
    """What ``columns`` cost, in words and numbers for a table: one row a figure."""
    speeds = columns.values()
    rows = [
        ("prompt, tokens/s", [speed.prefill for speed in speeds], "{:.0f}"),
        ("generation, tokens/s", [speed.decode for speed in speeds], "{:.1f}"),
        ("runs/s", [speed.runs for speed in speeds], "{:.1f}"),
        ("time to load, s", [speed.load_seconds for speed in speeds], "{:.2f}"),
    ]
    found = [(name, [form.format(x) for x in values]) for name, values, form in rows if None not in values]
    memory = [f"{speed.peak_bytes / 1e6:.0f}" for speed in speeds]
    where = {speed.on_gpu for speed in speeds}
    if len(where) > 1:
        memory = [f"{size} {'GPU' if speed.on_gpu else 'host'}" for size, speed in zip(memory, speeds, strict=True)]
        return [*found, ("peak memory, MB", memory)]
    return [*found, ("peak GPU memory, MB" if True in where else "peak memory, MB", memory)]


@dataclass(frozen=True)
class Served:
    """An engine's answer.

    Attributes:
        logprobs: For each prompt float32 ``[tokens, vocabulary]``: of the token that follows each; NaN where not listed.
        greedy: The continuations.
        tokens: The tokens of each text, or ``None`` from engines that do not tokenize.
        speed: Time and memory.
    """

    logprobs: list[np.ndarray]
    greedy: list[list[int]]
    tokens: list[list[int] | None]
    speed: Speed

    @staticmethod
    def of(result: dict, arrays: dict[str, np.ndarray]) -> "Served":
        speed = Speed(
            result["load_seconds"],
            result["peak_bytes"],
            result.get("prefill_tokens_per_second"),
            result.get("decode_tokens_per_second"),
            on_gpu=result["on_gpu"],
        )
        return Served([arrays[f"logprobs{i}"] for i in range(len(arrays))], result["greedy"], result["tokens"], speed)
