"""Freed memory is kept while a calibration runs, and given back after; a user's own settings count."""

import resource
import subprocess
import sys

import pytest
from torchqat.ptq import freed_memory

# Pages that a second and a third round of 120 MB cost, each freed before the next, and what the process holds when they are
# freed and when the end gave them back; in a process of its own, since others have used their memory before.
PROGRAM = """
import resource
import psutil
import torch
from torchqat.ptq.freed_memory import keeping_freed_memory

with keeping_freed_memory():
    for number in range(3):
        if number == 1:
            begun = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        tensors = [torch.zeros(3 << 18) for _ in range(40)]
        tensors.clear()
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - begun
    within = psutil.Process().memory_info().rss
print(faults, within - psutil.Process().memory_info().rss)
"""
ROUND = 40 * 3 << 20


needs_glibc = pytest.mark.skipif(
    freed_memory._glibc() is None or freed_memory.is_set_by_user(), reason="the allocator is not glibc's as it comes"
)


@needs_glibc
def test_memory_is_kept_within_and_given_back_after():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    faults, given_back = map(int, done.stdout.split())
    assert faults < 0.1 * 2 * ROUND / resource.getpagesize()
    assert given_back > 0.8 * ROUND


@pytest.mark.parametrize("name, value", [("MALLOC_TRIM_THRESHOLD_", "1"), ("GLIBC_TUNABLES", "glibc.malloc.top_pad=1")])
def test_what_the_user_has_set_stays(name, value, monkeypatch):
    class Watched:
        def __getattr__(self, name):
            raise AssertionError(name)

    monkeypatch.setenv(name, value)
    monkeypatch.setattr(freed_memory, "_glibc", Watched)
    with freed_memory.keeping_freed_memory():
        pass
