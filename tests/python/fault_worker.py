"""Kills a run again and again, each time at a random moment, and goes on with it until it is done.

    python fault_worker.py RECIPE MODEL DATA FOLDER KILLS SEED

A process that has loaded everything once forks the runs, so that moments are spread over the work and not over imports. It
prints one line of JSON: how often it killed, and the digests of what the runs left.
"""

import hashlib
import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import torch
import torchqat
from torchqat.files import load_state
from torchqat.runs.progress import Progress

# A child of a process with OpenMP threads must not use them: one thread has no team to wait for.
torch.set_num_threads(1)


def work(recipe: str, model: str, data: str, folder: Path) -> None:
    loaded = torchqat.load_recipe(recipe)
    loaded.model.path, loaded.data.train = model, data
    begun = (folder / "run.json").is_file()
    torchqat.run(loaded, output=folder, resume=begun, progress=Progress(quiet=True))


def fork(*arguments) -> int:
    child = os.fork()
    if child:
        return child
    try:
        work(*arguments)
        os._exit(0)
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(1)


def digests(folder: Path) -> dict[str, str]:
    """Of every exported file, and of the trained state."""
    found = {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted((folder / "exports").rglob("*"))
        if file.is_file()
    }
    for name, tensor in load_state(folder / "checkpoints" / "train.pt")["model"].items():
        found[f"train.pt {name}"] = hashlib.sha256(
            tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()
        ).hexdigest()
    return found


def main(recipe: str, model: str, data: str, folder: str, kills: str, seed: str) -> None:
    generator, done = random.Random(int(seed)), 0
    began = time.monotonic()
    os.waitpid(fork(recipe, model, data, Path(folder) / "whole"), 0)
    seconds = time.monotonic() - began
    ends = [digests(Path(folder) / "whole")]
    while done < int(kills):
        killed = Path(folder) / "killed"
        shutil.rmtree(killed, ignore_errors=True)
        while True:
            child = fork(recipe, model, data, killed)
            if done < int(kills):
                time.sleep(generator.uniform(0.0, seconds))
                os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            if os.WIFSIGNALED(status):
                done += 1
                continue
            assert os.WEXITSTATUS(status) == 0, "a resumed run failed"
            break
        ends.append(digests(killed))
        left = [str(path) for path in killed.rglob(".*") if path.name != ".lock"]
        assert not left, f"half written: {left}"
    print(
        json.dumps(
            {
                "kills": done,
                "runs": len(ends) - 1,
                "seconds": seconds,
                "equal": all(e == ends[0] for e in ends),
                "files": len(ends[0]),
            }
        )
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
