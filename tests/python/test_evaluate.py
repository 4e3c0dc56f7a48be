"""``evaluate`` and the losses against slow formulas in float64."""

import copy
import math

import pytest
import torch
import torchqat
from sentences import matches
from torchqat.evaluation.evaluate import KL_BINS
from torchqat.kinds.losses import cross_entropy, forward_kl


def _slow(model, reference, tokens):
    with torch.no_grad():
        p = torch.log_softmax(reference(input_ids=tokens).logits[:, :-1].double(), -1)
        q = torch.log_softmax(model(input_ids=tokens).logits[:, :-1].double(), -1)
    nll = -q.gather(-1, tokens[:, 1:, None]).mean().item()
    kl = (p.exp() * (p - q)).sum(-1).mean().item()
    return math.exp(nll), kl, (p.argmax(-1) == q.argmax(-1)).double().mean().item()


def test_against_float64(tiny_llama):
    other = copy.deepcopy(tiny_llama)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    tokens = torch.randint(0, 400, (6, 20))
    figures = torchqat.evaluate(other, list(tokens.split(4)), tiny_llama)
    perplexity, kl, agreement = _slow(other, tiny_llama, tokens)
    assert figures.perplexity == pytest.approx(perplexity, rel=1e-5)
    assert figures.kl == pytest.approx(kl, rel=1e-4)
    assert figures.top1_agreement == pytest.approx(agreement)
    assert figures.tokens == 6 * 19


def test_predictions_are_counted_by_their_kl(tiny_llama):
    other = copy.deepcopy(tiny_llama)
    with torch.no_grad():
        other.lm_head.weight.add_(torch.randn_like(other.lm_head.weight) * 0.05)
    tokens = torch.randint(0, 400, (6, 20))
    figures = torchqat.evaluate(other, [*tokens[:4].split(2), tokens[4:, :12]], tiny_llama)
    p = torch.log_softmax(tiny_llama(input_ids=tokens).logits[:, :-1].double(), -1)
    q = torch.log_softmax(other(input_ids=tokens).logits[:, :-1].double(), -1)
    kl = (p.exp() * (p - q)).sum(-1)
    by_position = [kl[: 6 if at < 11 else 4, at].mean().item() for at in range(19)]
    assert figures.kl_by_position == pytest.approx(by_position, rel=1e-4)
    seen = torch.cat([kl[:4].flatten(), kl[4:, :11].flatten()]).log10()
    shares = [((seen >= a) & (seen < b)).double().mean().item() for a, b in zip(KL_BINS, KL_BINS[1:], strict=False)]
    assert figures.kl_shares == pytest.approx(shares, abs=0.02) and sum(figures.kl_shares) == pytest.approx(1.0)


def test_a_model_agrees_with_itself(tiny_llama):
    figures = torchqat.evaluate(tiny_llama, [torch.randint(0, 400, (2, 8))], tiny_llama)
    assert figures.kl == 0.0 and figures.top1_agreement == 1.0


def test_the_mode_is_restored(tiny_llama):
    tiny_llama.train()
    torchqat.evaluate(tiny_llama, [torch.randint(0, 400, (2, 8))])
    assert tiny_llama.training


def test_nothing_to_predict(tiny_llama):
    with pytest.raises(torchqat.UserError, match=matches("evaluate.nothing-to-predict")):
        torchqat.evaluate(tiny_llama, [])


@pytest.mark.parametrize("temperature", (1.0, 2.0))
def test_forward_kl_per_token(temperature):
    student, teacher = torch.randn(2, 5, 11, requires_grad=True), torch.randn(2, 5, 11)
    loss = forward_kl(student, teacher, temperature)
    p = torch.softmax(teacher.double() / temperature, -1)
    r = torch.softmax(student.double() / temperature, -1)
    expected = temperature**2 * (p * (p / r).log()).sum(-1).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    loss.backward()
    torch.testing.assert_close(student.grad.double(), (temperature / 10 * (r - p)).detach(), rtol=1e-4, atol=1e-7)


def test_cross_entropy_predicts_the_next_token():
    logits, tokens = torch.randn(2, 5, 11), torch.randint(0, 11, (2, 5))
    log = torch.log_softmax(logits.double(), -1)
    expected = -torch.stack([log[b, t, tokens[b, t + 1]] for b in range(2) for t in range(4)]).mean()
    assert cross_entropy(logits, tokens).item() == pytest.approx(expected.item(), rel=1e-6)
