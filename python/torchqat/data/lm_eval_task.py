"""Tasks of EleutherAI's lm-evaluation-harness as the user's task, where ``lm_eval`` is installed."""

import contextlib
import io
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import nn

from torchqat.errors import UserError, first_line

PREFIX = "lm-eval:"
# Of the metrics that score an example, the first that a task has.
_METRICS = ("acc_norm", "acc", "exact_match", "em", "f1", "mc2", "mc1")
_BATCH_SIZE = 8


class LmEvalTask:
    """``scores(model, tokenizer)`` of one task, an example each.

    Args:
        name: As lm-eval calls it, or a YAML file of a task in its form.

    Raises:
        UserError: lm-eval is not installed, or there is no such task.
    """

    def __init__(self, name: str):
        try:
            from lm_eval.tasks import TaskManager
        except ImportError as error:
            raise UserError(
                f"evaluate.task {PREFIX}{name} needs lm-eval, which is not installed: pip install torchqat[lm-eval]."
            ) from error
        file = Path(name)
        with _quiet():
            if file.suffix in (".yaml", ".yml"):
                self.name = _name_in(file)
                self.manager = TaskManager(include_path=str(file.parent), include_defaults=False)
            else:
                self.name, self.manager = name, TaskManager()
        if self.name not in self.manager.all_tasks:
            raise UserError(f"evaluate.task must name a task of lm-eval, but it has none called {self.name or name}.")

    def __call__(self, model: nn.Module, tokenizer: Any) -> list[float]:
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM

        try:
            with _quiet():
                found = simple_evaluate(
                    model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=_BATCH_SIZE),
                    tasks=[self.name],
                    task_manager=self.manager,
                    log_samples=True,
                    bootstrap_iters=0,
                )
        except Exception as error:
            raise UserError(f"lm-eval could not run {self.name}: {first_line(error)}") from error
        samples = found["samples"].get(self.name)
        if not samples:
            raise UserError(f"evaluate.task must be a single task of lm-eval, but {self.name} is a group.")
        return _scores(self.name, samples)


def _name_in(file: Path) -> str:
    """The task that ``file`` defines; not parsed as YAML, since such files name functions by tags of their own."""
    try:
        found = re.search(r"^task:\s*[\"']?([\w./-]+)", file.read_text(encoding="utf-8"), re.MULTILINE)
    except OSError as error:
        raise UserError(f"evaluate.task must name a file that can be read, but {file}: {error.strerror}.") from error
    return found[1] if found else ""


def _scores(name: str, samples: list[dict[str, Any]]) -> list[float]:
    """One number an example, by its first filter."""
    first = samples[0]
    metric = next((metric for metric in _METRICS if isinstance(first.get(metric), (int, float))), None)
    if metric is None:
        raise UserError(
            f"evaluate.task must score examples by {', '.join(_METRICS)}, but {name} has {', '.join(first['metrics'])}."
        )
    chosen = [sample for sample in samples if sample.get("filter") == first.get("filter")]
    return [float(sample[metric]) for sample in sorted(chosen, key=lambda sample: sample["doc_id"])]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """lm-eval tells more of itself than whoever asked for a score wants to read."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)
