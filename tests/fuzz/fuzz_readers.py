"""Fuzzes the readers of exported checkpoints (`torchqat/checkpoints/readers`) with libFuzzer, by Atheris.

    python tests/fuzz/fuzz_readers.py gguf|gptq|awq CORPUS... [-max_total_time=600]

An input for `gguf` is the file. One for `gptq` or `awq`, which are folders, is a list of changes to a frozen export: values
of its config.json and of the tensors' header, and bytes of either. Whatever it is, reading ends in an answer or a UserError.
"""

import copy
import json
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["torchqat", "gguf"]):
    import gguf  # noqa: F401
    import torchqat
    import torchqat.checkpoints.readers.gguf
    import torchqat.checkpoints.readers.packed
    from torchqat.checkpoints.readers import read_checkpoint

sys.path += [str(Path(__file__).parents[2] / "tools"), str(Path(__file__).parents[1] / "python")]
from freeze_vectors import ROOT, prepared
from json_places import places

VALUES = (
    None,
    True,
    -1,
    0,
    1,
    2,
    3,
    8,
    31,
    2**31,
    2**63,
    0.5,
    "",
    "F16",
    "I32",
    "BF16",
    "bits",
    [],
    [0],
    [1, 1],
    {},
    {"x": 1},
)


def changed(text: bytes, data: atheris.FuzzedDataProvider) -> bytes:
    value = json.loads(text)
    for _ in range(data.ConsumeIntInRange(0, 4)):
        found = places(value)
        if not found:
            break
        holder, key = found[data.ConsumeIntInRange(0, len(found) - 1)]
        if data.ConsumeBool():
            holder[key] = copy.deepcopy(VALUES[data.ConsumeIntInRange(0, len(VALUES) - 1)])
        elif isinstance(holder, dict):
            del holder[key]
    text = bytearray(json.dumps(value).encode())
    if data.ConsumeIntInRange(0, 7) == 0:
        text[data.ConsumeIntInRange(0, len(text) - 1)] = data.ConsumeIntInRange(0, 255)
    return bytes(text)


def write(data: bytes, folder: Path, format: str) -> None:
    """The checkpoint that an input stands for."""
    if format == "gguf":
        (folder / "model.gguf").write_bytes(data)
        return
    export, changes = ROOT / f"int4-{format}" / "export", atheris.FuzzedDataProvider(data)
    (folder / "config.json").write_bytes(changed((export / "config.json").read_bytes(), changes))
    whole = (export / "model.safetensors").read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header = changed(whole[8 : 8 + length], changes)
    file = len(header).to_bytes(8, "little") + header + whole[8 + length :]
    (folder / "model.safetensors").write_bytes(
        file[: changes.ConsumeIntInRange(0, len(file))] if changes.ConsumeBool() else file
    )


def read(data: bytes, format: str, model: object) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        write(data, Path(folder), format)
        try:
            read_checkpoint(Path(folder), model)
        except torchqat.UserError as error:
            if "\n" in str(error).strip():
                raise AssertionError("an error must be one sentence") from error


def main() -> None:
    format = sys.argv.pop(1)
    model, _ = prepared(f"int4-{format}")
    atheris.Setup(sys.argv, lambda data: read(data, format, model))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
