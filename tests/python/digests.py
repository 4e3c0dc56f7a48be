"""What a run left, to be compared bit for bit."""

import hashlib
from pathlib import Path

from torchqat.data.batch import bytes_of
from torchqat.files import load_state


def digests(folder: Path) -> dict[str, str]:
    """Of every exported file, and of the trained state."""
    found = {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted((folder / "exports").rglob("*"))
        if file.is_file()
    }
    for name, tensor in load_state(folder / "checkpoints" / "train.pt")["model"].items():
        found[f"train.pt {name}"] = hashlib.sha256(bytes_of(tensor)).hexdigest()
    return found
