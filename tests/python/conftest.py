"""Fixtures: the device to test on, seeds, and small models that are built rather than fetched."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
import torchqat
import transformers
from launcher import Launcher
from torchqat.data.corpus import Corpus
from torchqat.device import find_device
from torchqat.runs.progress import Progress
from torchqat.runs.scratch import new_model, train_tokenizer
from undrawn import leave_undrawn


def pytest_addoption(parser):
    parser.addoption("--device", default="auto", help="auto, cpu, cuda or cuda:N: where operators and runs are tested")
    parser.addoption("--nightly", action="store_true", help="more of what takes long: make test-nightly")


def pytest_configure(config):
    asked = config.getoption("--device")
    if asked == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # runs, whose recipes say nothing, stay there as well
        return
    try:
        found = find_device(asked)
    except torchqat.UserError as error:
        raise pytest.UsageError(str(error)) from error
    if found.type == "cuda":
        torch.cuda.set_device(found)


# Files that take longest go first, so that no core has one of them left when the others are done.
LONG = [
    "faults",
    "cpp_package",
    "fsdp",
    "cpu_kernels",
    "distributed",
    "decide",
    "export_cli",
    "recipes_run",
    "cuda_kernels",
]


def pytest_collection_modifyitems(items):
    first = {f"test_{name}.py": place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: first.get(item.path.name, len(first)))


@pytest.fixture(scope="session")
def device(request):
    return find_device(request.config.getoption("--device"))


@pytest.fixture
def nightly(request):
    """Whether there is a night for what takes long."""
    return request.config.getoption("--nightly")


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _undrawn(request, monkeypatch):
    if request.node.get_closest_marker("drawn") is None:
        leave_undrawn(monkeypatch.setattr)


@pytest.fixture
def gpu(monkeypatch):
    """One that is pretended, whose numbers are the host's (pretend_gpu.py)."""
    from pretend_gpu import PretendGpu

    monkeypatch.setattr("torchqat.device.BUILT_WITH_CUDA", True)
    with PretendGpu() as gpu:
        yield gpu


class Tiny:
    """Settings of a Llama small enough for a test."""

    hidden_size, intermediate_size, layers, heads, kv_heads = 64, 96, 2, 4, 2
    vocabulary, steps, batch_size, sequence_length, learning_rate = 400, 4, 2, 32, 1e-2


@pytest.fixture
def tiny_llama():
    return new_model(Tiny, Tiny.vocabulary, seed=0).eval()


TEXT = [
    f"def function_{i}(argument):\n    '''Adds {i} to the argument.'''\n    return argument + {i}\n\n\n" * 12
    for i in range(30)
]


@pytest.fixture(scope="session")
def corpus():
    return Corpus(TEXT[:27], TEXT[27:])


@pytest.fixture(scope="session")
def tokenizer():
    return train_tokenizer(TEXT, Tiny.vocabulary)


@pytest.fixture
def model_folder(tmp_path, tiny_llama, tokenizer):
    """A Hugging Face folder with a tiny Llama and its tokenizer."""
    folder = tmp_path / "model"
    tiny_llama.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def data_folder(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for index, text in enumerate(TEXT):
        (folder / f"{index:02}.py").write_text(text)
    return folder


@pytest.fixture
def held_out_folder(tmp_path, data_folder):
    """What runs hold out of ``data_folder``."""
    folder = tmp_path / "held-out"
    folder.mkdir()
    for file in sorted(data_folder.iterdir())[5::10]:
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


@pytest.fixture(scope="session")
def twins():
    return {}


@pytest.fixture
def train(tmp_path, model_folder, data_folder, twins):
    """Trains by the command line, on one process or several (launcher.py)."""
    return Launcher(tmp_path, model_folder, data_folder, twins)


RECIPE = """version: 1
data: {evaluation: {samples: 4, sequence_length: 32}, calibration: {samples: 4, sequence_length: 32}}
layers:
  - match: "model.layers.*"
    weight: {dtype: int4, group_size: 32, grid: full, scale: learned}
schedule:
  - {until: 25%, weight: int8}
  - {until: 50%, weight: int6}
  - {until: 100%, weight: int4}
train: {steps: 8, batch_size: 2, sequence_length: 32, checkpoint_every: 3}
evaluate: {compare: [int8, int4]}
"""


# Post-training quantization of the same layers.
PTQ = RECIPE.split("schedule:")[0] + "initialize: {method: gptq}\n"


@pytest.fixture
def recipe_file(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    return path


@pytest.fixture
def arguments(recipe_file, model_folder, data_folder, tmp_path):
    """What a command that takes a recipe is given, beside the command itself."""
    return [recipe_file, "--model", model_folder, "--data", data_folder, "--output", tmp_path / "run"]


@pytest.fixture
def begin(tmp_path, model_folder, data_folder):
    """Does a run of a recipe, or of its text, by the library, into ``run``."""

    def begin(recipe=RECIPE, progress=None, **options):
        recipe = torchqat.parse_recipe(recipe, "recipe.yaml") if isinstance(recipe, str) else recipe
        places = {"model": model_folder, "data": data_folder, "output": tmp_path / "run"}
        return torchqat.run(recipe, **{**places, **options}, progress=progress or Progress(quiet=True))

    return begin


BERT = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 400,
    "max_position_embeddings": 64,
}  # fmt: skip


@pytest.fixture
def encoder_folder(tmp_path, tokenizer):
    """A sentence-transformers folder with a tiny BERT."""
    folder = tmp_path / "encoder"
    transformers.BertModel(transformers.BertConfig(**BERT), add_pooling_layer=False).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "modules.json").write_text("[]")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(
        '{"pooling_mode_mean_tokens": true, "pooling_mode_cls_token": false}'
    )
    return folder


@pytest.fixture
def classifier_folder(tmp_path, tokenizer):
    folder = tmp_path / "classifier"
    config = transformers.BertConfig(**BERT, num_labels=3)
    transformers.BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory):
    """A Llama of architectures.py; not to be written to."""
    import architectures

    path = tmp_path_factory.mktemp("model") / "llama"
    architectures.build("Llama").save_pretrained(path)
    return path
