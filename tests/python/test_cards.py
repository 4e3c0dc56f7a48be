"""Model cards: what the Hub reads of them, what they say, and that nobody's own words are lost; and pushes to the Hub."""

import re
import shutil
from types import SimpleNamespace

import huggingface_hub
import pytest
from command import call
from conftest import PTQ
from huggingface_hub import ModelCard
from sentences import matches, said
from torchqat.checkpoints.card import is_ours, write_card
from torchqat.checkpoints.formats.known import formats
from torchqat.reports.card import without_folders
from torchqat.reports.origin import origin_of
from torchqat.reports.report import read_report
from torchqat.reports.serving import how_to_load

SHORT = PTQ + "train: {steps: 0}\nevaluate: {compare: []}\n"
SOURCE = """---
license: other
license_name: tiny-license
license_link: LICENSE
language: [en, de]
tags: [something]
---
# Tiny
"""


@pytest.fixture
def licensed(model_folder):
    (model_folder / "README.md").write_text(SOURCE)
    (model_folder / "LICENSE").write_text("Do what you want.")
    (model_folder / "NOTICE.txt").write_text("Made by us.")
    return model_folder


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    return tmp_path_factory.mktemp("kept") / "run"


@pytest.fixture
def finished(kept, begin, tmp_path):
    """What a run has measured and exported, into ``run``; it is done once."""
    if kept.exists():
        shutil.copytree(kept, tmp_path / "run")
    else:
        begin(SHORT)
        shutil.copytree(tmp_path / "run", kept)
    return read_report(tmp_path / "run")


def test_every_export_has_a_card_that_the_hub_reads(licensed, begin, tmp_path):
    report = begin(SHORT.replace("group_size: 32", "group_size: 32, scale_dtype: float16") + "export: [gptq, gguf]\n")
    variant = report.variants[-1]
    for name in (variant.export, variant.export.replace("gptq-", "gguf-", 1)):
        folder = tmp_path / "run" / name
        card = ModelCard.load(folder / "README.md")
        assert (
            card.data.license == "other"
            and card.data.license_name == "tiny-license"
            and card.data.language == ["en", "de"]
        )
        assert card.data.pipeline_tag == "text-generation" and card.data.base_model is None  # no name on the Hub
        format = "gguf" if "gguf" in name else "gptq"
        assert {"torchqat", "quantized", "int4", "4-bit", format} <= set(card.data.tags)
        assert card.data.library_name == (None if format == "gguf" else "transformers")
        assert (folder / "LICENSE").read_text() == "Do what you want." and (folder / "NOTICE.txt").is_file()
        text = card.text
        for said_there in (
            f"| perplexity | {report.baseline['perplexity']:.3f} | {variant.perplexity:.3f} |",
            f"| KL | - | {variant.kl:.5f} |", f"| {variant.bits_per_weight:.2f} |", *report.coverage,
            "tiny-license, see [LICENSE](LICENSE), [NOTICE.txt](NOTICE.txt)", "grid: full, scale: learned", "- torchqat ",
        ):  # fmt: skip
            assert said_there in text, said_there
        assert str(tmp_path) not in card.content
        assert ("llama-server -m model.gguf" in text) == (format == "gguf")


def test_the_card_loads_what_it_is_of(finished, tmp_path):
    folder = tmp_path / "run" / finished.variants[-1].export
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.S)
    found = {}
    exec(code.replace("path/to/this/folder", str(folder)), found)
    assert type(found["model"]).__name__ == "LlamaForCausalLM"


def test_a_model_of_the_users_own_class_is_loaded_by_the_user(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    found = how_to_load(tmp_path, "compressed-tensors", "path", writes_text=False)
    assert "the program that has the model's class" in found and "AutoModel" not in found
    (tmp_path / "config.json").write_text('{"architectures": ["T5ForConditionalGeneration"]}')
    found = how_to_load(tmp_path, "compressed-tensors", "path", writes_text=False)
    assert 'T5ForConditionalGeneration.from_pretrained("path"' in found and "vllm" not in found


def test_a_card_of_the_users_stays(finished, tmp_path, capsys):
    """When it is exported anew, too; one that torchqat wrote is written anew, and its folder known all the same."""
    folder = tmp_path / "run" / finished.variants[-1].export
    written = (folder / "README.md").read_text()
    assert is_ours(folder / "README.md")
    (folder / "README.md").write_text(written.replace("## Figures", "## My figures") + "Mine.")
    moved = tmp_path / "elsewhere"
    shutil.copytree(folder, moved)
    assert call(capsys, "verify", moved, "--run", tmp_path / "run", "--engine", "reader")[0] == 0
    code, out, err = call(capsys, "export", tmp_path / "run", "--output", moved)
    assert code == 0 and said(err, "export.card-stays", card=moved / "README.md")
    assert (moved / "README.md").read_text().endswith("Mine.")
    (moved / "README.md").unlink()
    code, _, err = call(capsys, "export", tmp_path / "run", "--output", moved)
    assert code == 0 and not said(err, "export.card-stays") and is_ours(moved / "README.md")


def test_what_was_changed_is_not_ours(tmp_path):
    assert write_card(tmp_path, "# One\n") and write_card(tmp_path, "# Two\n")
    card = tmp_path / "README.md"
    assert card.read_text().startswith("# Two")
    card.write_text(card.read_text().replace("Two", "2"))
    assert not write_card(tmp_path, "# Three\n") and card.read_text().startswith("# 2")
    card.write_text("")
    assert not is_ours(card)


def test_a_streamed_checkpoint_has_a_card(arguments, licensed, tmp_path, capsys):
    arguments[0].write_text(PTQ)
    code, _, err = call(capsys, "ptq", *arguments, "--stream")
    assert code == 0, err
    folder = tmp_path / "run" / "exports" / "compressed-tensors"
    card = ModelCard.load(folder / "README.md")
    assert card.data.license_name == "tiny-license" and "Its quality was not measured." in card.text
    assert (folder / "LICENSE").is_file() and (tmp_path / "run" / "report.html").is_file()
    assert call(capsys, "verify", folder)[0] == 0


def test_what_the_hub_keeps_is_known_by_its_name(tmp_path, model_folder):
    kept = tmp_path / "models--some-org--tiny--llama" / "snapshots" / "0123"
    kept.parent.mkdir(parents=True)
    shutil.copytree(model_folder, kept)
    assert origin_of(str(kept)).repository == "some-org/tiny--llama"
    assert origin_of(str(model_folder)).repository == "" and origin_of(str(model_folder)).metadata == {}
    assert origin_of("module:function").name == "module:function"
    (model_folder / "README.md").write_text("---\nlicense: [\n---\n")  # no YAML
    assert origin_of(str(model_folder)).metadata == {}


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("train: /home/me/data/set.jsonl  # mine", "train: set.jsonl  # mine"),
        ("train: ../data/set.jsonl", "train: set.jsonl"),
        ("see https://huggingface.co/org/name/file", "see https://huggingface.co/org/name/file"),
        ("path: org/name", "path: org/name"),
        ("bits/weight, 3 / 4 and /", "bits/weight, 3 / 4 and /"),
    ],
)
def test_folders_of_the_machine_stay_there(text, left):
    assert without_folders(text) == left


# -- the Hub ----------------------------------------------------------------------------------------------------------


class Hub:
    """Stands in for ``huggingface_hub.HfApi``."""

    def __init__(self, there=None, role="write", unreachable=False):
        self.there, self.role, self.unreachable, self.calls = there, role, unreachable, []

    def whoami(self):
        if self.unreachable:
            raise ConnectionError("no route to host")
        return {"name": "me", "orgs": [{"name": "us"}], "auth": {"accessToken": {"role": self.role}}}

    def repo_exists(self, name):
        return self.there is not None

    def create_repo(self, name, private, exist_ok):
        self.calls.append(("create", name, private, exist_ok))
        return f"https://hub/{name}"

    def file_exists(self, name, file):
        return bool(self.there)

    def hf_hub_download(self, name, file, local_dir):
        path = f"{local_dir}/{file}"
        with open(path, "w") as card:
            card.write(self.there)
        return path

    def upload_folder(self, repo_id, folder_path, ignore_patterns, commit_message):
        self.calls.append(("upload", repo_id, folder_path, ignore_patterns))


@pytest.fixture
def hub(monkeypatch):
    def reach(**options):
        found = Hub(**options)
        monkeypatch.setattr(huggingface_hub, "HfApi", lambda: found)
        monkeypatch.setattr(huggingface_hub, "constants", SimpleNamespace(HF_HUB_OFFLINE=False))
        return found

    return reach


def test_a_run_is_pushed(arguments, hub, tmp_path, capsys):
    reached = hub()
    arguments[0].write_text(SHORT)
    code, _, err = call(capsys, "ptq", *arguments, "--push-to-hub", "us/tiny-int4")
    folder = tmp_path / "run" / "exports" / "compressed-tensors-int4-gptq"
    assert code == 0 and said(err, "export.pushed-privately", folder=folder, address="https://hub/us/tiny-int4"), err
    assert reached.calls == [("create", "us/tiny-int4", True, True), ("upload", "us/tiny-int4", folder, None)]
    assert "vllm serve us/tiny-int4" in (folder / "README.md").read_text()


def test_a_card_on_the_hub_stays(finished, hub, tmp_path, capsys):
    reached = hub(there="# A card of mine")
    code, out, _ = call(capsys, "export", tmp_path / "run", "--push-to-hub", "me/tiny")
    assert code == 0 and said(out, "export.hub-card-stays", repository="me/tiny")
    assert reached.calls[-1][-1] == ["README.md"]


def test_what_misses_its_limits_is_not_pushed(begin, hub, tmp_path):
    reached = hub()
    report = begin(PTQ + "train: {steps: 0}\nevaluate: {compare: [], accept: {kl: 0.0}}\n", push_to_hub="me/tiny")
    assert report.accepted is False and reached.calls == []


@pytest.mark.parametrize(
    ("repository", "options", "why"),
    [
        ("no such name", {}, matches("cli.hub-name")),
        ("them/tiny", {}, matches("cli.hub-of-others", repository="them/tiny")),
        ("me/tiny", {"role": "read"}, matches("cli.hub-only-read", name="me")),
        ("me/tiny", {"unreachable": True}, matches("cli.hub-unreachable")),
    ],
)
def test_what_cannot_be_pushed_is_said_first(repository, options, why, arguments, hub, tmp_path, capsys):
    hub(**options)
    code, _, err = call(capsys, "run", *arguments, "--push-to-hub", repository)
    assert code == 2 and re.search(why, err), err
    assert not (tmp_path / "run").exists()


def test_offline_nothing_is_pushed(arguments, tmp_path, capsys):
    code, _, err = call(capsys, "ptq", *arguments, "--stream", "--push-to-hub", "me/tiny")
    assert code == 2 and said(err, "cli.hub-offline", repository="me/tiny"), err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("format", [format.name for format in formats() if format.name != "gguf"])  # gguf has files
def test_every_format_says_how_it_is_loaded(format, tmp_path):
    (tmp_path / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    found = how_to_load(tmp_path, format, "path", writes_text=True)
    assert found.startswith("In ") and "```" in found
    assert ("mlx_lm.server --model path" in found) == (format == "mlx")
