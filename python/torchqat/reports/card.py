"""What a model card says: metadata that the Hub reads, then how the model was made, what it keeps and how it is loaded."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torchqat.reports.origin import Origin
from torchqat.reports.report import Report, Variant
from torchqat.reports.serving import how_to_load
from torchqat.reports.wording import MEASURES, baseline_texts, measured, size_at_16

_TASKS = {"causal_lm": "text-generation", "sentence_encoder": "sentence-similarity"}
# Formats that are no folder of transformers.
_LIBRARIES = {"gguf": "", "onnx": "", "modelopt": "", "mlx": "mlx", "safetensors": "torchqat"}


@dataclass(frozen=True)
class Subject:
    """What a card is of.

    Attributes:
        folder: The checkpoint.
        format: As ``export`` calls it.
        kind: Of model, as recipes call it.
        writes_text: Whether it is a language model.
        types: Number types of its weights, such as ``int4``.
        size: Bytes of its tensors.
        variant: What was measured of it; ``None`` if nothing was.
        place: What the card calls it, in what is to be typed.
    """

    folder: Path
    format: str
    kind: str
    writes_text: bool
    types: list[str]
    size: int
    variant: Variant | None
    place: str = "path/to/this/folder"


def card_of(subject: Subject, origin: Origin, report: Report, recipe: str) -> str:
    """The card of ``subject``, made of ``origin`` by ``recipe``; folders of the machine it was made on are left out."""
    made = f"[{origin.name}](https://huggingface.co/{origin.repository})" if origin.repository else origin.name
    method = subject.variant.method if subject.variant else "/".join(subject.types).upper()
    parts = [
        f"# {origin.name.rpartition('/')[2]}, {method}",
        f"{made}, quantized by torchqat. Format: {subject.format}.",
        *_section("What is quantized", [f"- {sentence}" for sentence in report.coverage], "\n"),
        *_section("What it keeps", _figures(subject, report)),
        f"## How to load it\n\n{how_to_load(subject.folder, subject.format, subject.place, subject.writes_text)}".rstrip(),
        *_section("Notes", [f"- {note}" for note in report.notes], "\n"),
        f"## How it was made\n\nMethod: {method}. The recipe:\n\n````yaml\n{recipe.rstrip()}\n````",
        *_section("Made with", _made_with(report), "\n"),
        f"## License\n\n{_license(origin)}",
    ]
    return f"---\n{_metadata(subject, origin)}---\n\n" + without_folders("\n\n".join(parts)) + "\n"


def _made_with(report: Report) -> list[str]:
    """Versions and device; the number of threads changes no bit of what is in the folder."""
    return [f"- {name} {value}" for name, value in report.environment.items() if name != "threads"]


def without_folders(text: str) -> str:
    """``text``, of whose absolute paths only the last part is left."""
    return re.sub(r"(?<![\w:/.~])(?:~|\.\.)?/(?:[^\s/'\"`,;]+/)+(?=[^\s/'\"`,;])", "", text)


def _section(title: str, lines: list[str], between: str = "\n\n") -> list[str]:
    return [f"## {title}\n\n{between.join(lines)}"] if lines else []


def _metadata(subject: Subject, origin: Origin) -> str:
    library = _LIBRARIES.get(subject.format, "transformers")
    bits = {found[0] for name in subject.types if (found := re.search(r"\d+", name))}
    method = re.sub(r"[^a-z0-9]+", "-", subject.variant.name.lower()) if subject.variant else ""
    tags = [
        "torchqat",
        "quantized",
        subject.format,
        *subject.types,
        *(f"{width}-bit" for width in sorted(bits, key=int)),
    ]
    tags += [tag for tag in ("qat", "gptq", "awq") if tag in method.split("-")]
    found: dict[str, Any] = dict(origin.metadata)
    if origin.repository:
        found |= {"base_model": origin.repository, "base_model_relation": "quantized"}
    if library:
        found["library_name"] = library
    if subject.kind in _TASKS:
        found.setdefault("pipeline_tag", _TASKS[subject.kind])
    found["tags"] = list(dict.fromkeys(tags))
    # JSON is YAML, and needs no library.
    return "".join(f"{key}: {json.dumps(value, ensure_ascii=False, default=str)}\n" for key, value in found.items())


def _figures(subject: Subject, report: Report) -> list[str]:
    variant, base = subject.variant, report.baseline
    rows = []
    if variant is not None and base:
        ours = [MEASURES[name](variant) for name in measured(report)]
        rows = [row for row in zip(measured(report), baseline_texts(report), ours, strict=True) if row[2] != "-"]
        rows.append(("bits a weight, of quantized layers", "–", f"{variant.bits_per_weight:.2f}"))
        if variant.bits_over_all is not None:
            rows.append(("bits a weight, of all that are multiplied", "–", f"{variant.bits_over_all:.2f}"))
    at_16 = size_at_16(report)
    rows.append(("size, MB", f"{at_16 / 1e6:.1f} (16 bits)" if at_16 else "–", f"{subject.size / 1e6:.1f}"))
    lines = ["| figure | float model | this |", "|---|---|---|", *(f"| {a} | {b} | {c} |" for a, b, c in rows)]
    return ["\n".join(lines), _measured_on(report) if len(rows) > 3 else "Its quality was not measured."]


def _measured_on(report: Report) -> str:
    counted = f" {report.baseline['counted']}" if report.baseline.get("counted") else ""
    tokens = report.baseline.get("tokens")
    return (
        f"Measured on {tokens} predictions{counted} on data held out of what it was made with, and not comparable with "
        "figures on other data. KL is the mean of each prediction's to the float model's, in nats."
    )


def _license(origin: Origin) -> str:
    named = origin.metadata.get("license_name") or origin.metadata.get("license")
    files = ", ".join(f"[{file.name}]({file.name})" for file in origin.terms)
    if named and files:
        return f"That of {origin.name}: {named}, see {files}."
    if named or files:
        return f"That of {origin.name}: {named or files}."
    return f"{origin.name} came with no license: find out which one holds before you pass this on."
