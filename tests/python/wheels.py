"""A wheel built here and installed away from the sources, and a program that uses it."""

import os
import subprocess
import sys

from build_folder import ROOT, alone

# Prints where torchqat is from, the instructions that it uses, and the codes that GPTQ gives: for the layer's output, since
# gradients of the model's are taken in bfloat16 where the processor multiplies it.
PROGRAM = """
import hashlib, torch, torchqat
from torch import nn
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 4))
weight = "{dtype: int4, group_size: 32, grid: full, scale: learned}"
text = f'version: 1\\nlayers: [{{match: "*", weight: {weight}}}]\\ninitialize: {{method: gptq, objective: layer}}\\n'
model = torchqat.prepare(model, torchqat.parse_recipe(text, "recipe"))
torchqat.calibrate(model, [torch.randn(64, 64)])
model(torch.randn(3, 64)).sum().backward()
print(torchqat.__file__)
print(torchqat.ops.cpu_capability())
print(hashlib.sha256(model[0].codes().numpy().tobytes()).hexdigest())
"""


def pip(*arguments):
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]


def build(folder):
    """The wheel, built against the torch here."""
    with alone():
        pip("wheel", ".", "--no-deps", "--no-build-isolation", "-q", "-w", folder)
    (wheel,) = folder.glob("*.whl")
    return wheel


def install(wheel, site):
    pip("install", "--no-deps", "-q", "--target", site, wheel)


def run(site, *before, program=PROGRAM, **variables):
    """Lines that ``program`` prints with torchqat from ``site``, on a machine with no compiler on its path."""
    environment = {**os.environ, "PYTHONPATH": str(site), "PATH": "/nowhere", **variables}
    environment.pop("LD_LIBRARY_PATH", None)
    command = [*before, sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, cwd=site, env=environment, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.split("\n")
