"""What torchqat does where torch and numpy alone are installed, and the sentence for what needs more."""

import importlib.metadata as metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest
import requirements
import torchqat
from sentences import sentence

# The life of a model, each line of which a user may write without any other library.
PROGRAM = """
import sys, torch, torchqat
from torch import nn

text = '''version: 1
layers: [{match: "*", weight: {dtype: int4, group_size: 32, scale: learned}}]
initialize: {method: gptq}
schedule: [{until: 50%, weight: int8}, {until: 100%, weight: int4}]
'''
recipe = torchqat.parse_recipe(text, "recipe")
model = torchqat.prepare(nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 4)), recipe)
torchqat.calibrate(model, [torch.randn(8, 64)])
optimizer = torch.optim.AdamW(torchqat.parameter_groups(model, recipe.train))
schedule = torchqat.Schedule(model, recipe, total_steps=4, optimizer=optimizer)
for _ in range(4):
    model(torch.randn(8, 64)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    schedule.step()
print(torchqat.export(model, sys.argv[1], "safetensors"))
print(sorted({name.partition(".")[0] for name in sys.modules} & {"transformers", "safetensors", "rich", "typer"}))
"""


def _closure(names):
    """Distributions that those of ``names`` need, with themselves."""
    found, ahead = {}, list(names)
    while ahead:
        name = ahead.pop()
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue  # for another system or Python
        if distribution.name not in found:
            found[distribution.name] = distribution
            needed = [one for one in distribution.requires or [] if "extra ==" not in one]
            ahead += [re.match(r"[\w.-]+", one)[0] for one in needed]
    return found.values()


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """Runs Python where nothing is but torch, numpy, what these need, and torchqat; returns what ended it and was said."""
    site = tmp_path_factory.mktemp("site")
    for distribution in _closure(["torch", "numpy"]):
        for top in {file.parts[0] for file in distribution.files or [] if not file.parts[0].startswith((".", "_"))}:
            source = Path(distribution.locate_file(top))
            if source.exists() and not (site / top).exists():
                (site / top).symlink_to(source)
    (site / "torchqat").symlink_to(Path(torchqat.__file__).parent)

    def run(*arguments, cwd=site):
        command = [sys.executable, "-S", "-E", "-c", f"import sys; sys.path.insert(0, {str(site)!r})\n{arguments[0]}"]
        done = subprocess.run(
            [*command, *map(str, arguments[1:])], capture_output=True, text=True, cwd=cwd, timeout=120
        )
        return done.returncode, done.stdout, done.stderr

    return run


def test_what_takes_long_to_import_waits_until_it_is_asked_for():
    """The compiler of torch alone takes as long as the rest of torch."""
    long = {"torch._dynamo", "sympy", "transformers", "scipy", "matplotlib", "torch.distributed.fsdp"}
    program = f"import sys, torchqat; print({long} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.stdout == "set()\n", done.stderr


def test_from_prepare_to_export_torch_and_numpy_are_enough(bare, tmp_path):
    code, out, err = bare(PROGRAM, tmp_path / "out")
    assert code == 0, err
    assert out == f"{tmp_path / 'out'}\n[]\n"
    assert (tmp_path / "out" / "model.safetensors").is_file()


NEEDS_MORE = {
    "torchqat.verify(sys.argv[1], model)": ("Reading a checkpoint", "safetensors", "hf"),
    "torchqat.run(recipe, model='m', data='d', output='run')": ("Loading a model", "transformers", "hf"),
    "torchqat.export(model, sys.argv[1] + '.gguf', 'gguf')": ("A GGUF file", "gguf", "hf"),
    "torchqat.TrainerCallback": ("TrainerCallback", "transformers", "hf"),
    "torchqat.attach_adapters(model)": ("LoRA", "peft", "lora"),
}


def test_what_needs_more_says_what(bare, tmp_path):
    tried = [f"try:\n    {line}\nexcept torchqat.UserError as error:\n    print(error)" for line in NEEDS_MORE]
    code, out, err = bare("\n".join([PROGRAM, *tried]), tmp_path / "out")
    assert code == 0, err
    for line, (what, library, extra) in zip(out.splitlines()[2:], NEEDS_MORE.values(), strict=True):
        assert line == sentence("extras.missing", what=what, library=library, extra=extra)


def test_the_command_line_says_what_it_needs(bare):
    code, out, err = bare("import runpy; runpy.run_module('torchqat', run_name='__main__', alter_sys=True)")
    needed = sentence("extras.missing", what="The command line", library="typer", extra="cli")
    assert (code, out, err) == (2, "", f"torchqat: {needed}\n")


def test_extras_that_sentences_name_are_there():
    named = {
        name
        for file in Path(torchqat.__file__).parent.rglob("*.py")
        for name in re.findall(r"needs\(\"(\w+)\", \"", file.read_text(encoding="utf-8"))
    }
    assert named >= {"hf", "report", "lora", "cli"} and named <= requirements.PROJECT["optional-dependencies"].keys()


def test_all_of_torchqat_are_the_libraries_of_its_parts():
    found = requirements.required(["all"])
    assert {"torch>=2.11", "numpy", "typer", "matplotlib", "transformers>=5.12,<6"} <= set(found)
    assert not [one for one in found if one.startswith("torchqat")]
