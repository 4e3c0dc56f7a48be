"""The user's own task: a score for each of its examples, for any model that is to be compared."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchqat.data.functions import find_function, names_function
from torchqat.data.jsonl import read_objects
from torchqat.data.lm_eval_task import PREFIX as LM_EVAL
from torchqat.data.lm_eval_task import LmEvalTask
from torchqat.data.written import decoder_inputs_of, target_tokens
from torchqat.device import device_of
from torchqat.errors import UserError, first_line
from torchqat.progress import counted

_FORMS = (
    '{"prompt": ..., "expected": ...}, {"prompt": ..., "choices": [...], "answer": index}, '
    '{"text": ..., "label": index} or {"query": ..., "passages": [...], "answer": index}'
)


Rank = Callable[[nn.Module, Any, str, list[str]], Tensor]


@dataclass(frozen=True)
class Task:
    """Examples with a right answer, or a function of the user's that scores a model.

    Attributes:
        name: For reports.
        examples: Lines of a jsonl file; empty for a function.
        function: ``function(model, tokenizer)`` gives one score for each example, the same examples every time.
    """

    name: str
    examples: Sequence[dict[str, Any]] = ()
    function: Any = None

    @torch.no_grad()
    def scores(self, model: nn.Module, tokenizer, rank: Rank | None = None) -> list[float]:
        """One score an example, of which 1 is the best.

        Args:
            model: What is to be judged.
            tokenizer: Its.
            rank: ``rank(model, tokenizer, query, passages)`` gives a number for each passage, the largest for the one that
                fits best, for tasks of queries and passages.

        Raises:
            UserError: An example has no token to judge, or the function gives no scores, or one that is not finite.
        """
        training = model.training
        model.eval()
        try:
            if self.function is not None:
                return _checked(self.name, self.function(model, tokenizer))
            return [
                self._score(model, tokenizer, example, rank)
                for example in counted(self.examples, f"Scoring {self.name}")
            ]
        finally:
            model.train(training)

    def _score(self, model: nn.Module, tokenizer, example: dict[str, Any], rank: Rank | None) -> float:
        form = _form(example)
        if form != "retrieval":
            return _SCORERS[form](model, tokenizer, example)
        if rank is None:
            raise UserError(
                "A task of queries and passages needs a sentence_encoder or a reranker, but the model is none."
            )
        numbers = rank(model, tokenizer, example["query"], example["passages"])
        return float(_largest(numbers).item() == example["answer"])


def load_task(source: str) -> Task:
    """A task from a jsonl file, from ``module:function``, or one of lm-eval, ``lm-eval:NAME`` or ``lm-eval:FILE.yaml``.

    Lines of the file are of one of four forms. ``prompt`` and ``expected``: 1 where the model, decoding greedily, writes
    ``expected``. ``prompt``, ``choices`` and ``answer``: 1 where the likeliest choice is the one that ``answer`` counts to
    from 0, likelihoods taken per byte (the ``acc_norm`` of lm-evaluation-harness). ``text`` and ``label``: 1 where the
    largest of a classifier's outputs is ``label``. ``query``, ``passages`` and ``answer``: 1 where the passage that
    ``answer`` counts to from 0 is ranked first: by an encoder, whose vector of it is the nearest to the query's, or by a
    classifier of one output, a reranker.

    Args:
        source: One of these.

    Raises:
        UserError: There is no such file or function, or a line is of no such form (the line is named).
    """
    if source.startswith(LM_EVAL):
        found = LmEvalTask(source.removeprefix(LM_EVAL))
        return Task(found.name, function=found)
    path = Path(source)
    if path.suffix == ".jsonl" or path.is_file():
        return Task(path.stem, _read(path))
    if not names_function(source):
        raise UserError(
            f"evaluate.task must be a jsonl file that exists, module:function or lm-eval:NAME, but is {source}."
        )
    return Task(source, function=find_function("evaluate.task", source))


def _read(path: Path) -> list[dict[str, Any]]:
    rule = f"a line of a task must be {_FORMS}"
    return read_objects(path, lambda value: _form(value) is not None, rule, "evaluate.task", "a readable file")


def _form(example: Any) -> str | None:
    if not isinstance(example, dict):
        return None
    if isinstance(example.get("prompt"), str) and isinstance(example.get("expected"), str) and example["expected"]:
        return "exact"
    choices, answer = example.get("choices"), example.get("answer")
    if isinstance(example.get("prompt"), str) and _is_one_of(choices, answer):
        return "choice"
    if isinstance(example.get("query"), str) and _is_one_of(example.get("passages"), answer):
        return "retrieval"
    if isinstance(example.get("text"), str) and isinstance(example.get("label"), int):
        return "label"
    return None


def _is_one_of(texts: Any, answer: Any) -> bool:
    """Whether ``answer`` counts to one of at least two texts."""
    if not isinstance(texts, list) or not isinstance(answer, int) or len(texts) < 2:
        return False
    return all(isinstance(text, str) and text for text in texts) and 0 <= answer < len(texts)


def _largest(numbers: Tensor) -> Tensor:
    """Where the largest of the last dimension is; -1, which is no answer, where one is NaN, torch's largest."""
    return numbers.argmax(-1).masked_fill(numbers.isnan().any(-1), -1)


def _exact(model: nn.Module, tokenizer, example: dict[str, Any]) -> float:
    """Greedy decoding writes ``expected`` exactly if each of its tokens is the likeliest after those before it."""
    logits, target = _continuation(model, tokenizer, example["prompt"], example["expected"])
    return float(torch.equal(_largest(logits), target))


def _choice(model: nn.Module, tokenizer, example: dict[str, Any]) -> float:
    likelihoods = []
    for choice in example["choices"]:
        logits, target = _continuation(model, tokenizer, example["prompt"], choice)
        total = -F.cross_entropy(logits.float(), target, reduction="sum").item()
        likelihoods.append(total / len(choice.encode()))
    return float(_largest(torch.tensor(likelihoods)).item() == example["answer"])


def _label(model: nn.Module, tokenizer, example: dict[str, Any]) -> float:
    tokens = _tokens(tokenizer, example["text"])
    logits = model(input_ids=tokens[None].to(device_of(model))).logits
    if logits.dim() != 2:
        raise UserError("A task of texts and labels needs a classifier, but the model is a language model.")
    if logits.shape[-1] == 1:
        raise UserError(
            "A task of texts and labels needs a classifier of two classes or more, but the model gives a number."
        )
    label, classes = example["label"], logits.shape[-1]
    if not 0 <= label < classes:
        raise UserError(
            f"A task's label must be one of the classifier's {classes} classes, 0 to {classes - 1}, but is {label}."
        )
    return float(_largest(logits[0]).item() == label)


_SCORERS = {"exact": _exact, "choice": _choice, "label": _label}


def _continuation(model: nn.Module, tokenizer, prompt: str, text: str) -> tuple[Tensor, Tensor]:
    """Logits ``[n, vocabulary]`` at the tokens of ``text`` after ``prompt``, and those tokens ``[n]``."""
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        return _written(model, tokenizer, prompt, text)
    before, whole = _tokens(tokenizer, prompt), _tokens(tokenizer, prompt + text)
    # A token may reach from the prompt into the text: from the first that differs on, it is the text's.
    shared = 0
    while shared < min(len(before), len(whole)) and before[shared] == whole[shared]:
        shared += 1
    shared = max(1, shared)
    if shared >= len(whole):
        raise UserError(f"A task's example must have a token to judge after its prompt, but {text[:40]!r} has none.")
    logits = model(input_ids=whole[None].to(device_of(model)), use_cache=False).logits[0]
    return logits[shared - 1 : -1].cpu(), whole[shared:]


def _written(model: nn.Module, tokenizer, prompt: str, text: str) -> tuple[Tensor, Tensor]:
    """The same of an encoder that reads ``prompt`` and a decoder that writes ``text``, to its end."""
    if model.main_input_name != "input_ids":
        raise UserError(f"A task of prompts needs a model that reads text, but a {type(model).__name__} hears.")
    (target,) = target_tokens(tokenizer, [text], None, model.config.decoder_start_token_id)
    read = torch.tensor([tokenizer(prompt).input_ids])
    given = decoder_inputs_of(model)(target[None])
    device = device_of(model)
    logits = model(input_ids=read.to(device), decoder_input_ids=given.to(device), use_cache=False).logits[0]
    return logits.cpu(), target


def _tokens(tokenizer, text: str) -> Tensor:
    ids = tokenizer(text).input_ids
    end = tokenizer.eos_token_id
    # Some tokenizers close a text, which nothing may follow then.
    return torch.tensor(ids[:-1] if len(ids) > 1 and ids[-1] == end else ids, dtype=torch.int64)


def _checked(name: str, scores: Any) -> list[float]:
    try:
        values = [float(score) for score in scores]
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{name} must return a sequence of numbers, one an example, but: {first_line(error)}."
        ) from error
    if not values:
        raise UserError(f"{name} must return a score for at least one example, but returned none.")
    if bad := [at for at, value in enumerate(values) if not math.isfinite(value)]:
        raise UserError(
            f"{name} must return finite numbers, but example {bad[0]} has {values[bad[0]]}, and {len(bad)} of {len(values)} "
            "have none."
        )
    return values
