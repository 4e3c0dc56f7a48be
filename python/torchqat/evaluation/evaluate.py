"""``evaluate``: a model on held-out data, by itself and against its float original."""

import math
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchqat.data.batch import Batch, to_device
from torchqat.data.given import count_of, given_one_by_one
from torchqat.errors import UserError
from torchqat.evaluation.numbers import number_distances, pairs_ordered_alike
from torchqat.kinds import Answers, Kind, find_kind
from torchqat.layers.prepared import require_module
from torchqat.model.placement import device_for, on_device
from torchqat.model.vocabulary import check_ids
from torchqat.progress import counted

# Ends of the bins that the KLs of single predictions are counted in: their logarithms to base 10.
KL_BINS = [round(-8 + 0.25 * i, 2) for i in range(37)]
_ENDS = (KL_BINS[0], KL_BINS[-1])


@dataclass(frozen=True)
class Evaluation:
    """Figures over ``tokens`` predictions: of tokens, of classes or, by encoders, of the nearest other sentence.

    Attributes:
        perplexity: exp of the mean negative log likelihood; ``None`` of encoders, for which nothing is right or wrong, and
            of models that give a number.
        kl: Mean KL(reference || model) per prediction, in nats; 0 without a reference. Of models that give a number, it is
            that between normal distributions around both numbers, of the variance of the reference's (numbers.py).
        top1_agreement: Share of predictions whose likeliest choice is the reference's; 1 without a reference. Of numbers,
            the share of pairs of examples that are ordered as the reference orders them.
        tokens: Number of predictions.
        losses: Mean negative log likelihood of each sequence or example, for comparisons one by one.
        kls: Mean KL of each; empty without a reference.
        cosine: Of encoders, mean cosine to the reference's vectors.
        kl_shares: Share of predictions whose KL lies in each of ``KL_BINS``; the first and the last have what lies beyond.
        kl_by_position: Mean KL of each position in the sequence.
    """

    perplexity: float | None
    kl: float
    top1_agreement: float
    tokens: int
    losses: list[float] = field(default_factory=list)
    kls: list[float] = field(default_factory=list)
    cosine: float | None = None
    kl_shares: list[float] = field(default_factory=list)
    kl_by_position: list[float] = field(default_factory=list)

    @property
    def flip_rate(self) -> float:
        """Share of predictions whose likeliest token is another than the reference's."""
        return 1.0 - self.top1_agreement


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: Iterable[Batch],
    reference: nn.Module | None = None,
    kind: Kind | str = "causal_lm",
    device: str | torch.device | None = None,
) -> Evaluation:
    """How ``model`` does on ``batches`` and, where a reference is given, how near it is to that.

    Args:
        model: A model of ``kind``; a causal language model is called as ``model(input_ids=...).logits``.
        batches: Of a causal language model int64 ``[rows, tokens]``, of which every token but the first is predicted, or a
            dict of ``input_ids``, ``attention_mask`` and ``labels``, -100 where a token is not to be predicted; of a
            classifier ``(inputs, labels)`` or a dict of ``input_ids``, ``attention_mask`` and ``labels``, those of words
            ``[rows, tokens]`` with -100 where a token has none; of a sentence encoder such a dict without labels; of
            an encoder with a decoder a dict of its inputs, ``decoder_input_ids`` and ``labels``, -100 after the end of each.
        reference: The float model. Both are run batch by batch; nothing is stored.
        kind: ``causal_lm``, ``classifier``, ``sentence_encoder`` or ``seq2seq``.
        device: Where both are run, as recipes say it, and brought back from: whole, or by blocks where there is no room.
            When ``None``, each is run where it is, which may be two places.

    Raises:
        UserError: There is nothing to predict, or what is given are no batches that a model of ``kind`` is measured on, or
            there is no such device.
    """
    kind = find_kind(kind)
    models = [model] if reference is None else [model, reference]
    for one in models:
        require_module(one)
    asked = None if device is None else device_for(device, models)
    training = model.training
    model.eval()
    sums = _Sums()
    try:
        with ExitStack() as stack:
            ask = [partial(_ask, kind, one, stack.enter_context(on_device(one, asked)).device) for one in models]
            for batch in counted(given_one_by_one(batches), "Evaluating", count_of(batches)):
                kind.check_measured(batch)
                for one in models:
                    check_ids(one, batch)
                sums.add(*(one(batch) for one in ask))
    finally:
        model.train(training)
    return sums.evaluation()


def _ask(kind: Kind, model: nn.Module, device: torch.device, batch: Batch) -> Answers:
    return kind.ask(model, to_device(batch, device))


@dataclass
class _Sums:
    losses: list[float] = field(default_factory=list)
    kls: list[float] = field(default_factory=list)
    cosines: list[float] = field(default_factory=list)
    weights: list[int] = field(default_factory=list)
    agree: int = 0
    values: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    by_position: list[Tensor] = field(default_factory=list)
    counts: Tensor = field(default_factory=lambda: torch.zeros(len(KL_BINS) - 1, dtype=torch.float64))

    def add(self, found: Answers, wanted: Answers | None = None) -> None:
        rows, positions, choices = found.logits.shape
        counted = found.counted
        self.weights += [positions] * rows if counted is None else counted.sum(1).tolist()
        if found.targets is not None:
            self.losses += _row_means(-found.of_targets(), counted)
        if wanted is None:
            return
        wanted = wanted.to(found.logits.device)
        if found.values is not None:
            self.values.append((found.values.cpu(), wanted.values.cpu()))
            return
        if choices:
            kl, alike = found.kl_to(wanted).double().cpu(), found.likeliest() == wanted.likeliest()
            self.kls += _row_means(kl, counted)
            if counted is not None:
                alike, counted = alike & counted, counted.cpu()
            self.by_position.append(kl if counted is None else kl.masked_fill(~counted, math.nan))
            self._count(kl if counted is None else kl[counted])
            self.agree += int(alike.sum())
        if found.embeddings is not None:
            self.cosines += F.cosine_similarity(found.embeddings, wanted.embeddings, dim=-1).double().tolist()

    def _count(self, kl: Tensor) -> None:
        self.counts += torch.histc(kl.clamp(10 ** KL_BINS[0], 10 ** KL_BINS[-1]).log10(), len(KL_BINS) - 1, *_ENDS)

    def _compare_values(self) -> float:
        """Distances of numbers, whose spread is known when all are there; returns the share of pairs ordered alike."""
        ours, theirs = (torch.cat(parts) for parts in zip(*self.values, strict=True))
        kl = number_distances(ours, theirs)
        self.kls = kl.tolist()
        self._count(kl)
        return pairs_ordered_alike(ours, theirs)

    def evaluation(self) -> Evaluation:
        count = sum(self.weights)
        if count == 0:
            raise UserError("Evaluation needs at least one sequence of two tokens, or one example, but there is none.")
        alike = self._compare_values() if self.values else self.agree / count
        mean = _weighted(self.losses, self.weights) if self.losses else None
        return Evaluation(
            None if mean is None else math.exp(mean) if mean < 700 else math.inf,
            at_least_zero(_weighted(self.kls, self.weights)) if self.kls else 0.0,
            alike if self.kls else 1.0,
            count,
            self.losses,
            self.kls,
            sum(self.cosines) / len(self.cosines) if self.cosines else None,
            (self.counts / self.counts.sum()).tolist() if self.kls else [],
            self._position_means(),
        )

    def _position_means(self) -> list[float]:
        length = max((kl.shape[1] for kl in self.by_position), default=0)
        columns = [torch.cat([kl[:, at] for kl in self.by_position if kl.shape[1] > at]) for at in range(length)]
        means = [column.nanmean().item() for column in columns]
        while means and math.isnan(means[-1]):
            means.pop()
        return means


def _row_means(values: Tensor, counted: Tensor | None) -> list[float]:
    """float64, of those that count in each row."""
    if counted is None:
        return values.double().mean(-1).tolist()
    counted = counted.to(values.device)
    return (values.double().masked_fill(~counted, 0.0).sum(-1) / counted.sum(-1).clamp(min=1)).tolist()


def at_least_zero(distance: float) -> float:
    """A mean distance, which rounding may bring below 0; infinite where it is no number, or a broken model would be near."""
    return math.inf if math.isnan(distance) else max(0.0, distance)


def _weighted(values: list[float], weights: list[int]) -> float:
    return sum(v * w for v, w in zip(values, weights, strict=True)) / sum(weights)
