"""docs/api.md: made from the docstrings, and of everything that users import."""

import importlib.util
import inspect
import re
import sys
from operator import attrgetter
from pathlib import Path

import pytest
import torchqat

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("api_reference", ROOT / "tools" / "api_reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_what_the_docstrings_say(tool):
    """Signatures are left out: how Python writes them differs between its versions."""

    def prose(text):
        parts = text.split("```")
        return "".join(parts[::2])

    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    assert prose(page) == prose(tool.reference()), "run python tools/api_reference.py docs/api.md"
    if sys.version_info[:2] == (3, 11):
        assert page == tool.reference()


def test_nothing_public_is_left_out(tool):
    shown = {name for _, module, names in tool.PARTS if module is torchqat for name in names if "." not in name}
    assert set(torchqat.__all__) - {"ops"} == shown


def test_all_of_it_is_documented(tool):
    for _, module, names in tool.PARTS:
        for name in names:
            lines = [line for line in tool._entry(module, name) if line and not line.startswith(("#", "`"))]
            assert lines, f"{name} has no docstring"


def test_every_argument_and_method_is_explained(tool):
    """Of functions each argument, by its name; of classes each method of their own. Layers say so of themselves."""
    for _, module, names in tool.PARTS:
        for name in names:
            found = attrgetter(name)(module)
            if inspect.isclass(found):
                methods = {n: m for n, m in vars(found).items() if n[0] != "_" and inspect.isfunction(m)}
                unsaid = [n for n in methods if not inspect.getdoc(getattr(found, n))]
            else:
                try:
                    arguments = inspect.signature(found).parameters
                except ValueError:  # of C++, whose docstring begins with it
                    continue
                unsaid = [a for a in arguments if not re.search(rf"\b{a}\b", inspect.getdoc(found) or "")]
            assert not unsaid, f"{name} says nothing of {', '.join(unsaid)}"
