"""An engine's log probabilities and greedy text beside those of the training forward."""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from torchqat.device import device_of
from torchqat.errors import UserError
from torchqat.verification.engines.engine import Engine
from torchqat.verification.engines.question import Served
from torchqat.verification.result import Agreement


def agreement_of(
    engine: Engine,
    served: Served,
    model: nn.Module,
    prompts: Tensor,
    half: bool,
    rounded: bool = False,
    tokenizer=None,
    texts: list[str] | None = None,
) -> Agreement:
    """Compare what ``engine`` answered with the forward of ``model``.

    Args:
        engine: Whose bounds count.
        served: Its answer to ``prompts`` and ``texts``.
        model: The training model, in the numbers that it trains with.
        prompts: int64 ``[batch, sequence]``.
        half: Whether the engine or the model computes in half precision.
        rounded: Whether inputs or caches of the model are quantized.
        tokenizer: What texts should be split by.
        texts: What the engine was asked to tokenize.

    Raises:
        UserError: What the engine computed is no number.
    """
    forward = _Forward(model)
    sums, margin = _Sums(), engine.clear(rounded)
    same_text = 0
    for prompt, theirs, text in zip(prompts, served.logprobs, served.greedy, strict=True):
        if np.isnan(theirs).all(-1).any():
            raise UserError(
                f"{engine.name} must answer with log probabilities, but those after some token are no numbers."
            )
        sums.add(forward.logprobs(prompt), _normalised(torch.from_numpy(theirs).double()), margin)
        same, overruled = _compare_text(forward, prompt, text, margin)
        same_text += same
        sums.overruled += overruled
    mistokenized = sum(
        found is not None and list(found) != list(tokenizer(text).input_ids)
        for text, found in zip(texts or [], served.tokens, strict=True)
    )
    return Agreement(
        engine.name,
        kl=float(np.mean(sums.kl)),
        kl_bound=engine.bound(half, rounded),
        why=engine.why,
        top1=float(np.mean(sums.top1)),
        overruled=sums.overruled,
        margin=margin,
        logits_difference=sums.difference,
        same_text=same_text,
        prompts=len(prompts),
        mistokenized=mistokenized,
    )


def _normalised(table: Tensor) -> Tensor:
    """What float32 lost of the sum to one; tables with gaps stay as they are."""
    return table if table.isnan().any() else torch.log_softmax(table, -1)


class _Forward:
    """The training model in evaluation mode, its last state given back after each use."""

    def __init__(self, model: nn.Module):
        self.model, self.device = model, device_of(model)

    @torch.no_grad()
    def logprobs(self, tokens: Tensor) -> Tensor:
        training = self.model.training
        self.model.eval()
        logits = self.model(input_ids=tokens[None].to(self.device), use_cache=False).logits[0]
        self.model.train(training)
        return torch.log_softmax(logits.double(), -1).cpu()


@dataclass
class _Sums:
    kl: list[float] = field(default_factory=list)
    top1: list[float] = field(default_factory=list)
    overruled: int = 0
    difference: float = 0.0

    def add(self, ours: Tensor, theirs: Tensor, margin: float) -> None:
        """Log probabilities ``[tokens, vocabulary]``; where theirs are not listed, those tokens count as one."""
        listed = ~theirs.isnan()
        self.kl.extend(_kl(ours, theirs, listed).tolist())
        choice = theirs.nan_to_num(-torch.inf).argmax(-1)
        best = ours.max(-1)
        self.top1.extend((choice == best.indices).double().tolist())
        gap = best.values - ours.gather(-1, choice[:, None]).squeeze(-1)
        self.overruled += int((gap > margin).sum())
        # Of tokens so unlikely that no sampling finds them, half precision has little left.
        likely = listed & (ours > -15.0)
        self.difference = max(self.difference, (ours - theirs)[likely].abs().max().item())


def _kl(ours: Tensor, theirs: Tensor, listed: Tensor) -> Tensor:
    ratio = torch.where(listed, ours.exp() * (ours - theirs), 0.0).sum(-1)
    ours_rest = 1.0 - torch.where(listed, ours.exp(), 0.0).sum(-1)
    theirs_rest = 1.0 - torch.where(listed, theirs.exp(), 0.0).sum(-1)
    some = (ours_rest > 1e-9) & (theirs_rest > 1e-9)
    rest = ours_rest * (ours_rest.clamp(min=1e-30) / theirs_rest.clamp(min=1e-30)).log()
    return ratio + torch.where(some, rest, 0.0)


def _compare_text(forward: _Forward, prompt: Tensor, text: list[int], margin: float) -> tuple[bool, int]:
    """Whether the training forward writes the same after ``prompt``; and 1 if the first difference was a clear choice."""
    tokens = prompt
    for token in text:
        ours = forward.logprobs(tokens)[-1]
        if int(ours.argmax()) != token:
            return False, int(ours.max() - ours[token] > margin)
        tokens = torch.cat([tokens, torch.tensor([token])])
    return True, 0
