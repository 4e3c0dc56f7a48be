"""docs/models.md: what torchqat does with every type of model, from what the sweep found.

PYTHONPATH=tests/python python -m model_zoo build/models    # the sweep
python tools/model_table.py build/models                    # its results into benchmarks/results/models.json, and the page
python tools/model_table.py --faults                        # and what tests expect to fail, from these results
"""

import argparse
import json
import re
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks/results/models.json"
PAGE = ROOT / "docs/models.md"
FAULTS = ROOT / "tests/python/model_zoo/expected_faults.txt"

# Cells of a result, and the titles of their columns.
COLUMNS = {
    "covered": "covered",
    "called": "called",
    "calibrated": "GPTQ",
    "trained": "trained",
    "compressed-tensors": "`compressed-tensors`",
    "transformers": "transformers",
    "safetensors": "`safetensors`",
    "gptq": "`gptq`",
    "awq": "`awq`",
    "gguf": "`gguf`",
}
_STATES = {"yes": "yes", "partly": "part", "no": "no", "fault": "FAULT", "-": "–"}

_INTRODUCTION = """# Models

One tiny model of every type that transformers {version} has for text ({texts}), and {others} for other purposes, with random weights, through all that
torchqat does: `match: "*"` at INT4 in groups of 32 (a scale a channel where 32 does not divide a layer), GPTQ, two steps of training,
every export that holds 4 bits. `make models` makes this page anew; the night holds each cell.

| column | yes means |
|---|---|
| covered | every weight that the forward multiplies with is quantized, or the plan names it; the share is of the multiplied weights, output heads aside |
| called | in training and in evaluation mode no planned weight is multiplied with unrounded, as seen at torch's operators, and the model computes what transformers' own classes do with the rounded weights |
| GPTQ | `torchqat.calibrate` reached every layer, and its codes are the same where the model keeps a cache |
| trained | the losses are finite, and every layer moves that moves in the float model |
| `compressed-tensors`, `safetensors`, `gptq`, `awq`, `gguf` | the export reads back bit for bit, by readers that share nothing with the exporters; `safetensors` also by `torchqat.load` |
| transformers | its own `from_pretrained` reads the weights of the `compressed-tensors` export, made dense, bit for bit as they were in training; outputs differ by at most 1e-5 of the largest |

`part`: torchqat does it for some layers, and says why not for the others. `no`: it says why not. `FAULT`: an exception of another kind, or something
left out or wrong without a word; tests hold the list of them (`tests/python/model_zoo/expected_faults.txt`). `–`: not reached, or
nothing to read. Numbers are those of the sentences below the table. The layers that `gptq` and `awq` cannot hold are narrow ones, of
which tiny models have more than real ones. Rows are by the type's name (`model_type` in `config.json`); `benchmarks/results/models.json` has each
sentence in full.
"""


def merged(folder: Path) -> dict:
    """The results of a sweep as one document, by name; what is not the same in every sweep is left out."""
    import transformers

    sys.path.insert(0, str(ROOT / "tests/python"))
    from model_zoo.models import entries

    found = [json.loads(file.read_text(encoding="utf-8")) for file in folder.glob("*.json")]
    by_name = {model["name"]: model for model in found}
    missing = [str(entry) for entry in entries() if str(entry) not in by_name]
    if missing:
        raise SystemExit(f"{folder} must have a result of every model, but has none of {', '.join(missing)}.")
    models = [by_name[name] for name in sorted(map(str, entries()))]
    for model in models:
        del model["seconds"]
        model["shares"] = {key: round(share, 3) for key, share in model["shares"].items()}
    return {"transformers": transformers.__version__, "models": models}


def page(results: dict) -> str:
    """The document."""
    models = sorted(results["models"], key=lambda model: (model["kind"].lower(), model["purpose"]))
    notes = _Notes()
    rows = [_row(model, notes) for model in models]
    others = sum(model["purpose"] != "text" for model in models)
    head = f"| type | for | {' | '.join(COLUMNS.values())} |\n{'|---' * (len(COLUMNS) + 2)}|\n"
    return "\n".join(
        [
            _INTRODUCTION.format(version=results["transformers"], texts=len(models) - others, others=others),
            _counts(models),
            "## Table\n",
            head + "\n".join(rows) + "\n",
            "## Sentences\n",
            "`LAYER`, `TYPE` and `N` stand for what differs from model to model.\n",
            *notes.lines(),
        ]
    )


def _counts(models: list[dict]) -> str:
    built = [model for model in models if not model["built"]]
    whole = [
        m for m in built if all(cell["state"] in ("yes", "partly") for key, cell in m["cells"].items() if key != "gguf")
    ]
    faulty = [m for m in built if any(cell["state"] == "fault" for cell in m["cells"].values())]
    lines = [
        f"Of {len(models)} models transformers builds and runs {len(built)} here; {len(whole)} go through all columns but `gguf` with yes or "
        f"part, {len(faulty)} have a fault.\n",
        f"| | {' | '.join(COLUMNS.values())} |",
        f"{'|---' * (len(COLUMNS) + 1)}|",
    ]
    for state, word in _STATES.items():
        counts = Counter(key for model in built for key, cell in model["cells"].items() if cell["state"] == state)
        lines.append(f"| {word} | {' | '.join(str(counts[key]) for key in COLUMNS)} |")
    return "\n".join(lines) + "\n"


def _row(model: dict, notes: "_Notes") -> str:
    if model["built"]:
        cells = [f"not built {notes.number(model['built'], model)}"] + ["–"] * (len(COLUMNS) - 1)
    else:
        cells = [_cell(model, key, notes) for key in COLUMNS]
    return f"| {model['kind']} | {model['purpose']} | {' | '.join(cells)} |"


def _cell(model: dict, key: str, notes: "_Notes") -> str:
    cell = model["cells"][key]
    word = _STATES[cell["state"]]
    if key == "covered" and "multiplied" in model["shares"]:
        share = f"{100 * model['shares']['multiplied']:.0f} %"
        word = share if word == "yes" else f"{word} {share}"
    return f"{word} {notes.number(cell['text'], model)}" if cell["text"] else word


class _Notes:
    """Sentences with numbers, those alike under one."""

    def __init__(self):
        self._numbers: dict[str, int] = {}

    def number(self, text: str, model: dict) -> str:
        alike = general(text, model["kind"])
        return f"[{self._numbers.setdefault(alike, len(self._numbers) + 1)}]"

    def lines(self) -> list[str]:
        return [f"{number}. {text}" for text, number in self._numbers.items()]


def general(text: str, kind: str) -> str:
    """``text`` without what differs from model to model."""
    text = re.sub(rf"(this one is ){re.escape(kind)}\w*", r"\1TYPE", text)
    text = re.sub(r"(cannot hold )\w+(?=,)", r"\1LAYER", text)
    text = re.sub(
        r"(?<![\w/.])[a-z]\w*(\.\w+)+(?![\w:])", lambda m: m[0] if m[0].startswith(_NOT_LAYERS) else "LAYER", text
    )
    text = re.sub(r"LAYER(, LAYER)+( and \d+ more)?", "LAYER", text)
    text = re.sub(r"(?<![\w.\[-])\d+(\.\d+)?(e-?\d+)?(?![\w.]*\w)", "N", text)
    sentences = dict.fromkeys(re.split(r"(?<=\.) (?=\S)", text))
    return " ".join(sentences)


_NOT_LAYERS = ("torch.", "torchqat.", "transformers.", "qwen2.", "data.", "initialize.")


def faults(results: dict) -> str:
    """What ``expected_faults.txt`` has: a line a model, its name and the cells that are a fault."""
    lines = []
    for model in results["models"]:
        cells = ["built"] if model["built"] else [key for key in COLUMNS if model["cells"][key]["state"] == "fault"]
        if cells:
            lines.append(f"{model['name']}: {' '.join(cells)}")
    return "\n".join(lines) + "\n"


def _lines(results: dict) -> str:
    """As JSON, a line a model: what changed in one of them is a line of the difference."""
    models = ",\n".join(json.dumps(model, ensure_ascii=False) for model in results["models"])
    return f'{{"transformers": "{results["transformers"]}", "models": [\n{models}\n]}}\n'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", help="results of the sweep")
    parser.add_argument("--faults", action="store_true", help="also write what tests expect to fail")
    options = parser.parse_args()
    if options.folder:
        RESULTS.write_text(_lines(merged(options.folder)), encoding="utf-8")
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    PAGE.write_text(page(results), encoding="utf-8")
    if options.faults:
        kept = [line for line in FAULTS.read_text(encoding="utf-8").splitlines(keepends=True) if line.startswith("#")]
        FAULTS.write_text("".join(kept) + faults(results), encoding="utf-8")


if __name__ == "__main__":
    main()
