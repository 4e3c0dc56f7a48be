"""What kinds of models say of a batch: outputs, losses, measures, each against a slow reference."""

import pytest
import torch
import torch.nn.functional as F
import torchqat
import transformers
from conftest import BERT
from sentences import matches
from torch import nn
from torchqat._library import DistillSection
from torchqat.data.examples import Examples
from torchqat.kinds import KINDS, find_kind


def test_a_classifier_is_measured_on_its_classes():
    torch.manual_seed(0)
    model, other = nn.Linear(8, 3), nn.Linear(8, 3)
    x, y = torch.randn(50, 8), torch.randint(3, (50,))
    found = torchqat.evaluate(model, [(x[:30], y[:30]), (x[30:], y[30:])], other, kind="classifier")
    p, q = other(x).double().softmax(-1), model(x).double().log_softmax(-1)
    assert found.perplexity == pytest.approx(F.cross_entropy(model(x), y).exp().item(), rel=1e-5)
    assert found.kl == pytest.approx((p * (p.log() - q)).sum(-1).mean().item(), rel=1e-4)
    assert found.top1_agreement == (model(x).argmax(-1) == other(x).argmax(-1)).double().mean().item()
    assert found.tokens == 50 and len(found.kls) == 50


def test_an_encoder_is_measured_on_cosines_and_the_nearest(encoder_folder):
    kind = find_kind("sentence_encoder")
    model = kind.load(str(encoder_folder), "float32")
    other = transformers.BertModel(transformers.BertConfig(**BERT), add_pooling_layer=False).eval()
    examples = Examples([torch.randint(400, (n,)) for n in (5, 9, 3, 7, 6)])
    batch = examples.batch(torch.arange(5))
    found = torchqat.evaluate(model, [batch], other, kind="sentence_encoder")

    def vectors(m):
        rows = [m(input_ids=ids[None]).last_hidden_state[0].double().mean(0) for ids in examples.inputs]
        return F.normalize(torch.stack(rows), dim=-1)

    ours, theirs = vectors(model), vectors(other)
    assert found.cosine == pytest.approx((ours * theirs).sum(-1).mean().item(), abs=1e-5)
    kls = []
    for i in range(5):
        others = [j for j in range(5) if j != i]
        p, q = ((theirs[i] @ theirs[others].T) / 0.05).softmax(-1), ((ours[i] @ ours[others].T) / 0.05).log_softmax(-1)
        kls.append((p * (p.log() - q)).sum().item())
    assert found.kl == pytest.approx(sum(kls) / 5, rel=1e-4, abs=1e-7)
    assert found.perplexity is None and found.kls == pytest.approx(kls, rel=1e-4, abs=1e-7)


def test_the_first_token_is_taken_where_the_folder_says_so(encoder_folder):
    (encoder_folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    kind = find_kind("sentence_encoder")
    model = kind.load(str(encoder_folder), "float32")
    batch = Examples([torch.randint(400, (6,)), torch.randint(400, (4,))]).batch(torch.arange(2))
    expected = F.normalize(model(**batch).last_hidden_state[:, 0], dim=-1)
    torch.testing.assert_close(kind.outputs(model, batch), expected)


def test_losses_are_those_of_the_recipe():
    settings, kind = DistillSection(), find_kind("classifier")
    student, teacher, labels = torch.randn(5, 3), torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 1])
    batch = (torch.zeros(5, 2), labels)
    kl = (teacher.softmax(-1) * (teacher.log_softmax(-1) - student.log_softmax(-1))).sum(-1).mean()
    torch.testing.assert_close(kind.loss(settings, student, teacher, batch), kl)
    settings.weight = 0.25
    mixed = 0.25 * kl + 0.75 * F.cross_entropy(student, labels)
    torch.testing.assert_close(kind.loss(settings, student, teacher, batch), mixed)
    settings.loss = "cross_entropy"
    torch.testing.assert_close(kind.loss(settings, student, None, batch), F.cross_entropy(student, labels))
    a, b = F.normalize(torch.randn(5, 8), dim=-1), F.normalize(torch.randn(5, 8), dim=-1)
    cosine = find_kind("sentence_encoder").loss(settings, a, b, {})
    torch.testing.assert_close(cosine, 1 - F.cosine_similarity(a, b).mean())


def test_a_student_has_no_dropout_while_it_learns_from_the_float_model(classifier_folder):
    from torchqat.training.noise import remove_dropout

    model = transformers.AutoModelForSequenceClassification.from_pretrained(classifier_folder)
    llama = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=50,
            attention_dropout=0.3,
        )
    )  # fmt: skip
    for net in (model, llama):
        remove_dropout(net)
        net.train()
        ids = torch.randint(50, (4, 16))
        assert torch.equal(net(input_ids=ids).logits, net(input_ids=ids).logits)


def test_kinds_are_found_by_name():
    assert list(KINDS) == ["causal_lm", "classifier", "sentence_encoder", "seq2seq"]
    kinds = ", ".join(KINDS)
    with pytest.raises(ValueError, match=matches("model.unknown-kind", kinds=kinds, kind="x")):
        find_kind("x")
