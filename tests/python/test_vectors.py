"""Exports and a training state frozen when this version of what torchqat writes came to be: read, and written again."""

import json
import sys
from pathlib import Path

import pytest
import torch
import torchqat
from sentences import matches
from torchqat.layers.sharded import whole
from torchqat.training.state import load_training, save_training

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
from freeze_vectors import CASES, ROOT, prepared


@pytest.mark.parametrize("case", CASES)
def test_frozen_exports_are_read_bit_for_bit(case):
    model, example = prepared(case)
    checked = torchqat.verify(ROOT / case / "export", model, example=example)
    assert checked.ok, checked


@pytest.mark.parametrize("case", [name for name, (format, _) in CASES.items() if format != "onnx"])
def test_the_same_bytes_are_written_today(case, tmp_path):
    """Of ONNX the graph is torch's, and changes with its versions."""
    model, example = prepared(case)
    torchqat.export(model, tmp_path / "export", CASES[case][0], example=example)
    for frozen in (ROOT / case / "export").iterdir():
        written = tmp_path / "export" / frozen.name
        if frozen.suffix == ".json":
            assert _without_versions(written) == _without_versions(frozen), frozen.name
        else:
            assert written.read_bytes() == frozen.read_bytes(), frozen.name


def _without_versions(path: Path) -> dict:
    """Configurations name the libraries that wrote them, and those add keys of their own."""
    text = json.loads(path.read_text())
    text.pop("transformers_version", None)
    return text.get("quantization_config", text)


def test_a_frozen_training_state_is_read():
    state = load_training(ROOT / "train.pt")
    model, _ = prepared("int4-gptq")
    expected = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    state.restore(model)
    assert state.facts["step"] == 3
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def test_a_training_state_of_a_later_version_is_refused(tmp_path):
    state = torch.load(ROOT / "train.pt", weights_only=True)
    torch.save({**state, "version": 2}, tmp_path / "train.pt")
    with pytest.raises(torchqat.UserError, match=matches("training.another-version", version=1, found=2)):
        load_training(tmp_path / "train.pt")


def test_a_training_state_from_before_versions_is_read(tmp_path):
    state = torch.load(ROOT / "train.pt", weights_only=True)
    del state["version"]
    torch.save(state, tmp_path / "train.pt")
    assert load_training(tmp_path / "train.pt").facts["step"] == 3


def test_a_recipe_of_another_version_is_refused(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text((ROOT / "int4-gptq" / "recipe.yaml").read_text().replace("version: 1", "version: 2"))
    with pytest.raises(
        torchqat.RecipeError, match=matches("recipe.no-whole-number", key="version", least=1, greatest=1, value=2)
    ):
        torchqat.load_recipe(str(path))


@pytest.mark.parametrize("spread", [False, True])
def test_a_training_state_from_before_widths_is_read(spread, tmp_path):
    """Its scales are those of the width in force at its step."""
    from torch.distributed.fsdp import fully_shard

    text = 'version: 1\nlayers: [{match: "*", weight: {dtype: int4, group_size: 16, scale: learned}}]\n'
    recipe = torchqat.parse_recipe(text + "schedule: [{until: 50%, weight: int8}, {until: 100%}]\n", "recipe")

    def start():
        torch.manual_seed(0)
        model = torchqat.prepare(torch.nn.Sequential(torch.nn.Linear(32, 8)), recipe)
        return (fully_shard(model, mesh=mesh) if spread else model), torchqat.Schedule(model, recipe, 8)

    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        mesh = torch.distributed.init_device_mesh("cpu", (1,))
        model, schedule = start()
        for _ in range(5):
            schedule.step()
        with torch.no_grad():
            model[0].weight_scale.mul_(1.25)
        expected = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        del model[0]._buffers["widths"]
        save_training(tmp_path / "train.pt", {"step": 5, "identity": ""}, model)
        model, schedule = start()
        load_training(tmp_path / "train.pt").restore(model)
        assert schedule.current_step == 5 and model[0].weight_bits == 4
        for name, tensor in model.state_dict().items():
            assert torch.equal(whole(tensor), whole(expected[name])), name
    finally:
        torch.distributed.destroy_process_group()
