"""The user's task: each form scored as a slow reading of its definition does."""

import json
import math

import pytest
import torch
import torchqat
from sentences import matches
from torchqat.data.tasks import Task, load_task


def write(path, *examples):
    path.write_text("".join(json.dumps(example) + "\n" for example in examples))
    return path


@pytest.fixture
def learned(tiny_llama, tokenizer):
    """A model that has learned one line by heart."""
    tokens = torch.tensor([tokenizer("def function_7(argument):\n    return argument + 7\n").input_ids])
    optimizer = torch.optim.AdamW(tiny_llama.parameters(), 3e-3)
    for _ in range(60):
        tiny_llama(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return tiny_llama.eval()


def test_exact_is_what_greedy_decoding_writes(learned, tokenizer, tmp_path):
    prompt, right = "def function_7(argument):", "\n    return argument + 7\n"
    path = write(
        tmp_path / "task.jsonl",
        {"prompt": prompt, "expected": right},
        {"prompt": prompt, "expected": "\n    return argument + 8\n"},
        {"prompt": prompt, "expected": "\n    return"},
    )
    assert load_task(str(path)).scores(learned, tokenizer) == [1.0, 0.0, 1.0]
    ids = torch.tensor([tokenizer(prompt).input_ids])
    written = learned.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)
    assert tokenizer.decode(written[0, ids.shape[1] :]).startswith(right)


def test_choices_are_ranked_by_likelihood_per_byte(learned, tokenizer, tmp_path):
    prompt = "def function_7(argument):"
    choices = ["\n    pass\n", "\n    return argument + 7\n", "\n    return argument + 9\n"]
    path = write(
        tmp_path / "task.jsonl",
        {"prompt": prompt, "choices": choices, "answer": 1},
        {"prompt": prompt, "choices": choices, "answer": 0},
    )
    assert load_task(str(path)).scores(learned, tokenizer) == [1.0, 0.0]

    def per_byte(choice):  # one token at a time
        before, total = tokenizer(prompt).input_ids, 0.0
        for token in tokenizer(prompt + choice).input_ids[len(before) :]:
            with torch.no_grad():
                log = torch.log_softmax(learned(input_ids=torch.tensor([before])).logits[0, -1].double(), -1)
            total, before = total + log[token].item(), [*before, token]
        return total / len(choice.encode())

    likelihoods = [per_byte(choice) for choice in choices]
    assert likelihoods.index(max(likelihoods)) == 1


def test_labels_are_a_classifiers(tokenizer, tmp_path):
    from transformers import LlamaConfig, LlamaForSequenceClassification

    config = LlamaConfig(
        vocab_size=400, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2
    )
    config.num_labels, config.pad_token_id = 3, 0
    torch.manual_seed(0)
    model = LlamaForSequenceClassification(config).eval()
    texts = ["def function", "return argument", "'''Adds"]
    with torch.no_grad():
        labels = [model(input_ids=torch.tensor([tokenizer(text).input_ids])).logits.argmax().item() for text in texts]
    examples = [{"text": text, "label": label} for text, label in zip(texts, labels, strict=True)]
    examples.append({"text": texts[0], "label": (labels[0] + 1) % 3})
    path = write(tmp_path / "task.jsonl", *examples)
    assert load_task(str(path)).scores(model, tokenizer) == [1.0, 1.0, 1.0, 0.0]
    for label in (3, -1):  # of which no answer is right, as where labels count from 1
        path = write(tmp_path / "other.jsonl", {"text": texts[0], "label": label})
        with pytest.raises(torchqat.UserError, match=matches("tasks.label-of-no-class", count=3, last=2, label=label)):
            load_task(str(path)).scores(model, tokenizer)


def test_a_language_model_is_no_classifier(tiny_llama, tokenizer, tmp_path):
    path = write(tmp_path / "task.jsonl", {"text": "def", "label": 0})
    with pytest.raises(torchqat.UserError, match=matches("tasks.needs-classifier")):
        load_task(str(path)).scores(tiny_llama, tokenizer)


def test_a_function_of_the_users(tiny_llama, tokenizer, tmp_path, monkeypatch):
    (tmp_path / "my_task.py").write_text(
        "def score(model, tokenizer):\n    assert not model.training\n    return [1, 0, True]\n"
    )
    monkeypatch.chdir(tmp_path)
    tiny_llama.train()
    assert load_task("my_task:score").scores(tiny_llama, tokenizer) == [1.0, 0.0, 1.0]
    assert tiny_llama.training


@pytest.mark.parametrize(
    "line",
    [
        "not json",
        '{"prompt": "a"}',
        '{"prompt": "a", "expected": ""}',
        '{"prompt": "a", "choices": ["b"], "answer": 0}',
        '{"prompt": "a", "choices": ["b", "c"], "answer": 2}',
        '{"text": "a", "label": "good"}',
        "[1]",
    ],
)
def test_a_line_of_another_form_is_named(line, tmp_path):
    path = tmp_path / "task.jsonl"
    path.write_text('{"prompt": "a", "expected": "b"}\n\n' + line + "\n")
    with pytest.raises(torchqat.UserError, match=matches("tasks.bad-line", file=path, line=3)):
        load_task(str(path))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("missing.jsonl", matches("tasks.file-not-readable", file="missing.jsonl")),
        ("nowhere", matches("tasks.nowhere", source="nowhere")),
        ("no_such_module:f", matches("data.function-not-found", source="no_such_module:f")),
        ("json:no_such_function", matches("data.function-not-found", source="json:no_such_function")),
    ],
)
def test_a_task_that_is_none_is_refused(source, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(torchqat.UserError, match=message):
        load_task(source)


def test_a_line_ends_where_json_says(tmp_path):
    lines = [{"prompt": "a\u2028b\x85", "expected": "c"}, {"prompt": "d", "expected": "e"}]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\r\n" for line in lines)
    (tmp_path / "task.jsonl").write_bytes(text.encode())
    assert list(load_task(str(tmp_path / "task.jsonl")).examples) == lines


def test_an_empty_file_is_refused(tmp_path):
    (tmp_path / "task.jsonl").write_text("\n")
    with pytest.raises(torchqat.UserError, match=matches("tasks.no-example", file=tmp_path / "task.jsonl")):
        load_task(str(tmp_path / "task.jsonl"))


@pytest.mark.parametrize(
    ("returned", "message"),
    [(None, matches("tasks.no-numbers")), ([], matches("tasks.no-scores")), (["a"], matches("tasks.no-numbers"))],
)
def test_a_function_that_gives_no_scores(returned, message, tiny_llama):
    with pytest.raises(torchqat.UserError, match=message):
        Task("mine", function=lambda model, tokenizer: returned).scores(tiny_llama, None)


@pytest.mark.parametrize("score", [math.nan, math.inf])
def test_a_score_that_is_no_number_is_refused(score, tiny_llama):
    task = Task("mine", function=lambda model, tokenizer: torch.tensor([1.0, score, 0.0]))
    with pytest.raises(
        torchqat.UserError, match=matches("tasks.no-finite-number", task="mine", index=1, score=score, count=1, of=3)
    ):
        task.scores(tiny_llama, None)


def test_a_model_of_no_numbers_answers_nothing_right(tiny_llama, tokenizer, tmp_path):
    """NaN is the largest for torch, and so the first answer."""
    tiny_llama.model.norm.weight.data.fill_(math.nan)
    example = {"prompt": "def", "choices": ["\n    pass\n", "\n    return 7\n"], "answer": 0}
    path = write(tmp_path / "task.jsonl", example)
    assert load_task(str(path)).scores(tiny_llama, tokenizer) == [0.0]


def test_a_ranking_of_no_numbers_is_not_right(tiny_llama, tokenizer, tmp_path):
    path = write(tmp_path / "task.jsonl", {"query": "a", "passages": ["b", "c"], "answer": 0})
    ranks = [torch.tensor([2.0, 1.0]), torch.tensor([math.nan, math.nan])]
    found = [load_task(str(path)).scores(tiny_llama, tokenizer, lambda *_, r=r: r) for r in ranks]
    assert found == [[1.0], [0.0]]
