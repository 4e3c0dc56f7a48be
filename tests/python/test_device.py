"""Which device is meant by what, and what is said where there is none."""

import json

import pytest
import torch
import torchqat
from command import call
from conftest import PTQ
from pretend_gpu import PretendGpu
from sentences import matches, said, sentence
from torch import nn
from torchqat.device import CPU, device_of, find_device
from torchqat.runs.float_model import FloatModel
from torchqat.runs.progress import Progress

CUDA = torch.device("cuda:0")
ROUNDED = PTQ.replace("gptq", "mse") + "train: {steps: 0}\n"


@pytest.fixture
def here(monkeypatch):
    """Makes torch see GPUs, and torchqat be built for them or not."""

    def here(gpus=1, built=True, refuses=""):
        monkeypatch.setattr("torchqat.device.BUILT_WITH_CUDA", built)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: min(1, gpus - 1))
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "Tesla")
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (6, 1))
        monkeypatch.setattr("torchqat.device._refusal", lambda gpu: refuses)

    return here


@pytest.mark.parametrize("word", ["gpu", "cuda:", "cuda:x", "mps", "CPU", "cuda:0 "])
def test_words_that_are_no_device(word):
    with pytest.raises(torchqat.UserError, match=matches("device.none", word=word)):
        find_device(word)


def test_auto_is_a_gpu_that_torchqat_was_built_for(here):
    here(gpus=0)
    assert find_device() == find_device("cpu") == CPU
    here(gpus=2)
    assert find_device("auto") == find_device("cuda") == torch.device("cuda:1"), "the current one"
    assert find_device("cuda:0") == find_device(CUDA) == CUDA and find_device("cpu") == CPU


@pytest.mark.parametrize(
    "gpus, built, refuses, word, key, values",
    [
        (0, True, "", "cuda", "device.no-gpu", {}),
        (1, True, "", "cuda:1", "device.beyond", {"there": "one GPU, cuda:0"}),
        (4, True, "", "cuda:4", "device.beyond", {"there": "4 GPUs, cuda:0 to cuda:3"}),
        (2, False, "", "cuda:1", "device.not-built", {}),
        (
            1,
            True,
            "no kernel",
            "cuda",
            "device.kernels-fail",
            {"name": "Tesla", "capability": "6.1", "why": "no kernel"},
        ),
    ],
)
def test_a_gpu_that_is_asked_for_is_used_or_refused(gpus, built, refuses, word, key, values, here):
    here(gpus, built, refuses)
    with pytest.raises(torchqat.UserError) as error:
        find_device(word)
    known = {"word": word, **values}
    texts = {  # each key is written out, so that test_sentences sees it
        "device.no-gpu": lambda: sentence("device.no-gpu", **known),
        "device.beyond": lambda: sentence("device.beyond", **known),
        "device.not-built": lambda: sentence("device.not-built", **known),
        "device.kernels-fail": lambda: sentence("device.kernels-fail", **known),
    }
    assert str(error.value) == texts[key]()
    told = []
    if key != "device.beyond":
        assert find_device("auto", told.append) == CPU and len(told) == (gpus > 0)


def test_an_operator_is_tried_there(monkeypatch):
    with PretendGpu():
        monkeypatch.setattr("torchqat.device.BUILT_WITH_CUDA", True)
        assert find_device("cuda") == CUDA
    monkeypatch.setattr("torchqat.device.BUILT_WITH_CUDA", True)
    refused = pytest.raises(torchqat.UserError, match=matches("device.kernels-fail", name="Pretended"))
    with PretendGpu("xla:0"), refused:  # cuda:0 has no kernels then
        find_device("cuda")


def test_what_auto_leaves_alone_is_said_once_in_a_run(here, recipe_file, capsys):
    here(gpus=1, built=False)
    model = FloatModel(torchqat.load_recipe(str(recipe_file)), Progress())
    assert model.device == model.device == CPU
    assert capsys.readouterr().err == sentence("device.left-alone") + "\n"


def test_a_recipe_an_option_and_python_name_the_device(arguments, recipe_file, begin, here, tmp_path, capsys):
    here(gpus=1, built=False)
    recipe_file.write_text(PTQ + "device: cuda\n")
    code, _, err = call(capsys, "ptq", *arguments)
    assert code == 2 and said(err, "device.not-built", word="cuda") and not (tmp_path / "run").exists()
    code, _, err = call(capsys, "ptq", *arguments, "--device", "cuda:1")
    assert code == 2 and said(err, "device.beyond", word="cuda:1")
    with pytest.raises(torchqat.UserError, match=matches("device.beyond", word="cuda:2")):
        begin(PTQ, device="cuda:2")


@pytest.mark.parametrize("command", ["run", "ptq", "train", "sensitivity"])
def test_commands_on_recipes_take_a_device(command, arguments, capsys):
    if command == "sensitivity":
        arguments = arguments[:-2]
    code, _, err = call(capsys, command, *arguments, "--device", "gpu")
    assert code == 2 and said(err, "device.none", word="gpu")


def test_commands_on_folders_take_a_device(begin, model_folder, data_folder, tmp_path, capsys):
    begin(ROUNDED, device="cpu")
    folder = tmp_path / "run" / "exports" / "compressed-tensors-int4-mse"
    for command in (
        ["export", tmp_path / "run"],
        ["verify", folder],
        ["evaluate", model_folder, "--data", data_folder],
    ):
        code, _, err = call(capsys, *command, "--device", "gpu")
        assert code == 2 and said(err, "device.none", word="gpu"), command
    code, out, _ = call(capsys, "verify", folder, "--device", "cpu")
    assert code == 0 and said(out, "verify.equal", layers=14)


def test_each_of_several_processes_has_a_gpu_of_its_own(here, recipe_file, monkeypatch):
    here(gpus=2)
    monkeypatch.setattr("torchqat.runs.float_model.count", lambda: 4)
    monkeypatch.setattr("torchqat.training.processes.count", lambda: 4)
    recipe = torchqat.load_recipe(str(recipe_file))
    with pytest.raises(torchqat.UserError, match=matches("device.too-few", count=4, there=2)):
        _ = FloatModel(recipe, Progress()).device
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert FloatModel(recipe, Progress()).device == torch.device("cuda:1")
    recipe.device = "cuda:1"
    with pytest.raises(torchqat.UserError, match=matches("device.of-each-process", count=4, word="cuda:1")):
        _ = FloatModel(recipe, Progress()).device


def test_the_device_is_no_part_of_what_a_run_is_made_of(begin, tmp_path):
    begin(ROUNDED, device="cpu")
    path = tmp_path / "run" / "report.json"
    report = json.loads(path.read_text())
    report["environment"]["device"] = "Tesla"
    path.write_text(json.dumps(report))
    told = []
    progress = Progress(quiet=True)
    progress.say = told.append
    found = begin(ROUNDED, resume=True, device="auto", progress=progress)
    assert any(said(text, "device.another", then="Tesla") for text in told)
    assert found.environment["device"].startswith("Tesla; ")


def test_doctor_says_what_the_gpu_is_for(here, capsys, monkeypatch):
    here(gpus=1)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device=None: (3 << 30, 4 << 30))
    found = json.loads(call(capsys, "doctor", "--json")[1])
    assert found["gpu"] == "cuda:0 is Tesla, compute capability 6.1, 3.0 of 4.0 GiB free"
    assert found["device"] == sentence("device.auto-is-gpu", device="cuda:0")
    here(gpus=1, built=False)
    found = json.loads(call(capsys, "doctor", "--json")[1])
    assert found["device"] == f"{sentence('device.auto-is-cpu')} {sentence('device.left-alone')}"


def test_where_a_model_computes():
    assert device_of(nn.ReLU()) == CPU
    packed = torchqat.pack(torchqat.prepare(nn.Sequential(nn.Linear(32, 8)), _recipe()))
    assert not list(packed.parameters()) and device_of(packed) == CPU
    with PretendGpu():
        held = nn.Module()
        held.register_buffer("table", torch.ones(2, device=CUDA))
        assert device_of(held) == CUDA
        parted = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).to(CUDA))
        assert device_of(parted) == CUDA, "a part is kept on the host"


def _recipe():
    return torchqat.parse_recipe('version: 1\nlayers: [{match: "*", weight: {dtype: int4, group_size: 32}}]\n', "r")
