"""Python in the README and in docs/: it compiles, names what is there, and the page of trainers runs as it stands."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torchqat

ROOT = Path(__file__).parents[2]
# docs/api.md has signatures, which test_api_reference.py holds.
PAGES = [page for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))) if page.name != "api.md"]


def blocks(page):
    return re.findall(r"(?ms)^```python\n(.*?)^```", page.read_text(encoding="utf-8"))


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=lambda page: str(page.relative_to(ROOT)))
def test_code_compiles_and_names_what_there_is(page):
    for text in blocks(page):
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "torchqat":
                assert hasattr(torchqat, node.attr), node.attr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_recipes_that_code_loads_are_there(page):
    for text in blocks(page):
        for call in re.findall(r"torchqat\.load_recipe\([^)]*\)", text):
            assert eval(call, {"torchqat": torchqat}).train.steps >= 0, call


def test_the_page_of_trainers_trains_resumes_and_exports(tmp_path, model_folder):
    """Twice: killed after its first checkpoint, and again in the same folder."""
    pytest.importorskip("trl")
    pytest.importorskip("datasets")
    (text,) = [text for text in blocks(ROOT / "docs" / "how-to" / "own-loop.md") if "SFTTrainer(" in text]
    for asked, here in (
        ('"MODEL"', f'"{model_folder}"'),
        ('load_recipe("int4")', 'load_recipe("int4", {"layers.0.weight.group_size": 32})'),
        ("max_steps=200, save_steps=50", "max_steps=6, save_steps=2, max_length=32"),
        ("trainer.train(", "from interrupted import killed_after\nkilled_after(trainer, KILLED)\ntrainer.train("),
    ):
        assert text.count(asked) >= 1
        text = text.replace(asked, here)
    (tmp_path / "interrupted.py").write_text(
        "import os, signal, transformers\n"
        "class Kills(transformers.TrainerCallback):\n"
        "    def __init__(self, step): self.step = step\n"
        "    def on_step_end(self, args, state, control, **kwargs):\n"
        "        if state.global_step == self.step: os.kill(os.getpid(), signal.SIGKILL)\n"
        "def killed_after(trainer, step):\n"
        "    if step: trainer.add_callback(Kills(step))\n"
    )
    rows = [{"prompt": f"def f{i}(x):\n", "completion": f"    return x + {i}\n"} for i in range(70)]

    def run(folder, killed):
        folder.mkdir(exist_ok=True)
        (folder / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        program = folder / "train.py"
        program.write_text(text.replace("KILLED", str(killed)))
        environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT / 'python'}", "HF_HOME": str(tmp_path / "hub")}
        return subprocess.run(
            [sys.executable, program], cwd=folder, env=environment, capture_output=True, text=True, timeout=600
        )

    killed = run(tmp_path / "killed", 3)
    assert killed.returncode == -9, killed.stderr
    resumed, whole = run(tmp_path / "killed", 0), run(tmp_path / "whole", 0)
    assert resumed.returncode == whole.returncode == 0, resumed.stderr + whole.stderr
    assert "equal bit for bit" in resumed.stdout
    files = [tmp_path / name / "out" / "model.safetensors" for name in ("killed", "whole")]
    assert files[0].read_bytes() == files[1].read_bytes()
