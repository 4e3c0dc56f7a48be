"""What a run left, to be compared bit for bit."""

import hashlib
from pathlib import Path

import torch
from torchqat.files import load_state


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
