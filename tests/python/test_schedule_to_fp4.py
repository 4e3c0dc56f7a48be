"""Schedules that end in NVFP4 or MXFP4: 8 bits first, interrupted in every stage, to the same bits."""

import json
import shutil

import pytest
from digests import digests
from interrupting import Interrupting
from safetensors import safe_open

RECIPE = """version: 1
data: {{evaluation: {{samples: 2, sequence_length: 32}}, calibration: {{samples: 2, sequence_length: 32}}}}
layers:
  - match: "model.layers.*"
    weight: {{dtype: {kind}, scale: {scale}}}
{input}schedule:
{schedule}train: {{steps: 8, batch_size: 2, sequence_length: 32, checkpoint_every: 1, validate_every: 0, monitor: false}}
"""
STAGES = {
    "nvfp4": "  - {until: 40%, weight: int8}\n  - {until: 100%}\n",
    "mxfp4": "  - {until: 25%, weight: float}\n  - {until: 50%, weight: int8}\n  - {until: 100%}\n",
    "nvfp4 inputs": "  - {until: 40%, weight: int8, input: int8}\n  - {until: 60%, input: int8}\n  - {until: 100%}\n",
}
CASES = [("nvfp4", "learned"), ("nvfp4", "mse"), ("mxfp4", "learned"), ("nvfp4 inputs", "learned")]


@pytest.mark.parametrize(("stages", "scale"), CASES)
def test_it_trains_and_resumes_to_the_same_bits(stages, scale, begin, tmp_path):
    kind, *inputs = stages.split()
    input = f"    input: {{dtype: {kind}}}\n" if inputs else ""
    text = RECIPE.format(kind=kind, scale=scale, input=input, schedule=STAGES[stages])
    whole = begin(text)
    expected = exported(tmp_path / "run")
    shutil.rmtree(tmp_path / "run")
    for step in (2, 4, 6):  # a step of each stage
        with pytest.raises(KeyboardInterrupt):
            begin(text, Interrupting(step), resume=step > 2)
    assert begin(text, resume=True).variants[-1].kl == whole.variants[-1].kl
    assert exported(tmp_path / "run") == expected


def exported(run):
    folder = run / "exports" / "compressed-tensors"
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert config["format"] in ("nvfp4-pack-quantized", "mxfp4-pack-quantized")
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert any(name.endswith("weight_packed") for name in file.keys())  # noqa: SIM118
    return digests(run)
