"""``evaluate``: a causal language model on held-out text, by itself and against its float original."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchqat.errors import UserError


@dataclass(frozen=True)
class Evaluation:
    """Figures over ``tokens`` predictions.

    Attributes:
        perplexity: exp of the mean negative log likelihood.
        kl: Mean KL(reference || model) per prediction, in nats; 0 without a reference.
        top1_agreement: Share of predictions whose likeliest token is the reference's; 1 without a reference.
        tokens: Number of predictions.
        losses: Mean negative log likelihood of each sequence, for comparisons sequence by sequence.
        kls: Mean KL of each sequence; empty without a reference.
    """

    perplexity: float
    kl: float
    top1_agreement: float
    tokens: int
    losses: list[float] = field(default_factory=list)
    kls: list[float] = field(default_factory=list)

    @property
    def flip_rate(self) -> float:
        """Share of predictions whose likeliest token is another than the reference's."""
        return 1.0 - self.top1_agreement


@torch.no_grad()
def evaluate(model: nn.Module, batches: Iterable[Tensor], reference: nn.Module | None = None) -> Evaluation:
    """Perplexity of ``model`` and, where a reference is given, its KL and top-1 agreement with it.

    Args:
        model: A causal language model of the transformers kind: ``model(input_ids=...).logits``.
        batches: int64 ``[batch, sequence]``; every token but the first of a row is predicted.
        reference: The float model. Both are run batch by batch; nothing is stored.

    Raises:
        UserError: There is nothing to predict.
    """
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    losses: list[float] = []
    kls: list[float] = []
    weights: list[int] = []
    agree = 0
    try:
        for batch in batches:
            tokens = batch.to(device)
            log_model = _log_probabilities(model, tokens)
            target = tokens[:, 1:]
            losses += _row_means(-log_model.gather(-1, target[..., None]).squeeze(-1))
            weights += [target.shape[1]] * len(target)
            if reference is not None:
                log_reference = _log_probabilities(reference, tokens)
                kls += _row_means(F.kl_div(log_model, log_reference, reduction="none", log_target=True).sum(-1))
                agree += int((log_model.argmax(-1) == log_reference.argmax(-1)).sum())
    finally:
        model.train(training)
    count = sum(weights)
    if count == 0:
        raise UserError("Evaluation needs at least one sequence of two tokens, but there is none.")
    mean = _weighted(losses, weights)
    kl = max(0.0, _weighted(kls, weights)) if kls else 0.0
    agreement = agree / count if reference is not None else 1.0
    return Evaluation(math.exp(mean) if mean < 700 else math.inf, kl, agreement, count, losses, kls)


def _log_probabilities(model: nn.Module, tokens: Tensor) -> Tensor:
    logits = model(input_ids=tokens, use_cache=False).logits[:, :-1]
    return F.log_softmax(logits.float(), dim=-1)


def _row_means(values: Tensor) -> list[float]:
    return values.double().mean(-1).tolist()


def _weighted(values: list[float], weights: list[int]) -> float:
    return sum(v * w for v, w in zip(values, weights, strict=True)) / sum(weights)
