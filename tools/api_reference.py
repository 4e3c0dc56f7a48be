"""docs/api.md: what a user imports, from its docstrings.

    python tools/api_reference.py docs/api.md

A test holds the file against what this gives.
"""

import ast
import inspect
import re
import sys
import textwrap
from functools import cache
from operator import attrgetter
from pathlib import Path

import torchqat

# Title, what it is for, and its names in the order in which they are needed.
PARTS = [
    ("From a model to a checkpoint", torchqat, [
        "load_recipe", "parse_recipe", "make_plan", "prepare", "calibrate", "Schedule", "convert", "export", "live_weights",
        "verify", "evaluate",
    ]),
    ("A whole run", torchqat, ["run", "Report", "Variant"]),
    ("Running what was quantized", torchqat, ["pack", "load"]),
    ("Layers", torchqat, ["QuantLinear", "QuantConv2d", "QuantEmbedding", "PackedLinear"]),
    ("What trains", torchqat, ["parameter_groups", "freeze_codes", "attach_adapters"]),
    ("In other people's trainers", torchqat, ["TrainerCallback", "LightningCallback"]),
    ("Losses", torchqat, ["forward_kl", "losses.cross_entropy"]),
    ("Looking on", torchqat, ["monitor.Monitor"]),
    ("Which layers suffer", torchqat, ["sensitivity.sensitivity", "mixed_widths", "sensitivity.LayerSensitivity"]),
    ("The user's own task", torchqat, ["load_task", "tasks.Task"]),
    ("Large models", torchqat, ["quantize_folder"]),
    ("For llama.cpp's own tools", torchqat, ["imatrix"]),
    ("What comes back", torchqat, ["Evaluation", "Verification", "QuantizedWeights", "QuantSpec"]),
    ("Errors", torchqat, ["UserError", "RecipeError", "FileError"]),
    ("Operators", torchqat.ops, [n for n in torchqat.ops.__all__ if n != "Block"]),
]  # fmt: skip
_SECTIONS = ("Args", "Attributes", "Returns", "Raises")


def reference() -> str:
    """The whole page."""
    lines = [
        "# API reference",
        "",
        "Made from the docstrings by `tools/api_reference.py`. Equations are those of [numerics](numerics.md); recipes are",
        "explained in [recipes](recipe.md), commands in [commands](cli.md).",
    ]
    for title, module, names in PARTS:
        lines += ["", f"## {title}"]
        for name in names:
            lines += ["", *_entry(module, name)]
    return "\n".join(lines) + "\n"


def _entry(module, name: str) -> list[str]:
    found, leaf = attrgetter(name)(module), name.rpartition(".")[2]
    lines = [f"### `{module.__name__}.{name}`", ""]
    doc, signature = found.__doc__ or _stub_docstrings().get(leaf, ""), _signature(found)
    if doc.startswith(f"{leaf}("):  # pybind11 writes the signature into the docstring
        first, _, doc = doc.partition("\n")
        signature = re.sub(r"\b(?:torchqat\._C)\.", "", first.removeprefix(leaf))
    if signature:
        lines += ["```python", *_wrapped(leaf, signature), "```", ""]
    lines += _body(doc)
    if inspect.isclass(found):
        for method, member in sorted(vars(found).items()):
            if method[0] == "_" or not (inspect.isfunction(member) or isinstance(member, (property, classmethod))):
                continue
            text = inspect.getdoc(getattr(found, method)) or ""
            if text and "torchqat" in getattr(found, "__module__", ""):
                first = " ".join(text.split("\n\n")[0].split()).replace("``", "`")
                lines.append(f"- `.{method}{'' if isinstance(member, property) else '()'}`: {first}")
    while lines and not lines[-1]:
        lines.pop()
    return lines


@cache
def _stub_docstrings() -> dict[str, str]:
    """Of the C++ classes."""
    stub = Path(torchqat.__file__).with_name("_C.pyi").read_text(encoding="utf-8")
    classes = [node for node in ast.parse(stub).body if isinstance(node, ast.ClassDef)]
    return {node.name: ast.get_docstring(node) or "" for node in classes}


def _signature(found) -> str:
    try:
        text = str(inspect.signature(found))
    except (TypeError, ValueError):
        return ""
    text = re.sub(r"<function .*? at 0x[0-9a-f]+>|<[^<>]*object at 0x[0-9a-f]+>|<factory>", "...", text)
    # What names are called where they stand depends on versions of Python and torch; torch.dtype and the like stay.
    text = re.sub(r"\btorch(?:\.\w+)+\.(\w+)", r"\1", text)
    text = re.sub(r"\b(?:torchqat|collections|pathlib|typing)(?:\.\w+)*\.(\w+)", r"\1", text)
    return re.sub(r"'([A-Z]\w*(?: \| \w+)*)'", r"\1", text)


def _wrapped(name: str, signature: str) -> list[str]:
    line = name + signature
    if len(line) <= 110:
        return [line]
    inner, _, result = signature[1:].rpartition(")")
    parts, depth, part = [], 0, ""
    for letter in inner + ",":
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 0:
            parts.append(f"    {part.strip()},")
            part = ""
        else:
            part += letter
    return [f"{name}(", *parts, f"){result}"]


def _body(docstring: str) -> list[str]:
    """A docstring as Markdown: its sections as lists, the rest as it is."""
    lines, section = [], False
    for line in inspect.cleandoc(docstring).splitlines():
        head = line.strip().removesuffix(":")
        if line.endswith(":") and head in _SECTIONS and not line.startswith(" "):
            section = True
            lines += [f"**{head}**", ""]
        elif section and re.match(r" {4}\w[\w. ]*: ", line):
            name, _, text = line.strip().partition(": ")
            lines.append(f"- `{name}`: {text}")
        elif section and line.startswith("    "):
            lines.append("  " + line.strip() if line.startswith("        ") else line.strip())
        else:
            section = section and not line.strip()
            lines.append(line)
    text = "\n".join(lines).replace("``", "`")
    return textwrap.dedent(text).splitlines() + [""]


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(reference(), encoding="utf-8")
