"""Tasks of lm-evaluation-harness, and our own scores beside its."""

import json

import pytest
import torch
import torchqat
from sentences import matches
from torchqat.data.tasks import load_task

TASK = """task: guess
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{prompt}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
target_delimiter: ""
metric_list:
  - metric: acc
  - metric: acc_norm
"""


@pytest.fixture
def lines():
    generator = torch.Generator().manual_seed(0)
    words = ["return argument", "def function", "xyz", "(argument):\n    pass", "import", "+ 3\n\n\n"]
    found = []
    for i in range(24):
        choices = [words[k] for k in torch.randperm(6, generator=generator)[:3].tolist()]
        found.append({"prompt": f"def function_{i}", "choices": choices, "answer": i % 3})
    return found


@pytest.fixture
def files(tmp_path, lines, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "lines.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "guess.yaml").write_text(TASK.format(file=tmp_path / "lines.jsonl"))
    return tmp_path


def test_our_scores_are_its(files, tiny_llama, tokenizer):
    """``acc_norm`` of the same examples, by lm-eval and by a jsonl file."""
    theirs = load_task(f"lm-eval:{files / 'guess.yaml'}").scores(tiny_llama, tokenizer)
    ours = load_task(str(files / "lines.jsonl")).scores(tiny_llama, tokenizer)
    assert theirs == ours and len(ours) == 24 and 0 < sum(ours) < 24


def test_a_task_that_is_none_is_said(files):
    (files / "other.yaml").write_text("dataset_path: json\n")
    with pytest.raises(torchqat.UserError, match=matches("tasks.lm-eval-unknown")):
        load_task(f"lm-eval:{files / 'other.yaml'}")
    with pytest.raises(torchqat.UserError, match=matches("tasks.lm-eval-file-not-readable")):
        load_task(f"lm-eval:{files / 'missing.yaml'}")


def test_data_that_cannot_be_fetched_are_said(files, tiny_llama, tokenizer):
    (files / "guess.yaml").write_text(TASK.format(file=files / "missing.jsonl"))
    with pytest.raises(torchqat.UserError, match=matches("tasks.lm-eval-failed", task="guess")):
        load_task(f"lm-eval:{files / 'guess.yaml'}").scores(tiny_llama, tokenizer)


def test_without_lm_eval_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "lm_eval.tasks", None)
    with pytest.raises(torchqat.UserError, match=matches("tasks.lm-eval-missing", task="hellaswag")):
        load_task("lm-eval:hellaswag")
