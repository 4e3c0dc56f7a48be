"""Losses over large vocabularies: some tokens at a time, with the gradients of the plain formulas."""

import pytest
import torch
import torch.nn.functional as F
import torchqat
from sentences import matches
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torchqat.evaluation.evaluate import _Sums
from torchqat.kinds import Answers, pieces
from torchqat.kinds.losses import cross_entropy, cross_entropy_of, forward_kl

SHAPE = (3, 17, 501)
FLOATS = [torch.float32, torch.bfloat16, torch.float16]
# Relative to the largest gradient: a step of the dtype that it is rounded to, and float32's sums before.
TOLERANCE = {torch.float64: 2e-6, torch.float32: 2e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11}


@pytest.fixture(params=[1 << 20, 501 * 40, 501 * 5, 1])
def size(request, monkeypatch):
    """Elements of a piece: all, some rows, some tokens of a row, one token."""
    monkeypatch.setattr(pieces, "_ELSEWHERE", request.param)
    return request.param


def logits(dtype, scale=3.0):
    return (torch.randn(SHAPE) * scale).to(dtype).requires_grad_(), (torch.randn(SHAPE) * scale).to(dtype)


def plain_kl(student, teacher, temperature):
    p = torch.softmax(teacher.double() / temperature, -1)
    log_p, log_r = (torch.log_softmax(x.double() / temperature, -1) for x in (teacher, student))
    return temperature**2 * (p * (log_p - log_r)).sum(-1)


def assert_like(found, expected, student, dtype):
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    (ours,), (theirs,) = (torch.autograd.grad(loss / 3, student, retain_graph=True) for loss in (found, expected))
    assert ours.dtype == dtype
    torch.testing.assert_close(
        ours.double(), theirs.double(), rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype] * theirs.abs().max().item()
    )


@pytest.mark.parametrize("temperature", [1.0, 2.0, 0.7])
@pytest.mark.parametrize("dtype", FLOATS)
def test_kl_is_the_formula(dtype, temperature):
    student, teacher = logits(dtype)
    assert_like(
        forward_kl(student, teacher, temperature), plain_kl(student, teacher, temperature).mean(), student, dtype
    )
    counted = torch.rand(SHAPE[:2]) < 0.5
    expected = plain_kl(student, teacher, temperature)[counted].mean()
    assert_like(forward_kl(student, teacher, temperature, counted), expected, student, dtype)
    assert not teacher.requires_grad


@pytest.mark.parametrize("dtype", FLOATS)
def test_cross_entropy_is_the_formula(dtype, size):
    student, _ = logits(dtype)
    tokens = torch.randint(0, SHAPE[-1], SHAPE[:2])
    log = torch.log_softmax(student.double(), -1)
    each = -log.gather(-1, tokens[..., None]).squeeze(-1)
    following = -log[:, :-1].gather(-1, tokens[:, 1:, None]).squeeze(-1)
    assert_like(cross_entropy(student, tokens), following.mean(), student, dtype)
    targets = tokens.masked_fill(torch.rand(SHAPE[:2]) < 0.5, -100)
    assert_like(cross_entropy_of(student, targets), each[targets != -100].mean(), student, dtype)
    flat = cross_entropy_of(student.flatten(0, 1), targets.flatten())
    assert flat.item() == pytest.approx(each[targets != -100].mean().item(), rel=1e-5)


@pytest.mark.parametrize("dtype", FLOATS)
def test_pieces_do_not_show_in_gradients(dtype, monkeypatch):
    """Bit for bit those of torch's own functions over all tokens at once."""
    student, _ = logits(dtype)
    tokens = torch.randint(0, SHAPE[-1], SHAPE[:2])
    whole = F.cross_entropy(student[:, :-1].float().flatten(0, 1), tokens[:, 1:].flatten())
    (expected,) = torch.autograd.grad(whole, student)
    for elements in (1 << 20, 501 * 5, 1):
        monkeypatch.setattr(pieces, "_ELSEWHERE", elements)
        assert torch.equal(torch.autograd.grad(cross_entropy(student, tokens), student)[0], expected)


@pytest.mark.parametrize("ours, theirs", [(torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32)])
def test_student_and_teacher_may_differ_in_dtype(ours, theirs):
    student, teacher = torch.randn(SHAPE).to(ours).requires_grad_(), torch.randn(SHAPE).to(theirs)
    assert_like(forward_kl(student, teacher), plain_kl(student, teacher, 1.0).mean(), student, ours)
    wide = student.detach().double().requires_grad_()
    assert_like(forward_kl(wide, teacher.double()), plain_kl(wide, teacher, 1.0).mean(), wide, torch.float64)


class Divergences(TorchDispatchMode):
    """How often KL is computed."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.qat.kl_divergence.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype, again", [(torch.float32, 0), (torch.bfloat16, 0), (torch.float16, 1)])
def test_a_backward_computes_again_only_what_a_loss_is_scaled_for(dtype, again):
    student, teacher = logits(dtype)
    with Divergences() as seen:
        loss = forward_kl(student, teacher)
    assert seen.count == 1
    with Divergences() as seen:
        (first,) = torch.autograd.grad(loss, student, retain_graph=True)
    assert seen.count == again
    kept = first.clone()
    (second,) = torch.autograd.grad(loss, student)
    assert torch.equal(second, kept) and torch.equal(first, kept)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_second_derivative_is_refused_where_it_is_asked_for(dtype):
    student, teacher = logits(dtype)
    other = torch.randn(4, requires_grad=True)
    loss = forward_kl(student, teacher) + other.pow(3).sum()
    slope, of_other = torch.autograd.grad(loss, (student, other), create_graph=True)
    assert torch.equal(slope, torch.autograd.grad(loss, student, retain_graph=True)[0])
    torch.testing.assert_close(torch.autograd.grad(of_other.sum(), other, retain_graph=True)[0], 6 * other)
    (of_square,) = torch.autograd.grad(loss.square(), student, create_graph=True)
    for grad in (slope, of_square):
        with pytest.raises(NotImplementedError, match=matches("ops.double-backward-of-kl")):
            grad.sum().backward()


@pytest.mark.parametrize("temperature", [0.0, -1.0, 1e-40, 1e40, float("nan")])
def test_a_temperature_that_float32_does_not_have_is_refused(temperature):
    with pytest.raises(ValueError, match=matches("ops.temperature")):
        forward_kl(torch.zeros(2, 3), torch.zeros(2, 3), temperature)


def test_the_scale_of_a_loss_keeps_gradients_in_the_range_of_float16():
    student, teacher = (torch.randn(1, 4096, 64, dtype=torch.float16) * 0.01 for _ in range(2))
    student.requires_grad_()
    (scaled,) = torch.autograd.grad(forward_kl(student, teacher) * 2.0**16, student)
    (exact,) = torch.autograd.grad(plain_kl(student, teacher, 1.0).mean(), student)
    assert (exact == 0).float().mean() > 0.4  # which is what is lost without a scale
    assert (scaled == 0).float().mean() < 0.1


class Largest(TorchDispatchMode):
    """The most elements of a float32 tensor that an operator gives."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(found):
            if torch.is_tensor(tensor) and tensor.dtype == torch.float32:
                self.elements = max(self.elements, tensor.numel())
        return found


def test_no_float32_copy_of_all_logits_is_made(monkeypatch):
    monkeypatch.setattr(pieces, "_ELSEWHERE", 501 * 4)
    student, teacher = logits(torch.bfloat16)
    tokens = torch.randint(0, SHAPE[-1], SHAPE[:2])
    largest = Largest()
    with largest:
        (forward_kl(student, teacher) + 0.5 * cross_entropy(student, tokens)).backward()
        sums = _Sums()
        with torch.no_grad():
            sums.add(Answers(student.detach()[:, :-1], tokens[:, 1:]), Answers(teacher[:, :-1]))
    assert 0 < largest.elements <= 501 * 4


def test_measures_are_those_of_all_log_probabilities(size):
    ours, theirs = (Answers(x.detach()[:, :-1], torch.randint(0, 501, (3, 16))) for x in logits(torch.bfloat16))
    log = ours.log_probabilities
    assert torch.equal(ours.of_targets(), log.gather(-1, ours.targets[..., None]).squeeze(-1))
    exact = plain_kl(ours.logits, theirs.logits, 1.0)
    torch.testing.assert_close(ours.kl_to(theirs).double(), exact, rtol=1e-6, atol=1e-6)
    assert torch.equal(ours.likeliest(), log.argmax(-1))


def test_nothing_to_differentiate_and_nothing_at_all():
    with torch.no_grad():
        assert torchqat.forward_kl(torch.zeros(2, 3, 5), torch.zeros(2, 3, 5)).item() == 0.0
    assert torch.isnan(cross_entropy(torch.zeros(2, 1, 5), torch.zeros(2, 1, dtype=torch.long)))


def test_the_mask_of_words_reads_nothing_on_the_host():
    """Classes of words, some of which have a label (test_one_read.py has the rest)."""
    from test_one_read import Reads
    from torchqat._library import DistillSection
    from torchqat.kinds import find_kind

    student, teacher = logits(torch.float32)
    labels = torch.randint(0, SHAPE[-1], SHAPE[:2]).masked_fill(torch.rand(SHAPE[:2]) < 0.5, -100)
    settings = DistillSection()
    settings.weight = 0.5
    reads = Reads()
    with reads:
        loss = find_kind("classifier").loss(settings, student, teacher, {"labels": labels})
        loss.backward()
    assert reads.count == 0
    has = labels != -100
    expected = 0.5 * plain_kl(student, teacher, 1.0)[has].mean() + 0.5 * F.cross_entropy(student[has], labels[has])
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
