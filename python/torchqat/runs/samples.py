"""Text that a quantized model writes, beside what the float model writes after the same words."""

from typing import Any

import torch
from torch import Tensor, nn

from torchqat.model.placement import on_device
from torchqat.reports.report import Variant
from torchqat.runs.run import Run

# Beginnings of held-out texts, their tokens, and those that are written after each: about ten lines in all.
_TEXTS, _GIVEN, _WRITTEN = 2, 24, 48


@torch.no_grad()
def samples_of(run: Run, model: nn.Module, variant: Variant) -> dict[str, Any]:
    """For the report, what the float model and ``model`` go on with; nothing of a model that writes no text.

    Both take the likeliest token each time, by the forward that was trained, so that a text is the same whenever it is made.
    """
    if not run.kind.writes_text or run.tokenizer is None:
        return {}
    run.progress.say("Writing samples")
    prompts = run.kind.prompts(run.example)[:_TEXTS, :_GIVEN]
    written = {}
    for name, one in (("float", run.original), ("quantized", model)):
        with on_device(one, run.device) as placed:
            written[name] = _greedy(one, prompts.to(placed.device), _room(one, prompts)).cpu()

    def text(tokens: Tensor) -> str:
        ends = (tokens == run.tokenizer.eos_token_id).nonzero() if run.tokenizer.eos_token_id is not None else []
        return run.tokenizer.decode(tokens[: int(ends[0])] if len(ends) else tokens, skip_special_tokens=True)

    texts = [
        {
            "prompt": run.tokenizer.decode(prompt, skip_special_tokens=True),
            **{name: text(rows[index]) for name, rows in written.items()},
        }
        for index, prompt in enumerate(prompts)
    ]
    return {"variant": variant.name, "method": variant.method, "texts": texts}


def _room(model: nn.Module, prompts: Tensor) -> int:
    """Tokens that fit after ``prompts`` into the positions that ``model`` has."""
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None) or _GIVEN + _WRITTEN
    return max(0, min(_WRITTEN, positions - prompts.shape[1]))


def _greedy(model: nn.Module, prompts: Tensor, count: int) -> Tensor:
    """The ``count`` tokens after ``prompts``, int64 ``[rows, count]``."""
    training, tokens = model.training, prompts
    model.eval()
    for _ in range(count):
        logits = model(input_ids=tokens, use_cache=False).logits[:, -1]
        tokens = torch.cat([tokens, logits.argmax(-1, keepdim=True)], 1)
    model.train(training)
    return tokens[:, prompts.shape[1] :]
