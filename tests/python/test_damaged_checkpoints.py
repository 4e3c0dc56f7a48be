"""Checkpoints that a stranger may have written: whatever is in them, reading ends in an answer or in one sentence."""

import json
import random
from pathlib import Path

import architectures
import pytest
import torch
import torchqat
from json_places import places
from safetensors.torch import load_file, save_file
from sentences import matches
from small_net import recipe_for
from torchqat.verification.result import Verification

FOLDERS = ("compressed-tensors", "gptq", "gptq_v2", "awq", "modelopt", "safetensors")
GROUPS = "{dtype: int4, group_size: 32, grid: full, scale: mse, scale_dtype: float16}"
CHANGES = 40


@pytest.fixture(scope="module")
def model():
    return torchqat.prepare(architectures.build("Llama"), recipe_for(GROUPS))


def read(folder, model):
    """Anything but an answer or a ``UserError`` fails the test."""
    try:
        found = torchqat.verify(folder, model, engine="reader")
    except torchqat.UserError as error:
        assert "\n" not in str(error).strip()
        return None
    assert isinstance(found, Verification)
    return found


def changed_tensors(tensors, generator):
    """One of them gone, of another shape or dtype, with other numbers, or twice."""
    tensors = dict(tensors)
    name = generator.choice(sorted(tensors))
    tensor, kind = tensors.pop(name), generator.randrange(6)
    if kind == 1:
        tensors[name] = tensor.flatten()[: max(1, tensor.numel() // 2)].clone()
    elif kind == 2:
        tensors[name] = tensor.to(
            generator.choice((torch.float32, torch.int32, torch.uint8, torch.float16, torch.int64))
        )
    elif kind == 3:
        tensors[name] = torch.full_like(tensor, generator.choice((0, 1, 127)))
    elif kind == 4:
        tensors[name + ".more"] = tensor
    elif kind == 5:
        tensors[name] = tensor.reshape(1, *tensor.shape)
    return tensors


def changed_text(text, generator):
    """A configuration with a value exchanged, or a piece missing."""
    if generator.random() < 0.3:
        begin = generator.randrange(len(text))
        return text[:begin] + text[begin + generator.randrange(1, 20) :]
    config = json.loads(text)
    holder, key = generator.choice(places(config["quantization_config"]))
    holder[key] = generator.choice((None, -1, 0, 3, 10**12, "x", [], {}, True, 0.5))
    return json.dumps(config)


@pytest.mark.parametrize("format", FOLDERS)
def test_folders(format, model, tmp_path):
    folder = torchqat.export(model, tmp_path / "out", format)
    assert read(folder, model).ok
    tensors, text = load_file(folder / "model.safetensors"), (folder / "config.json").read_text()
    generator, refused = random.Random(0), 0
    for _ in range(CHANGES):
        (folder / "config.json").write_text(text)
        save_file(changed_tensors(tensors, generator), folder / "model.safetensors")
        found = read(folder, model)
        refused += found is None or not found.ok
    assert refused > CHANGES // 2
    save_file(tensors, folder / "model.safetensors")
    for _ in range(CHANGES):
        (folder / "config.json").write_text(changed_text(text, generator))
        read(folder, model)


@pytest.mark.parametrize("format", ["gguf", "safetensors"])
def test_bytes(format, model, tmp_path):
    folder = torchqat.export(model, tmp_path / "out", format)
    assert read(folder, model).ok
    (file,) = [path for path in folder.iterdir() if path.suffix in (".gguf", ".safetensors")]
    whole, generator = file.read_bytes(), random.Random(0)
    for _ in range(CHANGES):
        data = bytearray(whole)
        for _ in range(generator.choice((1, 4, 32))):  # most of them where the names and sizes are
            data[min(int(generator.expovariate(1 / 3000)), len(data) - 1)] = generator.randrange(256)
        file.write_bytes(data[: generator.choice((len(data), len(data), generator.randrange(len(data))))])
        read(folder, model)


def test_names_are_never_files(model, tmp_path):
    """A tensor called as a path leads to, written nowhere."""
    folder = torchqat.export(model, tmp_path / "out", "safetensors")
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, "../../escaped": torch.zeros(2)}, folder / "model.safetensors")
    before = sorted(tmp_path.rglob("*"))
    found = read(folder, model)
    assert found is not None and "../../escaped" in found.unexpected
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("file", sorted((Path(__file__).parents[1] / "fuzz" / "corpus" / "gguf").iterdir()))
def test_what_fuzzing_found_in_gguf_files(file, model, tmp_path):
    """Each kept the gguf package busy or made it raise something else."""
    (tmp_path / "model.gguf").write_bytes(file.read_bytes())
    with pytest.raises(torchqat.UserError, match=matches("checkpoints.gguf-does-not-load")):
        torchqat.verify(tmp_path, model, engine="reader")
