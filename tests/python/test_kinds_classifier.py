"""Classifiers of words and of pairs, and models of one output, whose distance is not 0 by construction."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchqat
import transformers
from command import call
from conftest import BERT
from sentences import matches, said
from torch import nn
from torchqat._library import DistillSection
from torchqat.data.labelled import labelled_texts, labelled_words
from torchqat.data.tasks import load_task
from torchqat.evaluation.sensitivity import sensitivity
from torchqat.kinds import find_kind
from torchqat.model.prepare import make_plan

RUN = """version: 1
layers:
  - match: blocks
    weight: {dtype: int4, group_size: 32, grid: full, scale: learned}
data: {calibration: {samples: 8, sequence_length: 32}, evaluation: {samples: 16, sequence_length: 32}}
train: {steps: 4, batch_size: 4, sequence_length: 32, checkpoint_every: 2, validate_every: 2}
model: {kind: classifier}
"""


def saved(folder, model, tokenizer=None):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def reranker(tmp_path, tokenizer):
    config = transformers.BertConfig(**BERT, num_labels=1)
    return saved(tmp_path / "reranker", transformers.BertForSequenceClassification(config), tokenizer)


@pytest.fixture
def tagger(tmp_path, tokenizer):
    config = transformers.BertConfig(**BERT, num_labels=3)
    return saved(tmp_path / "tagger", transformers.BertForTokenClassification(config), tokenizer)


def written(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def pairs(tmp_path):
    lines = [
        {"text": f"def function_{i}", "text_pair": f"return argument + {i}{i}", "label": i % 3 / 2} for i in range(80)
    ]
    return written(tmp_path / "pairs.jsonl", lines)


@pytest.fixture
def words(tmp_path):
    lines = [{"tokens": ["def", f"function_{i}", "return"], "labels": [0, 1, i % 3]} for i in range(80)]
    return written(tmp_path / "words.jsonl", lines)


def run(capsys, tmp_path, text, *arguments, expects=0):
    (tmp_path / "recipe.yaml").write_text(text)
    code, out, err = call(capsys, "run", tmp_path / "recipe.yaml", "--output", tmp_path / "run", *arguments)
    assert code == expects, err
    report = tmp_path / "run" / "report.json"
    return json.loads(report.read_text()) if report.is_file() else None, out + err


# -- one output -------------------------------------------------------------------------------------------------------


def test_one_output_is_measured_by_squared_errors_over_twice_the_variance():
    torch.manual_seed(0)
    model, other = nn.Linear(8, 1), nn.Linear(8, 1)
    x, y = torch.randn(50, 8), torch.rand(50)
    found = torchqat.evaluate(model, [(x[:30], y[:30]), (x[30:], y[30:])], other, kind="classifier")
    ours, theirs = (m(x).detach().double().numpy()[:, 0] for m in (model, other))
    expected = (ours - theirs) ** 2 / (2 * np.var(theirs))
    assert found.kls == pytest.approx(expected.tolist(), rel=1e-4) and found.kl == pytest.approx(
        expected.mean(), rel=1e-4
    )
    assert found.perplexity is None and found.tokens == 50 and sum(found.kl_shares) == pytest.approx(1.0)
    pairs = [(i, j) for i in range(50) for j in range(i)]
    alike = np.mean([(ours[i] > ours[j]) == (theirs[i] > theirs[j]) for i, j in pairs])
    assert found.top1_agreement == pytest.approx(alike)
    with torch.no_grad():  # in another unit it is the same
        for parameter in (*model.parameters(), *other.parameters()):
            parameter.mul_(100.0)
    assert torchqat.evaluate(model, [(x, y)], other, kind="classifier").kl == pytest.approx(found.kl, rel=1e-4)
    assert torchqat.evaluate(other, [(x, y)], other, kind="classifier").kl == 0.0


def test_a_bad_quantization_of_a_reranker_shows(reranker, tokenizer, pairs):
    kind = find_kind("classifier")
    model = kind.load(str(reranker), "float32")
    examples = labelled_texts(pairs, tokenizer, 32, 1)
    batches = examples.batches(torch.arange(80), 16)
    kls = []
    for bits in (8, 4, 2):
        recipe = torchqat.parse_recipe(f"version: 1\nlayers: [{{match: blocks, weight: {{dtype: int{bits}}}}}]\n", "r")
        quantized = torchqat.prepare(kind.load(str(reranker), "float32"), recipe)
        kls.append(torchqat.evaluate(quantized, batches, model, kind).kl)
    assert 0 < kls[0] < 0.01 < kls[2] and kls[0] < kls[1] < kls[2]
    measured = sensitivity(model, make_plan(model, recipe), batches, (2, 8), kind)
    assert len(measured) == 12 and all(0 < layer.kl[8] < layer.kl[2] for layer in measured)


def test_what_says_the_same_of_everything_cannot_be_measured_so():
    x = torch.ones(5, 8)
    message = matches("evaluate.no-spread", count=5)
    with pytest.raises(torchqat.UserError, match=message):
        torchqat.evaluate(nn.Linear(8, 1), [(x, torch.ones(5))], nn.Linear(8, 1), kind="classifier")


def test_losses_of_one_output():
    settings, kind = DistillSection(), find_kind("classifier")
    student, teacher, labels = torch.randn(5, 1), torch.randn(5, 1), torch.rand(5)
    batch = (torch.zeros(5, 2), labels)
    half = (student - teacher).square().mean() / 2
    torch.testing.assert_close(kind.loss(settings, student, teacher, batch), half)
    settings.temperature = 3.0
    torch.testing.assert_close(kind.loss(settings, student, teacher, batch), half)
    settings.weight = 0.25
    mixed = 0.25 * half + 0.75 * F.mse_loss(student[:, 0], labels)
    torch.testing.assert_close(kind.loss(settings, student, teacher, batch), mixed)


def test_a_reranker_from_data_to_export(capsys, tmp_path, reranker, pairs):
    text = RUN + "evaluate: {accept: {task_drop: 0.5, kl: 10.0}, compare: [int4]}\n"
    report, out = run(capsys, tmp_path, text, "--model", reranker, "--data", pairs)
    naive, trained = report["variants"]
    assert report["accepted"] and report["baseline"]["perplexity"] is None
    assert naive["kl"] > 0 and trained["kl"] > 0 and 0 < report["baseline"]["task"] < 1
    assert said(out, "verify.equal", layers=12)
    served = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "run" / "exports" / "compressed-tensors",
        quantization_config=transformers.CompressedTensorsConfig(dequantize=True),
    )
    assert served.config.num_labels == 1


def test_one_output_has_no_perplexity_to_be_held_to(capsys, tmp_path, reranker, pairs):
    text = RUN + "evaluate: {accept: {perplexity_ratio: 1.1}}\n"
    _, out = run(capsys, tmp_path, text, "--model", reranker, "--data", pairs, expects=2)
    assert said(out, "evaluate.no-perplexity", path=reranker)


def test_models_are_told_which_of_two_texts_a_token_is_of(reranker, tokenizer, pairs):
    tokenizer = transformers.AutoTokenizer.from_pretrained(reranker)
    expected = tokenizer(["def function_0"], ["return argument + 00"], return_tensors="pt")
    batch = labelled_texts(pairs, tokenizer, 32, 1).batch(torch.tensor([0]))
    assert torch.equal(batch["input_ids"], expected["input_ids"])
    if "token_type_ids" in expected:
        assert torch.equal(batch["token_type_ids"], expected["token_type_ids"])


class _Pairs:
    """A tokenizer that tells two texts apart, a token a letter."""

    pad_token_id = 0

    def __call__(self, texts, pairs=None, **_):
        pairs = pairs or [""] * len(texts)
        ids = [[ord(letter) for letter in a + b] for a, b in zip(texts, pairs, strict=True)]
        types = [[0] * len(a) + [1] * len(b) for a, b in zip(texts, pairs, strict=True)]
        return {"input_ids": ids, "token_type_ids": types}


def test_token_types_go_with_their_tokens(pairs):
    examples = labelled_texts(pairs, _Pairs(), 32, 1).part(torch.tensor([5, 17]))
    batch = examples.batch(torch.tensor([1, 0]))
    types = batch["token_type_ids"]
    assert types.shape == batch["input_ids"].shape and types[0].sum() == len("return argument + 1717")
    assert (types[1][batch["attention_mask"][1] == 0] == 0).all() and torch.equal(
        batch["labels"], torch.tensor([1.0, 1.0])
    )


def test_a_reranker_is_judged_on_queries_and_passages(reranker, tokenizer, tmp_path):
    kind = find_kind("classifier")
    model = kind.load(str(reranker), "float32")
    query, passages = "def function_1", ["return argument", "Adds 1", "to the argument"]
    scores = [model(**tokenizer(query, text, return_tensors="pt")).logits.item() for text in passages]
    torch.testing.assert_close(kind.rank(model, tokenizer, query, passages), torch.tensor(scores))
    best = int(np.argmax(scores))
    lines = [{"query": query, "passages": passages, "answer": answer} for answer in (best, (best + 1) % 3)]
    task = load_task(str(written(tmp_path / "task.jsonl", lines)))
    assert task.scores(model, tokenizer, kind.rank) == [1.0, 0.0]
    labels = load_task(str(written(tmp_path / "labels.jsonl", [{"text": "a", "label": 0}])))
    with pytest.raises(torchqat.UserError, match=matches("tasks.label-of-one-output")):
        labels.scores(model, tokenizer, kind.rank)


def test_examples_are_ordered_right_or_not():
    data = type("Data", (), {"evaluation": [(torch.tensor([[1.0], [3.0], [2.0]]), torch.tensor([0.0, 1.0, 1.0]))]})
    kind = find_kind("classifier")
    assert kind.own_task(data).scores(_One(), None) == [1.0, 1.0, 1.0]
    data.evaluation[0][1][0] = 1.0
    with pytest.raises(torchqat.UserError, match=matches("evaluate.labels-alike")):
        kind.own_task(data).scores(_One(), None)


class _One(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x):
        return x * self.weight


# -- words ------------------------------------------------------------------------------------------------------------


def test_words_are_measured_where_they_have_labels(tagger, tokenizer, words):
    kind = find_kind("classifier")
    model = kind.load(str(tagger), "float32")
    assert type(model) is transformers.BertForTokenClassification
    other = transformers.BertForTokenClassification(transformers.BertConfig(**BERT, num_labels=3)).eval()
    examples = labelled_words(words, tokenizer, 32, 3)
    found = torchqat.evaluate(model, examples.batches(torch.arange(20), 8), other, kind)
    kls, right = [], []
    for place in range(20):
        ids, labels = examples.inputs[place][None], examples.labels[place]
        p, q = (m(input_ids=ids).logits[0].double() for m in (other, model))
        kl = (p.softmax(-1) * (p.log_softmax(-1) - q.log_softmax(-1))).sum(-1)
        kls += kl[labels != -100].tolist()
        right += (q.argmax(-1) == labels)[labels != -100].double().tolist()
    assert found.tokens == len(kls) == 60 and found.kls == pytest.approx(kls, rel=1e-4, abs=1e-7)
    data = type("Data", (), {"evaluation": examples.batches(torch.arange(20), 8)})
    assert kind.own_task(data).scores(model, tokenizer) == right


def test_a_label_goes_with_the_first_token_of_its_word(words, tokenizer):
    examples = labelled_words(words, tokenizer, 32, 3)
    coded = tokenizer(["def", "function_4", "return"], is_split_into_words=True)
    of = coded.word_ids()
    first = [word is not None and word not in of[:place] for place, word in enumerate(of)]
    assert len(of) > 3 and examples.inputs[4].tolist() == coded["input_ids"]
    assert examples.labels[4].tolist() == [
        [0, 1, 1][w] if begins else -100 for w, begins in zip(of, first, strict=True)
    ]


def test_a_classifier_of_words_from_data_to_export(capsys, tmp_path, tagger, words):
    text = RUN + "evaluate: {accept: {task_drop: 0.9}}\n"
    report, out = run(capsys, tmp_path, text, "--model", tagger, "--data", words)
    assert report["accepted"] and report["variants"][0]["kl"] > 0 and said(out, "verify.outputs", engine="transformers")
    assert len(report["baseline"]["task_scores"]) == report["baseline"]["tokens"] == 12  # 3 words of each of 4 held out


def test_lines_and_labels_of_another_form_are_named(
    capsys, tmp_path, tagger, classifier_folder, reranker, pairs, words
):
    def refused(model, data):
        return run(capsys, tmp_path, RUN, "--model", model, "--data", data, expects=2)[1]

    few = written(tmp_path / "few.jsonl", [{"tokens": ["a", "b"], "labels": [0]}])
    assert said(refused(tagger, few), "data.line-without-words", file=few, line=1)
    assert said(refused(tagger, pairs), "data.line-without-words", file=pairs, line=1)
    many = written(tmp_path / "many.jsonl", [{"tokens": ["a", "b"], "labels": [0, 3]}])
    assert said(refused(tagger, many), "data.no-such-class", file=many, classes=3, label=3)
    many = written(tmp_path / "many.jsonl", [{"text": "a", "label": 7}])
    assert said(refused(classifier_folder, many), "data.no-such-class", file=many, classes=3, label=7)
    mixed = written(tmp_path / "mixed.jsonl", [{"text": "a", "label": 1}, {"text": "a", "text_pair": "b", "label": 1}])
    assert said(refused(classifier_folder, mixed), "data.pair-in-some", file=mixed)
    none = written(tmp_path / "none.jsonl", [{"text": "a", "label": "good"}])
    assert said(refused(reranker, none), "data.line-without-number", file=none, line=1)


def test_a_tokenizer_that_knows_no_words_is_refused(words):
    with pytest.raises(torchqat.UserError, match=matches("data.no-words", tokenizer="_Pairs")):
        labelled_words(words, _Pairs(), 32, 3)
