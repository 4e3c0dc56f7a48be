"""docs/trainers.md says what the tests show, and no more."""

import os
import subprocess
import sys
from pathlib import Path

import trainer_table

ROOT = Path(__file__).parents[2]


def test_the_page_is_what_the_tests_show():
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "trainer_table.py"],
        capture_output=True, text=True, cwd=ROOT, env={**os.environ}, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    page = (ROOT / "docs" / "trainers.md").read_text(encoding="utf-8")
    marked = done.stdout[done.stdout.index("<!-- generated") :].strip()
    assert marked in page, "run python tools/trainer_table.py docs/trainers.md"


def test_what_one_test_shows_for_several_trainers():
    cells = {("own loop", "resumed"): False, ("Lightning", "resumed"): True, ("peft", "DoRA"): True}
    lines = trainer_table.tables(cells).splitlines()
    assert lines[2].split(" | ")[0] == "| resumed" and lines[2].count("yes") == lines[2].count("refused") == 1
    assert lines[-1] == "| peft | DoRA | refused |"
