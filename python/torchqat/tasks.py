"""Tasks, by their documented name."""

from torchqat.data.tasks import Task as Task
from torchqat.data.tasks import load_task as load_task
