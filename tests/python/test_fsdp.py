"""Models that are spread over processes (FSDP2, gloo): what one process gives, checkpoints for any number of them."""

import json
import re
import signal
import subprocess
from pathlib import Path

import pytest
import torch
from launcher import said_by, wait_until
from sentences import matches
from torchqat.checkpoints.convert import convert
from torchqat.errors import UserError
from torchqat.runs.restore import open_run, trained_model
from torchqat.training.state import load_training

# Without clipping: the norm of all gradients is a sum whose order depends on how they are spread.
FSDP = ", strategy: fsdp, gradient_clip: 0"
ALL = ", strategy: fsdp, gradient_checkpointing: true, compile: true, mixed_precision: bfloat16, cpu_offload: true"


def weights(folder):
    """What would be exported, layer by layer: of the last step, since the best one may be that before training."""
    return {layer.name: layer for layer in convert(trained_model(open_run(folder)))}


def figures(folder, name="loss"):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return torch.tensor([line[name] for line in lines if name in line])


def assert_equal(one, other):
    assert one.keys() == other.keys() and len(one) == 14
    for name, layer in one.items():
        assert torch.equal(layer.codes, other[name].codes) and torch.equal(layer.scale, other[name].scale), name


def share_of_equal_codes(one, other):
    equal = [(layer.codes == other[name].codes).double().mean() for name, layer in one.items()]
    return torch.stack(equal).mean().item()


@pytest.mark.shows(trainer="`torchqat train`", feature="several processes (FSDP2)")
@pytest.mark.parametrize("scale", ["minmax", "mse", "learned"])
def test_two_processes_give_the_codes_of_one(scale, train):
    alone = train.alone(SCALE=scale, ACCUMULATION=2, VALIDATE=0, MORE=FSDP)
    together, printed = train("together", 2, SCALE=scale, ACCUMULATION=2, VALIDATE=0, MORE=FSDP)
    assert not (together / "checkpoints" / "train.pt").exists()
    assert torch.equal(figures(alone), figures(together))
    assert_equal(weights(alone), weights(together))
    assert len(re.findall(matches("runs.trained-state"), printed)) == 1


def test_the_best_state_is_found_and_kept_as_by_one_process(train):
    alone = train.alone(ACCUMULATION=2, MORE=FSDP)
    together, _ = train("together", 2, ACCUMULATION=2, MORE=FSDP)
    assert torch.equal(figures(alone, "validation_kl"), figures(together, "validation_kl"))
    best = [load_training(folder / "checkpoints" / "best.pt") for folder in (alone, together)]
    assert best[0].facts["kl"] == best[1].facts["kl"] and best[0].facts["step"] == best[1].facts["step"]
    assert best[1].path.parent.name == "best"
    assert_equal(weights(alone), weights(together))


def test_four_processes_come_to_the_same_but_for_the_order_of_sums(train):
    alone = train.alone(VALIDATE=0, MORE=", strategy: fsdp")
    together, _ = train("together", 4, VALIDATE=0, MORE=", strategy: fsdp")
    torch.testing.assert_close(figures(alone), figures(together), rtol=1e-4, atol=1e-5)
    assert share_of_equal_codes(weights(alone), weights(together)) > 0.999


@pytest.mark.parametrize("processes", [1, 4])
def test_a_run_goes_on_with_another_number_of_processes(processes, train, tmp_path):
    whole = train.alone(ACCUMULATION=2, VALIDATE=0, MORE=FSDP)
    process = train.start("parts", 2, ACCUMULATION=2, VALIDATE=0, MORE=FSDP)
    checkpoints = tmp_path / "parts" / "checkpoints" / "train"
    wait_until(lambda: checkpoints.is_dir() and any(p.name.isdigit() for p in checkpoints.iterdir()), process)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    stopped = load_training(tmp_path / "parts" / "checkpoints" / "train.pt").facts["step"]
    assert stopped in (2, 4, 6, 8)
    resumed, _ = train("parts", processes, "--resume", ACCUMULATION=2, VALIDATE=0, MORE=FSDP)
    if processes == 1:
        assert_equal(weights(whole), weights(resumed))
    assert share_of_equal_codes(weights(whole), weights(resumed)) > 0.999


@pytest.mark.parametrize("strategy", ["fsdp", "ddp"])
def test_all_that_saves_time_and_memory_together(strategy, train):
    """Accumulation, activation checkpointing, torch.compile, products in bfloat16, parts offloaded: two processes as one,
    and near to one that does without, whose products are not rounded to bfloat16."""
    more = ALL if strategy == "fsdp" else ALL.replace("fsdp", "ddp").replace(", cpu_offload: true", "")
    plain = train.alone(ACCUMULATION=2, VALIDATE=0)
    alone = train.alone(ACCUMULATION=2, VALIDATE=0, MORE=more)
    together, _ = train("together", 2, ACCUMULATION=2, VALIDATE=0, MORE=more)
    torch.testing.assert_close(figures(alone), figures(together), rtol=0.0, atol=1e-6)
    torch.testing.assert_close(figures(plain), figures(together), rtol=0.0, atol=2e-4)
    assert share_of_equal_codes(weights(alone), weights(together)) > 0.999
    assert share_of_equal_codes(weights(plain), weights(together)) > 0.9


def test_adapters_are_merged_when_the_run_is_opened(train):
    more = f"{FSDP}, parameters: lora, lora: {{rank: 4, alpha: 8}}"
    alone = train.alone(ACCUMULATION=2, VALIDATE=0, MORE=more)
    together, _ = train("together", 2, ACCUMULATION=2, VALIDATE=0, MORE=more)
    assert torch.equal(figures(alone), figures(together))
    assert_equal(weights(alone), weights(together))


def test_scales_of_inputs_that_are_learned(train):
    """One number a layer, so that all processes but the first hold nothing of it."""
    given = "input: {dtype: int8, granularity: tensor, scale: learned}"
    alone = train.alone(INPUT=given, ACCUMULATION=2, VALIDATE=0, MORE=FSDP)
    together, _ = train("together", 2, INPUT=given, ACCUMULATION=2, VALIDATE=0, MORE=FSDP)
    one, two = weights(alone), weights(together)
    for name, layer in one.items():
        torch.testing.assert_close(layer.input_scale, two[name].input_scale, rtol=1e-4, atol=0.0, msg=name)


def test_what_calibration_found_is_dealt_out(train):
    """Codes and scales of GPTQ, ranges of inputs: the first process alone has calibrated."""
    options = {
        "SCALE": "mse",
        "INPUT": "input: {dtype: int8, granularity: tensor, observer: percentile}",
        "TOP": "initialize: {method: gptq}",
        "ACCUMULATION": 2,
        "VALIDATE": 0,
        "MORE": FSDP,
    }
    alone = train.alone(**options)
    together, printed = train("together", 2, **options)
    assert len(re.findall(matches("runs.calibrating", method="gptq"), printed)) == 1
    assert torch.equal(figures(alone), figures(together))
    one, two = weights(alone), weights(together)
    assert_equal(one, two)
    assert all(torch.equal(layer.input_scale, two[name].input_scale) for name, layer in one.items())


OUTLINES = """
import sys, torchqat
from pathlib import Path
from torchqat.training.processes import processes, rank
from torchqat.runs.progress import Progress
from torchqat.runs.run import Run

with processes():
    recipe = torchqat.load_recipe("RECIPE")
    recipe.model.path, recipe.data.train = "MODEL", "DATA"
    run = Run(recipe, Path("OUT"), Progress())
    model = run.prepared(run.plan)
    held = [p for m in (run.original, model) for p in m.parameters() if not p.is_meta]
    tied = model.lm_head.weight is model.model.embed_tokens.weight
    sys.stdout.write(f"process {rank()} holds {len(held)} of {2 * len(list(run.original.parameters()))}, tied: {tied}\\n")
"""


def test_the_first_process_alone_reads_the_model(tmp_path, model_folder, data_folder):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "version: 1\nlayers: [{match: 'model.layers.*', weight: {dtype: int4, group_size: 32, scale: mse}}]\n"
        "data: {evaluation: {samples: 4, sequence_length: 32}, calibration: {samples: 4, sequence_length: 32}}\n"
        "train: {strategy: fsdp, sequence_length: 32, steps: 2}\n"
    )
    places = {"RECIPE": recipe, "MODEL": model_folder, "DATA": data_folder, "OUT": tmp_path / "run"}
    text = OUTLINES
    for name, path in places.items():
        text = text.replace(name, str(path))
    printed = said_by(text, tmp_path, 2)
    assert "process 0 holds 40 of 40, tied: True" in printed
    assert "process 1 holds 0 of 40, tied: True" in printed


PATIENT = """
import sys, time
from datetime import timedelta
from torchqat.training import processes as distributed

distributed._TIMEOUT = timedelta(seconds=2)
with distributed.processes():
    if distributed.is_first():
        time.sleep(4)
    distributed.wait_for_first()
    distributed.wait()
    sys.stdout.write("waited\\n")
"""


def test_others_wait_for_the_first_longer_than_for_each_other(tmp_path):
    """It may calibrate for hours before a model is dealt out."""
    assert said_by(PATIENT, tmp_path, 2).count("waited") == 2


def test_a_damaged_part_is_said(train, tmp_path):
    folder, _ = train("run", 2, MORE=FSDP)
    (state,) = (folder / "checkpoints" / "train").iterdir()
    part = max(state.glob("*.safetensors"), key=lambda path: path.stat().st_size)
    part.write_bytes(part.read_bytes()[: part.stat().st_size // 2])
    with pytest.raises(UserError, match=matches("training.checkpoint-does-not-load")):
        trained_model(open_run(folder))


WORKER = """
import sys, torch, torchqat
from torch import nn
from torchqat.training.spread import shard
from torchqat.training.processes import processes, rank
from torchqat.training.finite import first_not_finite, scale_not_finite
from torchqat.layers.quant_layer import QuantLayer
from torchqat.layers.sharded import local

with processes():
    recipe = torchqat.load_recipe("RECIPE")
    model = torchqat.prepare(nn.Sequential(nn.Linear(32, 8), nn.Linear(8, 8)), recipe)
    shard(model, QuantLayer)
    sys.stdout.write(f"before {[scale_not_finite(model), first_not_finite(model, lambda: None)]}\\n")
    if rank() == 1:
        local(model[1].weight_scale.detach())[:] = float("nan")
    sys.stdout.write(f"after {[scale_not_finite(model), first_not_finite(model, lambda: None)]}\\n")
"""


def test_a_number_that_is_none_in_one_part_is_named_by_all_processes(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("version: 1\nlayers: [{match: '*', weight: {dtype: int4, group_size: 8, scale: learned}}]\n")
    printed = said_by(WORKER.replace("RECIPE", str(recipe)), tmp_path, 2)
    assert printed.count("before ['', '']") == 2
    assert printed.count("after ['1.weight_scale', '1.weight_scale']") == 2


ENDS = """
import sys, torch
from torch import nn
from torchqat.training.spread import shard
from torchqat.training.processes import first_said, processes
from torchqat.layers.quant_layer import QuantLayer

with processes():
    model = shard(nn.Sequential(nn.Linear(32, 8), nn.Linear(8, 8)), QuantLayer)
    first_said([])
    sys.stdout.write("ends\\n")
"""


def test_programs_end_though_gloo_lets_go_late(tmp_path, monkeypatch):
    """Its threads outlive the group; one that holds a tensor when Python ends aborts it: one run in a hundred did."""
    late = tmp_path / "late_gloo.so"
    source = Path(__file__).with_name("late_gloo.c")
    subprocess.run(["cc", "-shared", "-fPIC", source, "-o", late, "-ldl"], check=True)
    monkeypatch.setenv("LD_PRELOAD", str(late))
    assert said_by(ENDS, tmp_path, 2, by_torchrun=True).count("ends") == 2
