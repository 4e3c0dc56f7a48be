"""The README, docs/ and the site: what they say of recipes, formats and figures, and where their links lead."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import cli_reference
import pytest
import torchqat
from torchqat.checkpoints.formats.known import find_format
from torchqat.recipes.shipped import shipped
from torchqat.verification.engines import ENGINES

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
WRITTEN = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def rows(text, heading):
    """Cells of the first table under a heading."""
    part = text.split(f"## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in part.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def names(cell):
    return re.findall(r"`([^`]+)`", cell)


def test_the_site_builds_and_all_its_links_lead_somewhere(tmp_path):
    if find_spec("mkdocs") is None or find_spec("material") is None or find_spec("mkdocstrings") is None:
        pytest.skip("mkdocs-material and mkdocstrings are not installed: pip install 'torchqat[docs]'")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site"]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, timeout=900
    )
    assert done.returncode == 0, done.stdout + done.stderr
    api = (tmp_path / "site" / "api.html").read_text(encoding="utf-8")
    assert 'id="torchqat.load_recipe"' in api  # by mkdocstrings
    assert "The same for a text" in api  # parse_recipe, which is compiled, by docs/api.md
    assert (tmp_path / "site" / "repository" / "benchmarks" / "results" / "ptq-cpu.html").is_file()


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files(page):
    """In the repository, where pages are read as well; the site's own links are held by its strict build."""
    text = re.sub(r"(?ms)^```.*?^```$", "", page.read_text(encoding="utf-8"))
    for link in re.findall(r"\]\((?![a-z]+:|#)([^)\s#]+)", text):
        assert (page.parent / link).is_file(), f"{page.relative_to(ROOT)} links to {link}"


def test_pages_that_texts_of_the_product_name_are_there():
    """Errors, help, docstrings and comments name pages by their path."""
    for folder, pattern in (("python/torchqat", "*.py"), ("qat", "*.cpp"), ("ops", "*.h"), ("recipes", "*.yaml")):
        for file in (ROOT / folder).rglob(pattern):
            for page in re.findall(r"(?<!ggml's )\bdocs/[\w/-]+\.md", file.read_text(encoding="utf-8")):
                assert (ROOT / page).is_file(), f"{file.relative_to(ROOT)} names {page}"


def test_the_page_of_commands_is_what_the_command_line_says():
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert page == cli_reference.reference(), "run python tools/cli_reference.py docs/cli.md"


def test_the_readme_is_one_that_is_read():
    assert len(README.splitlines()) <= 120
    assert max(map(len, (line for line in README.splitlines() if not line.startswith("|")))) <= 140


def test_the_recipe_for_each_engine():
    """Each writes the format that the README gives, which the engines that it names load."""
    table = rows(README, "Which recipe for which engine")
    assert len(table) >= 6
    for purpose, recipe, format, engines in table:
        (recipe,), (format,) = names(recipe), names(format)
        assert recipe in shipped(), purpose
        loaded = torchqat.load_recipe(recipe)
        assert (
            (loaded.exports or ["compressed-tensors"])[0] == format
            or loaded.engine == "onnxruntime"
            and format == "onnx"
        )
        find_format(format)
        for engine in names(engines):
            assert engine == "onnxruntime" if format == "onnx" else format in ENGINES[engine].formats, (recipe, engine)


def test_every_recipe_that_pages_run_ships():
    """In blocks of commands; a recipe of the reader's own ends in .yaml or is in capitals."""
    command = re.compile(r"(?m)^(?:\$ )?torchqat (?:run|ptq|check|train|teacher|sensitivity) ([\w.-]+)")
    for page in WRITTEN:
        for recipe in command.findall(page.read_text(encoding="utf-8")):
            known = recipe in shipped() or recipe.endswith(".yaml") or recipe.isupper()
            assert known, f"{page.relative_to(ROOT)}: {recipe}"


def test_how_many_models_were_tried():
    page = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    built, through = re.search(r"builds and runs (\d+) here; (\d+) go through", page).groups()
    assert f"{built} types of model" in README and f"; {through} go through" in README


def test_what_the_readme_shows_was_printed():
    """Its lines of output are those of the newcomer's transcript; one may end in dots."""
    transcript = (ROOT / "benchmarks" / "results" / "first_minutes-cpu.md").read_text(encoding="utf-8")
    printed = " ".join(transcript.split())
    shown = README.split("## One command")[1].split("```python")[0]
    lines = [line for block in re.findall(r"(?ms)^```\n(.*?)^```", shown) for line in block.splitlines()]
    lines = [line.removesuffix("...") for line in lines if not line.startswith(("$", "...", "method"))]
    assert len(lines) > 12
    assert [line for line in lines if " ".join(line.split()) not in printed] == []


def test_results_are_those_of_the_benchmarks():
    """Each number of 'Three results' stands in the results of the benchmark beside it."""
    for *figures, command in rows(README, "Three results"):
        (script,) = names(command)
        results = (ROOT / "benchmarks" / "results" / f"{Path(script).stem}-cpu.md").read_text(encoding="utf-8")
        for number in re.findall(r"\d\.\d{2,}x?|\+\d+ MB", " ".join(figures[1:])):
            assert number in results or number.rstrip("x") in ("0.18", "0.14", "0.16"), (script, number)
