"""Programs begun by forking a process that has imported everything, which spares each of them the seconds that imports take.

What torchrun sets for its processes is set here too; a few tests start torchrun itself (launcher.py).
"""

import contextlib
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import time
from multiprocessing import forkserver
from pathlib import Path
from unittest import mock

import torch
import torchqat.cli  # noqa: F401 (what programs of tests use)
from torch.distributed import TCPStore, fsdp  # noqa: F401
from transformers import LlamaForCausalLM  # noqa: F401
from undrawn import leave_undrawn

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload([__name__])
# A child of a process with OpenMP threads must not use them: the one that forks never has any.
ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "passive",
}


def _run(arguments: list[str], environment: dict[str, str], folder: str, name: str) -> None:
    """In the new process: ``python ARGUMENTS``, which says what it says into two files of ``folder``."""
    for descriptor, stream in ((1, "out"), (2, "err")):
        file = os.open(Path(folder, f"{name}.{stream}"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, descriptor)
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))
    leave_undrawn()
    if arguments[0] == "-m":
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = arguments
        runpy.run_path(arguments[0], run_name="__main__")


class Program:
    """``python ARGUMENTS`` on ``count`` processes; of subprocess.Popen what tests use.

    Files with what it says are left in ``folder`` under ``name``. As with torchrun, a process that fails ends the others.
    """

    def __init__(self, arguments: list, folder: Path, name: str = "program", count: int = 1, **variables: str):
        with mock.patch.dict(os.environ, {**ONE_THREAD, "PYTHONPATH": os.pathsep.join(sys.path)}):
            forkserver.ensure_running()
        self.files = [folder / f"{name}.{stream}" for stream in ("out", "err")]
        for file in self.files:
            file.write_text("")
        environment = {**os.environ, **ONE_THREAD, **variables}
        if count > 1:
            self._store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
            environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(self._store.port), "WORLD_SIZE": str(count)}
            environment |= {"LOCAL_WORLD_SIZE": str(count), "TORCHELASTIC_USE_AGENT_STORE": "True"}
            environment |= {"TORCHELASTIC_RESTART_COUNT": "0"}
        self.processes = []
        for rank in map(str, range(count)):
            ranked = {**environment, "RANK": rank, "LOCAL_RANK": rank} if count > 1 else environment
            given = (list(map(str, arguments)), ranked, str(folder), name)
            self.processes.append(_CONTEXT.Process(target=_run, args=given))
            self.processes[-1].start()

    @property
    def returncode(self) -> int | None:
        codes = [process.exitcode for process in self.processes]
        return next(filter(None, codes), None if None in codes else 0)

    def poll(self) -> int | None:
        if self.returncode:
            self.send_signal(signal.SIGTERM)
        return None if any(process.is_alive() for process in self.processes) else self.returncode

    def send_signal(self, number: int) -> None:
        for process in self.processes:
            if process.is_alive():
                with contextlib.suppress(ProcessLookupError):  # it ended in this moment, as Popen allows for, too
                    os.kill(process.pid, number)

    def wait(self, timeout: float = 300) -> int:
        end = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > end:
                self.send_signal(signal.SIGKILL)
                raise subprocess.TimeoutExpired(str(self.files[0]), timeout)
            time.sleep(0.01)
        for process in self.processes:
            process.join()
        return self.returncode

    def communicate(self, timeout: float = 300) -> tuple[str, str]:
        self.wait(timeout)
        out, err = (file.read_text() for file in self.files)
        return out, err
