"""``evaluate``: a causal language model on held-out text, by itself and against its float original."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

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
    """

    perplexity: float
    kl: float
    top1_agreement: float
    tokens: int


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
    loss = kl = 0.0
    agree = count = 0
    try:
        for batch in batches:
            tokens = batch.to(device)
            log_model = _log_probabilities(model, tokens)
            target = tokens[:, 1:].flatten()
            loss += F.nll_loss(log_model, target, reduction="sum").item()
            count += target.numel()
            if reference is not None:
                log_reference = _log_probabilities(reference, tokens)
                kl += F.kl_div(log_model, log_reference, reduction="sum", log_target=True).item()
                agree += int((log_model.argmax(-1) == log_reference.argmax(-1)).sum())
    finally:
        model.train(training)
    if count == 0:
        raise UserError("Evaluation needs at least one sequence of two tokens, but there is none.")
    if reference is None:
        kl, agree = 0.0, count
    mean = loss / count
    return Evaluation(math.exp(mean) if mean < 700 else math.inf, max(0.0, kl / count), agree / count, count)


def _log_probabilities(model: nn.Module, tokens: Tensor) -> Tensor:
    logits = model(input_ids=tokens, use_cache=False).logits[:, :-1]
    return F.log_softmax(logits.float().flatten(0, 1), dim=-1)
