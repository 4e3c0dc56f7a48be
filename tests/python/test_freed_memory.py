"""Freed memory is kept while a calibration runs, and given back after; a user's own settings count."""

import subprocess
import sys

import pytest
from torchqat.ptq import freed_memory


# Pages that a second and a third round of 120 MB cost, each freed before the next, within and after; in a process of its
# own, since others have used their memory before.
FAULTS = """
import resource
import torch
from torchqat.ptq.freed_memory import keeping_freed_memory

def faults():
    begun = 0
    for number in range(3):
        if number == 1:
            begun = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        tensors = [torch.zeros(3 << 18) for _ in range(40)]
        tensors.clear()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - begun

with keeping_freed_memory():
    within = faults()
print(within, faults())
"""


needs_glibc = pytest.mark.skipif(
    freed_memory._glibc() is None or freed_memory.is_set_by_user(), reason="the allocator is not glibc's as it comes"
)


@needs_glibc
def test_memory_is_kept_within_and_given_back_after():
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    within, after = map(int, done.stdout.split())
    assert within * 5 < after


@pytest.mark.parametrize("name, value", [("MALLOC_TRIM_THRESHOLD_", "1"), ("GLIBC_TUNABLES", "glibc.malloc.top_pad=1")])
def test_what_the_user_has_set_stays(name, value, monkeypatch):
    class Watched:
        def __getattr__(self, name):
            raise AssertionError(name)

    monkeypatch.setenv(name, value)
    monkeypatch.setattr(freed_memory, "_glibc", Watched)
    with freed_memory.keeping_freed_memory():
        pass
