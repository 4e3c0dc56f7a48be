"""A disk that is full: nothing looks whole that is not, and the sentence says why."""

import errno
import os
import subprocess

import pytest
import torch
import torchqat
from sentences import matches
from small_net import recipe_for
from torchqat.checkpoints.formats.tokenizer_files import save_tokenizer
from torchqat.files import pending_folder, save_state

numpy = pytest.importorskip("numpy")
pytest.importorskip("gguf")
FULL = os.strerror(errno.ENOSPC)


@pytest.fixture
def small_disk(tmp_path):
    """A real file system of 64 kB, where root can mount one."""
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", tmp_path], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("mounting a small file system needs root; run the tests as root to include this one")
    yield tmp_path
    subprocess.run(["umount", tmp_path], check=True)


def test_an_export_has_no_room(tiny_llama, small_disk):
    model = torchqat.prepare(tiny_llama, recipe_for("{dtype: int4, group_size: 32, grid: full, scale: learned}"))
    with pytest.raises(torchqat.UserError, match=matches("checkpoints.not-written", why=FULL)):
        torchqat.export(model, small_disk / "out")
    assert not any(small_disk.iterdir())


def test_a_state_has_no_room(small_disk):
    """In the system's words, not in those of torch's archives."""
    with pytest.raises(torchqat.UserError, match=matches("checkpoints.not-written", why=FULL)):
        save_state(small_disk / "train.pt", {"weight": torch.randn(256, 256)})
    assert not any(small_disk.iterdir())


@pytest.mark.parametrize("size", (64, 1 << 16))
def test_tensors_of_a_gguf_file_are_not_lost(size):
    from torchqat.checkpoints.formats.llama_cpp.tensor_files import TensorFiles

    with open("/dev/full", "wb", buffering=0) as file:
        files = TensorFiles.__new__(TensorFiles)
        files._places, files._missing = {"a": (file, 0, size)}, {"a"}
        with pytest.raises(OSError, match=FULL):
            files.put("a", numpy.zeros(size, numpy.uint8))


def test_a_state_says_that_the_disk_is_full(tmp_path, monkeypatch):
    def save(state, path):
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 11456 vs 11352")

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(torchqat.UserError, match="unexpected pos 11456"):
        save_state(tmp_path / "state.pt", {})
    monkeypatch.setattr("shutil.disk_usage", lambda _: _Full)
    with pytest.raises(
        torchqat.UserError, match=matches("checkpoints.not-written", path=tmp_path / "state.pt", why=FULL)
    ):
        save_state(tmp_path / "state.pt", {})
    assert not list(tmp_path.iterdir())


class _Full:
    free = 4096


class Tokenizer:
    def __init__(self, says):
        self.says = says

    def save_pretrained(self, folder):
        raise Exception(self.says)


def test_a_tokenizer_says_what_the_system_says(tmp_path):
    said = matches("checkpoints.not-written", path=tmp_path / "out", why=FULL)
    with pytest.raises(torchqat.UserError, match=said), pending_folder(tmp_path / "out") as folder:
        save_tokenizer(Tokenizer("No space left on device (os error 28)"), folder)
    with pytest.raises(torchqat.UserError, match=matches("export.tokenizer", why="no vocabulary")):
        save_tokenizer(Tokenizer("no vocabulary"), tmp_path)
    assert not list(tmp_path.iterdir())
