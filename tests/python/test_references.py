"""What pages and comments point to is there: tests and names by their names, files by their paths, equations by numbers."""

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
NUMERICS = ROOT / "docs" / "numerics.md"
SOURCES = {".cpp", ".h", ".cu", ".cuh", ".py", ".yaml"}


def _python_tests():
    texts = [file.read_text(encoding="utf-8") for file in TESTS.rglob("*.py")]
    return {name for text in texts for name in re.findall(r"(?m)^\s*def (test_\w+)", text)}


def _cpp_tests():
    texts = [file.read_text(encoding="utf-8") for file in TESTS.rglob("*.cpp")]
    return {pair for text in texts for pair in re.findall(r"(?m)^(?:TYPED_)?TEST(?:_[FP])?\((\w+), (\w+)\)", text)}


def _missing(page, python, cpp, files):
    """What is named in backticks and is nowhere; `…` ends a name that is cut short."""
    suites = {suite for suite, _ in cpp}
    for words in re.findall(r"`([^`\n]+)`", page.read_text(encoding="utf-8")):
        for name, end in re.findall(r"(?<![\w/])(test_\w+)(…|\.py|\.cpp)?", words):
            there = name + end in files if end[:1] == "." else name in python
            if not there and not (end == "…" and any(known.startswith(name) for known in python)):
                yield name + end
        for suite, test in re.findall(r"^([A-Z]\w+)\.(\*|[A-Z]\w+)$", words):
            if (suite, test) not in cpp and not (test == "*" and suite in suites):
                yield f"{suite}.{test}"
        for path in re.findall(r"^(?:tests|python|ops|qat|tools|benchmarks|examples|recipes)/[\w/.-]+\.\w+$", words):
            if not (ROOT / path).is_file():
                yield path


@pytest.fixture(scope="module")
def known():
    return _python_tests(), _cpp_tests(), {file.name for file in TESTS.rglob("test_*")}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_tests_and_files_that_pages_name_are_there(page, known):
    missing = set(_missing(page, *known))
    assert not missing, f"{page.relative_to(ROOT)} names {sorted(missing)}"


def test_numerics_names_tests_of_both_languages(known):
    """So the test above looks at something."""
    page = NUMERICS.read_text(encoding="utf-8")
    python, cpp, _ = known
    assert sum(f"`{name}`" in page for name in python) > 10
    assert sum(f"`{suite}.{name}`" in page for suite, name in cpp) + page.count(".*`") > 2


def test_equations_that_texts_name_are_numbered_in_numerics():
    """Those that comments, docstrings and pages name beside the page, and the page's own."""
    text = NUMERICS.read_text(encoding="utf-8")
    numbered = set(re.findall(r"(?m)^\s*\((\d+[a-z]?)\)", text))
    named = {(NUMERICS, number) for number in re.findall(r"\((\d+[a-z]?)\)", text)}
    for folder in ("ops", "qat", "python", "tests", "benchmarks", "recipes"):
        for file in (ROOT / folder).rglob("*"):
            if file.suffix in SOURCES:
                source = file.read_text(encoding="utf-8")
                for numbers in re.findall(r"numerics(?:\.md)?,? \(([\d a-z,]+)\)", source):
                    named |= {(file, number) for number in re.findall(r"\d+[a-z]?", numbers)}
    assert len(named) > 80
    assert not {(file.name, number) for file, number in named if number not in numbered}


def _resolves(name):
    """Whether a dotted name leads to a module or to what one has."""
    found, path = importlib.import_module("torchqat"), "torchqat"
    for part in name.split(".")[1:]:
        path += f".{part}"
        try:
            found = getattr(found, part) if hasattr(found, part) else importlib.import_module(path)
        except ImportError:
            return False
    return True


def test_names_of_the_package_that_its_texts_use_are_there():
    """In docstrings, sentences and comments, as users would type them."""
    texts = [file.read_text(encoding="utf-8") for file in (ROOT / "python" / "torchqat").rglob("*.py")]
    names = {name for text in texts for name in re.findall(r"\btorchqat(?:\.[A-Za-z_]\w*)+", text)}
    assert len(names) > 100
    assert not sorted(name for name in names if not _resolves(name))
