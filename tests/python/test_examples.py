"""The programs of examples/python, run as users run them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from sentences import said

EXAMPLES = Path(__file__).parents[2] / "examples" / "python"


def run(folder, *arguments):
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.shows(trainer="own loop", feature="an example, exported and verified")
def test_a_loop_of_ones_own(tmp_path):
    out = run(tmp_path, EXAMPLES / "own_loop.py")
    accuracy = {name: float(value) for name, value in re.findall(r"^(\S.*?)\s+([\d.]+)%$", out, re.MULTILINE)}
    assert accuracy["2 bits, rounded"] + 5 < accuracy["2 bits, trained"] > accuracy["float"] - 5
    assert said(out, "verify.equal", layers=4)


@pytest.mark.shows(trainer="Accelerate", feature="an example, exported and verified")
def test_accelerate(tmp_path):
    out = run(tmp_path, EXAMPLES / "accelerate_loop.py", "--steps", 40)
    assert said(out, "verify.equal", layers=14)
    assert float(re.search(r"KL to full precision: ([\d.]+)", out)[1]) < 0.05


@pytest.mark.shows(trainer="Accelerate", feature="several processes (DDP)")
def test_accelerate_on_two_processes(tmp_path):
    launch = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", 2, "--num_machines", 1]
    out = run(tmp_path, *launch, EXAMPLES / "accelerate_loop.py", "--steps", 6)
    assert out.count("KL to full precision") == 1 and said(out, "verify.equal", layers=14)


@pytest.mark.shows(feature="an example, exported and verified")
@pytest.mark.parametrize(
    ("name", "steps"),
    [
        pytest.param("sft", 60, marks=pytest.mark.shows(trainer="TRL's SFT")),
        pytest.param("dpo", 60, marks=pytest.mark.shows(trainer="TRL's DPO")),
        pytest.param("grpo", 25, marks=pytest.mark.shows(trainer="TRL's GRPO")),
    ],
)
def test_trl(name, steps, tmp_path):
    out = run(tmp_path, EXAMPLES / f"trl_{name}.py", "--steps", steps)
    right = {which: float(value) for which, value in re.findall(r"^(\w+) +([\d.]+)% of the sums", out, re.MULTILINE)}
    assert right["float"] == 100 and right["rounded"] < 90
    assert right["trained"] > right["rounded"] + 5
    assert said(out, "verify.equal", layers=14)
    bits = [int(float(value)) for value in re.findall(r"'qat/weight_bits': '?([\d.]+)", out)]
    assert bits[-1] == 2
