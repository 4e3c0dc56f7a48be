"""``verify --reference``: a checkpoint of anybody's beside its float model, tensor by tensor and, with data, in use."""

import copy
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from torchqat.data.measured import load_measured
from torchqat.data.sources import Source
from torchqat.errors import UserError
from torchqat.evaluation.evaluate import Evaluation, evaluate
from torchqat.kinds import find_kind
from torchqat.model.placement import device_for
from torchqat.verification.reference import Comparison, compare_with_float

# Tokens of a window, where the model takes as many.
_LENGTH = 2048


@dataclass(frozen=True)
class Beside:
    """A checkpoint beside the float model.

    Attributes:
        weights: Tensor by tensor.
        figures: With the decoded weights in the float model's place; ``None`` without data.
        perplexity: Of the float model on the same data.
        notes: What was not as it is on disk, one sentence each.
    """

    weights: Comparison
    figures: Evaluation | None
    perplexity: float | None
    notes: list[str]

    def to_json(self) -> dict[str, Any]:
        found = {**asdict(self.weights), "ok": self.weights.ok, "notes": [*self.weights.notes, *self.notes]}
        if self.figures is not None:
            found |= {
                "kl": self.figures.kl,
                "top1_agreement": self.figures.top1_agreement,
                "tokens": self.figures.tokens,
            }
            found |= {"perplexity": self.figures.perplexity, "float_perplexity": self.perplexity}
        return found


def compare(
    folder: str | Path,
    reference: str,
    data: str = "",
    kind: str = "causal_lm",
    samples: int = 0,
    device: str = "auto",
    say: Callable[[str], None] = lambda _: None,
) -> Beside:
    """What the codes of a checkpoint stand for, beside the float model: a comparison with that model, not with a training.

    Args:
        folder: The checkpoint, of any format that torchqat reads, or a GGUF file.
        reference: Folder or hub id of the float model.
        data: Text to measure perplexity, KL and top-1 agreement on, all of it.
        kind: Of model; data are measured on causal language models alone.
        samples: Only so many windows of the data, spread evenly; 0 is all.
        device: Where to compute.
        say: Told of what takes time.

    Raises:
        UserError: One of these cannot be read, or the checkpoint is of a model of other shapes.
    """
    folder, chosen, notes = Path(folder), find_kind(kind), []
    if data and not chosen.writes_text:
        raise UserError(f"--data are measured on models of kind causal_lm, but kind is {kind}.")
    if not folder.exists():
        raise UserError(f"DIR must be a folder or GGUF file that exists, but {folder} does not.")
    model = chosen.load(reference, "float32", notes.append)
    weights, decoded = compare_with_float(folder, model)
    if not data or weights.missing:
        return Beside(weights, None, None, notes)
    length = min(_LENGTH, getattr(model.config.get_text_config(), "max_position_embeddings", None) or _LENGTH)
    measured = load_measured(chosen.load_tokenizer(reference), Source(data), length, samples, say=say)
    notes += measured.notes
    quantized = with_weights(model, decoded)
    place = device_for(device, [quantized, model], say)
    figures = evaluate(quantized, measured.batches, model, device=place)
    own = evaluate(model, measured.batches, device=place)
    notes.append(
        "Perplexity and KL are computed here with the decoded weights; inputs and caches that an engine rounds are not."
    )
    return Beside(weights, figures, own.perplexity, notes)


@torch.no_grad()
def with_weights(model: nn.Module, weights: dict[str, Tensor]) -> nn.Module:
    """A copy of ``model`` with ``weights`` in place of its own; what is tied and comes as two becomes two."""
    made = copy.deepcopy(model)
    state, seen = made.state_dict(keep_vars=True), {}
    for name, tensor in weights.items():
        place = state[name]
        if place.data_ptr() in seen and not torch.equal(tensor.float(), weights[seen[place.data_ptr()]].float()):
            parent, _, leaf = name.rpartition(".")
            holder = made.get_submodule(parent)
            setattr(holder, leaf, nn.Parameter(tensor.to(place.dtype), requires_grad=False))
            continue
        seen[place.data_ptr()] = name
        place.data.copy_(tensor)
    return made
