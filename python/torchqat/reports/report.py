"""What a run found: ``report.json``, and the table that is printed from it."""

import platform
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from torchqat._version import __version__
from torchqat.evaluation.evaluate import Evaluation
from torchqat.extras import version_of
from torchqat.files import read_json

# In the folder of a run.
REPORT = "report.json"


@dataclass
class Variant:
    """One quantized (or control) model beside the float baseline.

    Attributes:
        name: Unique in the report.
        method: How it was made, in a few words.
        bits_per_weight: Of the quantized layers, scales and zero points included.
        bits_over_all: Of all weights that are multiplied, those that stay in floating point as well; ``None`` in reports of
            earlier versions.
        perplexity: On the held-out data; ``None`` of encoders.
        kl: Mean KL to the baseline per prediction, in nats; ``None`` where nothing was measured, of what was streamed.
        top1_agreement: Share of predictions whose likeliest choice is the baseline's; ``None`` likewise.
        bytes: Size of the checkpoint's tensors on disk.
        export: Folder of the checkpoint, relative to the run, or ``None``.
        recovered: Share of the naive variant's loss at the same width that training won back, by metric; of perplexity where
            that loss is more than noise.
        task: Mean score on the user's task, of which 1 is the best; ``None`` without one.
        intervals: Of ``perplexity_ratio`` (to the baseline), ``kl`` and ``task_drop``: the estimate, and the ends of its
            95 % interval, by paired bootstrap over sequences or examples.
        sqnr: Of each quantized layer's weight, signal to quantization noise in dB, against the float model's; empty where
            the layer's channels were scaled or rotated, which leaves nothing to compare.
        cosine: Of encoders, mean cosine to the baseline's vectors.
        kl_shares: Shares of predictions by their KL (``Evaluation``).
        kl_by_position: Mean KL of each position in a sequence.
        types: Number types of its weights, as recipes name them; none in reports of earlier versions.
        histograms: Of ``weights`` and ``scales``, the ends of the bins and shares ``before`` and ``after`` (histograms.py).
    """

    name: str
    method: str
    bits_per_weight: float
    perplexity: float | None
    kl: float | None
    top1_agreement: float | None
    bytes: int
    export: str | None = None
    recovered: dict[str, float] | None = None
    task: float | None = None
    intervals: dict[str, list[float]] = field(default_factory=dict)
    sqnr: dict[str, float] = field(default_factory=dict)
    cosine: float | None = None
    kl_shares: list[float] = field(default_factory=list)
    kl_by_position: list[float] = field(default_factory=list)
    histograms: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    bits_over_all: float | None = None
    types: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, name: str, method: str, bits: float, figures: Evaluation, size: int, export: str | None = None):
        variant = cls(name, method, bits, figures.perplexity, figures.kl, figures.top1_agreement, size, export)
        variant.cosine = figures.cosine
        variant.kl_shares, variant.kl_by_position = figures.kl_shares, figures.kl_by_position
        return variant


@dataclass(frozen=True)
class Limit:
    """What the recipe asked of a figure, and what it came to.

    Attributes:
        name: Of the figure, in a few words.
        value: The figure.
        bound: What it may be.
        at_least: Whether ``bound`` is the least that is allowed, in place of the most.
    """

    name: str
    value: float
    bound: float
    at_least: bool = False

    @property
    def met(self) -> bool:
        return self.value >= self.bound if self.at_least else self.value <= self.bound


@dataclass
class Report:
    """Everything a run measured.

    Attributes:
        baseline: ``perplexity``, ``bytes`` and ``tokens`` of the float model, its size ``bytes_at_16`` with 16 bits an
            element, its ``losses`` by sequence and, where there is a task, its mean score ``task`` and ``task_scores`` by
            example.
        variants: Quantized models and controls.
        accepted: Whether the recipe's limits are met; ``None`` without limits.
        limits: Those that ``accepted`` is about.
        validation: KL on validation text before training (``start``) and of the state that was kept (``best``), which
            was that of ``step``.
        coverage: Which share of the weights is quantized, and what is left in floating point, one sentence a reason.
        notes: What went differently than asked, one sentence each.
        environment: Versions and device.
        chosen: The variant that mode auto ends with.
        decision: How it came to that, one sentence a step.
        engine: What the chosen variant and the float model cost in the recipe's engine.
        sensitivity: By layer and width, KL with that layer alone quantized, where it was measured.
        exports: By the folder of what was exported, relative to the run where it lies in there, the ``variant`` that it is
            of and its ``sha256`` (``files.digest_of``).
        samples: What the float model and ``variant``, made as ``method`` says, go on with: of each of ``texts`` the
            ``prompt``, and what ``float`` and ``quantized`` write after it, taking the likeliest token each time.
    """

    baseline: dict[str, Any] = field(default_factory=dict)
    variants: list[Variant] = field(default_factory=list)
    accepted: bool | None = None
    limits: list[Limit] = field(default_factory=list)
    validation: dict[str, float] = field(default_factory=dict)
    coverage: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    environment: dict[str, Any] = field(default_factory=dict)
    chosen: str = ""
    decision: list[str] = field(default_factory=list)
    engine: dict[str, Any] = field(default_factory=dict)
    sensitivity: dict[str, dict[str, float]] = field(default_factory=dict)
    exports: dict[str, dict[str, str]] = field(default_factory=dict)
    samples: dict[str, Any] = field(default_factory=dict)

    def variant(self, name: str) -> Variant | None:
        """The variant called ``name``, where it was measured."""
        return next((variant for variant in self.variants if variant.name == name), None)

    def put(self, variant: Variant) -> None:
        """Take ``variant`` in, in place of one of its name."""
        self.variants = [v for v in self.variants if v.name != variant.name] + [variant]

    def to_json(self) -> dict[str, Any]:
        """As ``report.json`` holds it."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Report":
        """Of what ``to_json`` gave, in this version or an earlier one."""
        variants = [Variant(**variant) for variant in value.get("variants", [])]
        limits = [Limit(**limit) for limit in value.get("limits", [])]
        return cls(**{**value, "variants": variants, "limits": limits})


def read_report(folder: Path) -> Report:
    """What the run in ``folder`` has measured so far.

    Raises:
        UserError: Its report is damaged.
    """
    path = folder / REPORT
    return Report.from_json(read_json(path, "The report of a run")) if path.is_file() else Report()


def recovered(baseline_perplexity: float | None, naive: Variant, trained: Variant) -> dict[str, float]:
    """Shares of the naive variant's gap to the baseline that training closed; 1 is all of it, below 0 is a loss.

    A gap in perplexity that is within the noise is none: its share would be a quotient of two errors.
    """
    shares = {}
    _, least, _ = naive.intervals.get("perplexity_ratio", (1.0, 1.0, 1.0))
    if baseline_perplexity is not None and least > 1:
        shares["perplexity"] = (naive.perplexity - trained.perplexity) / (naive.perplexity - baseline_perplexity)
    if naive.kl > 0:
        shares["kl"] = (naive.kl - trained.kl) / naive.kl
    return shares


def environment(device: str) -> dict[str, str]:
    """What the figures of a report depend on besides recipe, model and data; ``device`` is what they are measured on."""
    return {
        "torchqat": __version__,
        "torch": torch.__version__,
        "transformers": version_of("transformers"),
        "python": platform.python_version(),
        "device": device,
        "threads": str(torch.get_num_threads()),
    }
