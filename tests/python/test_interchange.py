"""A C++ program and Python do the same with the same weights, recipe and step, and read what the other wrote."""

import subprocess

import pytest
import torch
import torchqat
from build_folder import BUILD
from safetensors.torch import load_file, save_file
from torch import nn
from torchqat.layers.prepared import quant_layers

PROGRAM = BUILD / "tests" / "qat_interchange"

pytestmark = pytest.mark.skipif(not PROGRAM.exists(), reason="make test-cpp builds the C++ half")

RECIPES = {
    "minmax": "{dtype: int4}",
    "groups": "{dtype: int3, granularity: channel, grid: full}",
    "searched": "{dtype: int4, scale: mse, symmetric: false}",
    "learned": "{dtype: int4, scale: learned}",
    "learned_zero": "{dtype: int3, scale: learned, symmetric: false}",
}
LADDER = "schedule: [{until: 20%, weight: float}, {until: 60%, weight: int8}, {until: 100%}]"


class Net(nn.Module):
    """That of tests/interchange/interchange.cpp."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(32, 24)
        self.conv = nn.Conv2d(2, 4, 3, padding=1)
        self.layers = nn.ModuleList([nn.Linear(48, 64), nn.Linear(64, 48)])

    def forward(self, ids):
        x = self.words(ids).view(-1, 2, 4, 6)
        x = (x + self.conv(x).narrow(1, 0, 2)).flatten(1)
        return self.layers[1](torch.relu(self.layers[0](x)))


def recipe_file(folder, weight, rest=LADDER, input=""):
    file = folder / "recipe.yaml"
    rules = f'{{match: "*", weight: {weight}{input}}}, {{match: words, weight: {weight}}}'
    file.write_text(f"version: 1\nlayers: [{rules}]\n{rest}\n")
    return file


@pytest.fixture
def given(tmp_path):
    """The network, its weights and data in a file."""
    torch.manual_seed(0)
    net = Net()
    tensors = {name: p.detach().clone() for name, p in net.named_parameters()}
    tensors |= {"x": torch.randint(32, (16, 2)), "y": torch.randn(16, 48)}
    save_file(tensors, tmp_path / "given.safetensors")
    return net, tensors, tmp_path / "given.safetensors"


def cpp(*arguments):
    result = subprocess.run([PROGRAM, *map(str, arguments)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("weight", RECIPES.values(), ids=RECIPES)
@pytest.mark.parametrize("step", [0, 3, 7, 10])
def test_every_step_has_the_same_weights(tmp_path, given, weight, step):
    net, _, file = given
    recipe = recipe_file(tmp_path, weight)
    cpp("round", file, recipe, step, 10, tmp_path / "out.safetensors")
    loaded = torchqat.load_recipe(str(recipe))
    schedule = torchqat.Schedule(torchqat.prepare(net, loaded), loaded, 10)
    for _ in range(step):
        schedule.step()
    found = load_file(tmp_path / "out.safetensors")
    layers = dict(quant_layers(net))
    assert found.keys() == layers.keys() and len(layers) == 4
    for name, layer in layers.items():
        assert torch.equal(found[name], layer.quantized_weight()), name


@pytest.mark.parametrize("weight", RECIPES.values(), ids=RECIPES)
def test_training_gives_the_same_codes(tmp_path, given, weight):
    net, tensors, file = given
    recipe = recipe_file(tmp_path, weight)
    cpp("train", file, recipe, 20, tmp_path / "out")
    loaded = torchqat.load_recipe(str(recipe))
    torchqat.prepare(net, loaded)
    # As LibTorch's, which knows nothing of scales, moves them; Python's would have them in groups of their own.
    optimizer = torch.optim.SGD([{"params": net.parameters(), "relative": False}], 0.05)
    schedule = torchqat.Schedule(net, loaded, 20, optimizer)
    for _ in range(20):
        optimizer.zero_grad()
        (net(tensors["x"]) - tensors["y"]).square().mean().backward()
        optimizer.step()
        schedule.step()
    ours = {w.name: w for w in torchqat.convert(net)}
    for theirs in torchqat._C.load_checkpoint(str(tmp_path / "out")).layers:
        assert torch.equal(theirs.codes, ours[theirs.name].codes), theirs.name
        assert torch.equal(theirs.scale, ours[theirs.name].scale), theirs.name


@pytest.mark.parametrize("method", ["rtn", "mse", "gptq", "awq"])
def test_calibration_gives_the_same_codes(tmp_path, given, method):
    net, tensors, file = given
    input = ", input: {dtype: int8, granularity: tensor}"
    rest = f"initialize: {{method: {method}{', objective: layer, correction: 0.0' if method == 'gptq' else ''}}}"
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        'version: 1\nlayers: [{match: "layers.*", weight: {dtype: int4, scale: mse}' + input + "}]\n" + rest + "\n"
    )
    cpp("calibrate", file, recipe, tmp_path / "out")
    loaded = torchqat.load_recipe(str(recipe))
    torchqat.calibrate(torchqat.prepare(net, loaded), [tensors["x"]])
    ours = {w.name: w for w in torchqat.convert(net)}
    for theirs in torchqat._C.load_checkpoint(str(tmp_path / "out")).layers:
        for leaf in ("codes", "scale", "input_scale"):
            assert torch.equal(getattr(theirs, leaf), getattr(ours[theirs.name], leaf)), (theirs.name, leaf)


def test_python_loads_what_cpp_trained(tmp_path, given):
    _, tensors, file = given
    cpp("train", file, recipe_file(tmp_path, RECIPES["learned"]), 10, tmp_path / "out")
    net = torchqat.load(Net(), tmp_path / "out")
    save_file({"x": tensors["x"]}, tmp_path / "x.safetensors")
    cpp("run", tmp_path / "out", tmp_path / "x.safetensors", tmp_path / "y.safetensors")
    theirs = load_file(tmp_path / "y.safetensors")
    assert torch.equal(net(tensors["x"]), theirs["plain"])
    packed = torchqat.load(Net(), tmp_path / "out", packed=True)
    assert torch.equal(packed(tensors["x"]), theirs["packed"])


@pytest.mark.parametrize("input", ["", ", input: {dtype: int8, granularity: tensor}"], ids=["weights", "inputs"])
def test_cpp_loads_what_python_trained_and_gives_it_back_bit_for_bit(tmp_path, given, input):
    net, tensors, _ = given
    rules = f'{{match: "layers.*", weight: {{dtype: int4, group_size: 16}}{input}}}'
    rules += ", {match: conv, weight: {dtype: int8}}"
    recipe = torchqat.parse_recipe(f"version: 1\nlayers: [{rules}]\n", "r.yaml")
    torchqat.prepare(net, recipe)
    torchqat.calibrate(net, [tensors["x"]])
    torchqat.export(net, tmp_path / "python", format="safetensors")
    cpp("export", tmp_path / "python", tmp_path / "cpp")
    ours, theirs = load_file(tmp_path / "python/model.safetensors"), load_file(tmp_path / "cpp/model.safetensors")
    conv = [name for name in ours if name.startswith("conv.")]  # a float layer there, which has no packed form
    assert len(conv) == 3
    for name in ours.keys() - set(conv):
        assert torch.equal(ours[name], theirs[name]), name
    save_file({"x": tensors["x"]}, tmp_path / "x.safetensors")
    cpp("run", tmp_path / "python", tmp_path / "x.safetensors", tmp_path / "y.safetensors")
    net.eval()
    assert torch.equal(net(tensors["x"]), load_file(tmp_path / "y.safetensors")["plain"])
