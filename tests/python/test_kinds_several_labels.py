"""Classifiers of texts to which several classes may apply."""

import pytest
import torch
import torch.nn.functional as F
import torchqat
import transformers
from command import call
from conftest import BERT
from sentences import said
from test_kinds_classifier import RUN, run, saved, written
from torch import nn
from torchqat._library import DistillSection
from torchqat.kinds import find_kind


def test_classes_that_may_all_apply_are_choices_of_their_own():
    """A softmax over all would not see that every logit has grown alike."""
    torch.manual_seed(0)
    model, other, kind = nn.Linear(8, 3), nn.Linear(8, 3), find_kind("classifier")
    x, y = torch.randn(20, 8), torch.randint(2, (20, 3)).float()
    found = torchqat.evaluate(model, [(x, y)], other, kind)
    p, q = other(x).double().sigmoid(), model(x).double().sigmoid()
    kl = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
    assert found.kl == pytest.approx(kl.mean().item(), rel=1e-4) and found.tokens == 60
    assert found.perplexity == pytest.approx(F.binary_cross_entropy_with_logits(model(x), y).exp().item(), rel=1e-5)
    assert found.top1_agreement == pytest.approx(((p > 0.5) == (q > 0.5)).double().mean().item())
    settings = DistillSection()
    torch.testing.assert_close(kind.loss(settings, model(x), other(x), (x, y)), kl.mean().float())
    settings.loss = "cross_entropy"
    expected = F.binary_cross_entropy_with_logits(model(x), y)
    torch.testing.assert_close(kind.loss(settings, model(x), None, (x, y)), expected)
    data = type("Data", (), {"evaluation": [(x, y)]})
    assert kind.own_task(data).scores(model, None) == pytest.approx(((q > 0.5) == (y > 0.5)).double().mean(1).tolist())
    with torch.no_grad():
        model.weight.copy_(other.weight)
        model.bias.copy_(other.bias + 1.0)
    assert torchqat.evaluate(model, [(x, y)], other, kind).kl > 0.05


def test_several_labels_from_data_to_export(capsys, tmp_path, tokenizer):
    config = transformers.BertConfig(**BERT, num_labels=3, problem_type="multi_label_classification")
    folder = saved(tmp_path / "model", transformers.BertForSequenceClassification(config), tokenizer)
    lines = [{"text": f"def function_{i}", "labels": [j for j in range(3) if (i >> j) % 2]} for i in range(80)]
    data = written(tmp_path / "several.jsonl", lines)
    report, out = run(capsys, tmp_path, RUN, "--model", folder, "--data", data)
    assert report["variants"][0]["kl"] > 0 and len(report["baseline"]["task_scores"]) == 4
    assert report["baseline"]["tokens"] == 12 and said(out, "verify.equal", layers=12)
    bad = written(tmp_path / "bad.jsonl", [{"text": "a", "label": 1}])
    (tmp_path / "recipe.yaml").write_text(RUN)
    code, _, err = call(
        capsys, "run", tmp_path / "recipe.yaml", "--model", folder, "--data", bad, "--output", tmp_path / "x"
    )
    assert code == 2 and said(err, "data.line-without-several", file=bad, line=1)
