"""Runs on conversations, on several sources and by passes over the data, and what is measured of a file."""

import copy
import json
import math

import pytest
import torch
import torchqat
from chats import TEMPLATE, messages, write_lines
from command import call
from conftest import PTQ, RECIPE
from interrupting import Interrupting
from sentences import matches, said, sentence
from torchqat import UserError
from torchqat.data.language import load_data
from torchqat.files import load_state
from torchqat.runs.flow import run_of
from torchqat.runs.progress import Progress

CHATS = [{"messages": messages(i, turns=1 + i % 3)} for i in range(60)]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHQAT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def chat_folder(model_folder, tokenizer):
    """The model, its tokenizer with a chat template."""
    found = copy.deepcopy(tokenizer)
    found.chat_template = TEMPLATE
    found.save_pretrained(model_folder)
    return model_folder


@pytest.fixture
def chats(tmp_path):
    return write_lines(tmp_path / "chats.jsonl", CHATS)


def recipe(data="", text=RECIPE, epochs=None, sequence_length=32):
    """``text`` with other keys of ``data`` and ``train``, and sequences of another length for all that is done."""
    text = text.replace("data: {", f"data: {{{data}, ") if data else text
    text = text.replace("sequence_length: 32", f"sequence_length: {sequence_length}")
    return torchqat.parse_recipe(
        text if epochs is None else text.replace("steps: 8", f"epochs: {epochs}"), "recipe.yaml"
    )


@pytest.fixture
def larger_tokenizer(model_folder, tokenizer):
    """The model, beside a tokenizer with a token that it has no row for."""
    found = copy.deepcopy(tokenizer)
    found.add_tokens([f"added{i}" for i in range(64)])
    found.save_pretrained(model_folder)
    return model_folder, found


@pytest.mark.parametrize("held_out", [False, True])
def test_tokens_that_the_model_has_no_row_for_are_a_sentence(larger_tokenizer, tmp_path, capsys, held_out):
    """As a tokenizer leaves them that was enlarged alone; a token that no text has does no harm."""
    folder, tokenizer = larger_tokenizer
    rows = json.loads((folder / "config.json").read_text())["vocab_size"]
    text = "added63"
    number = tokenizer.convert_tokens_to_ids(text)
    assert number >= rows
    data = tmp_path / "data"
    data.mkdir()
    for place in range(20):
        (data / f"{place:02}.txt").write_text(f"def function{place}(argument): return argument + {place}\n" * 20)
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe(f"train: {data}").text)
    options = ("--model", folder, "--output", tmp_path / "run")
    code, _, err = call(capsys, "ptq", path, *options)
    assert code == 0, err
    file = data / f"{5 if held_out else 6:02}.txt"  # every tenth is held out, from the sixth on
    file.write_text(f"def {text}(argument)\n" * 20)
    for command in (("ptq", path, *options, "--restart"), ("evaluate", folder, "--data", file)):
        code, _, err = call(capsys, *command)
        assert code == 2 and said(err, "data.token-beyond", token=number, text=text, model=folder, last=rows - 1), err


@pytest.mark.parametrize("packing", ["false", "true"])
def test_a_run_on_conversations(chat_folder, chats, tmp_path, capsys, packing):
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe(f"train: {chats}, packing: {packing}", sequence_length=96).text)
    code, out, err = call(capsys, "run", path, "--model", chat_folder, "--output", tmp_path / "run")
    assert code == 0, err
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["baseline"]["counted"] == "of answers"
    assert [variant["name"] for variant in report["variants"]] == ["int8-naive", "int4-naive", "int4-qat"]
    assert 0 < report["variants"][2]["kl"] < report["variants"][1]["kl"], "it learned"
    assert "predictions of answers on held-out data" in (tmp_path / "run" / "report.html").read_text()
    cut = sum(len(one["messages"]) > 4 for one in CHATS if one not in CHATS[5::10])
    rows = len(CHATS) - len(CHATS) // 10
    assert any(note.startswith(f"{cut} of {rows} conversations of {chats} are cut off") for note in report["notes"])
    assert said("\n".join(report["notes"]), "data.cut-off", rows=rows, source=chats, length=96)
    code, out, _ = call(capsys, "verify", tmp_path / "run" / "exports" / "compressed-tensors")
    assert code == 0 and said(out, "verify.equal", layers=14)
    options = ["--reference", chat_folder, "--sequence-length", 64]
    code, out, err = call(capsys, "evaluate", chat_folder, "--data", chats, *options)
    assert code == 0 and said(out, "evaluate.perplexity", which=" of answers", length=64), err


def test_answers_or_all_tokens_are_learned_and_measured(chat_folder, chats, tmp_path):
    found = {}
    for loss_on in ("answers", "all"):
        text = recipe(f"train: {chats}, loss_on: {loss_on}", sequence_length=96)
        run = run_of(text, chat_folder, output=tmp_path / loss_on)
        batch = run.data.train[0]
        found[loss_on] = (batch["labels"] != -100).sum().item(), run.data.counted, run.identity
        text = run.tokenizer.decode(batch["input_ids"][0][batch["labels"][0] != -100])
        assert ("Adds" in text) == (loss_on == "all") and "return argument" in text
    assert found["answers"][0] < found["all"][0] and found["all"][1] == "of conversations"
    assert found["answers"][2] != found["all"][2]


@pytest.mark.parametrize("packing", ["false", "true"])
def test_an_interrupted_run_on_several_sources_ends_with_the_same_bits(
    chat_folder, chats, data_folder, tmp_path, packing
):
    sources = f"train: [{{path: {chats}, weight: 1}}, {{path: {data_folder}, weight: 2}}], packing: {packing}"

    def begin(name, step=0, resume=False):
        progress = Interrupting(step) if step else Progress(quiet=True)
        given = {"output": tmp_path / name, "resume": resume, "progress": progress}
        torchqat.run(recipe(sources, sequence_length=48), chat_folder, **given)
        return load_state(tmp_path / name / "checkpoints" / "best.pt")["model"]

    whole = begin("whole")
    with pytest.raises(KeyboardInterrupt):
        begin("cut", step=5)
    resumed = begin("cut", resume=True)
    assert whole.keys() == resumed.keys() and all(torch.equal(whole[name], resumed[name]) for name in whole)
    rows = run_of(recipe(sources, sequence_length=48), chat_folder, output=tmp_path / "third").data.train[0]
    assert ("position_ids" in rows) == (packing == "true") and ("attention_mask" in rows) == (packing == "false")


def test_what_is_kept_of_sources_opens_the_run_elsewhere(chat_folder, chats, data_folder, tmp_path, monkeypatch):
    from torchqat.runs.restore import open_run

    monkeypatch.chdir(tmp_path)
    sources = "train: [{path: chats.jsonl, weight: 2}, {path: data}], loss_on: all"
    text = recipe(sources, PTQ + "train: {steps: 0}\n")
    torchqat.run(text, model=chat_folder, output=tmp_path / "run")
    monkeypatch.chdir(chat_folder)
    opened = open_run(tmp_path / "run")
    assert [(one.path, one.weight) for one in opened.recipe.data.sources] == [(chats, 2.0), (str(data_folder), 1.0)]
    assert opened.recipe.data.loss_on == "all" and opened.recipe.data.train == ""
    again = run_of(opened.recipe, output=tmp_path / "other")
    assert again.made_of == opened.made_of
    opened.recipe.data.sources[0].weight = 3.0
    changed = opened.recipe.data.sources
    opened.recipe.data.sources = changed
    assert run_of(opened.recipe, output=tmp_path / "third").identity != opened.identity


def test_data_of_the_command_line_is_in_place_of_sources(chat_folder, chats, data_folder, tmp_path):
    run = run_of(recipe(f"train: [{{path: {chats}}}]"), chat_folder, data_folder, tmp_path / "run")
    assert isinstance(run.data.train[0], torch.Tensor)


@pytest.mark.parametrize("epochs", [0.5, 2])
def test_passes_over_the_data_decide_the_steps(chat_folder, chats, data_folder, tmp_path, capsys, epochs):
    run = run_of(recipe(f"train: {chats}", epochs=epochs, sequence_length=96), chat_folder, output=tmp_path / "run")
    with run.opened():
        assert run.recipe.train.steps == math.ceil(epochs * 54 / 2)
        assert json.loads((tmp_path / "run" / "run.json").read_text())["steps"] == run.recipe.train.steps
    assert said(capsys.readouterr().err, "data.passes", epochs=epochs, steps=run.recipe.train.steps)
    texts = run_of(recipe(epochs=epochs), chat_folder, data_folder, tmp_path / "texts")
    texts.settle_steps()
    assert texts.recipe.train.steps == math.ceil(epochs * len(texts.data.train.tokens) / 64)


def test_passes_over_the_data_train_as_long_as_the_steps_they_are(model_folder, data_folder, tmp_path):
    (tmp_path / "short.txt").write_text("def function(argument): return argument\n" * 40)
    first = run_of(recipe(epochs=1), model_folder, tmp_path / "short.txt", tmp_path / "first")
    first.settle_steps()
    steps = first.recipe.train.steps
    assert 1 < steps < 40
    report = torchqat.run(recipe(epochs=1), model_folder, tmp_path / "short.txt", tmp_path / "run")
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == steps
    assert report.variant("int4-qat") is not None
    assert torchqat.run(recipe(epochs=1), model_folder, tmp_path / "short.txt", tmp_path / "run", resume=True)


def test_packing_is_refused_before_training(chat_folder, data_folder, tmp_path):
    run = run_of(recipe("packing: true"), chat_folder, data_folder, tmp_path / "run")
    with pytest.raises(UserError, match=matches("data.packing-of-texts")), run.opened():
        pass
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "cache, why",
    [
        ("keys: channel, values: token, group_size: 8", "8 keys share a scale"),
        ("keys: token, values: token, first: 4", "the first tokens stay as they are"),
    ],
)
def test_packing_is_refused_where_a_cache_counts_tokens(chat_folder, chats, tmp_path, cache, why):
    text = RECIPE + f"kv_cache: {{dtype: int4, {cache}}}\n"
    run = run_of(recipe(f"train: {chats}, packing: true", text, None, 96), chat_folder, output=tmp_path / "run")
    with pytest.raises(UserError, match=matches("data.packing-beside-cache", why=why)), run.opened():
        pass
    text = RECIPE + "kv_cache: {dtype: int4, keys: token, values: token, recent: 4}\n"
    with run_of(
        recipe(f"train: {chats}, packing: true", text, None, 96), chat_folder, output=tmp_path / "run"
    ).opened():
        pass


def test_too_few_conversations_to_measure_on(chat_folder, tmp_path):
    path = write_lines(tmp_path / "few.jsonl", CHATS[:12])
    with pytest.raises(UserError, match=matches("data.too-few-conversations", source=path, count=1, length=96)):
        _ = run_of(recipe(f"train: {path}", sequence_length=96), chat_folder, output=tmp_path / "run").data


def test_conversations_without_an_answer_are_left_out_and_said(chat_folder, tmp_path):
    lines = [{"messages": messages(i)[: 1 + (i % 3 > 0)]} for i in range(60)]
    path = write_lines(tmp_path / "some.jsonl", lines)
    data = run_of(recipe(f"train: {path}", sequence_length=96), chat_folder, output=tmp_path / "run").data
    assert data.notes == (sentence("data.left-out", count=18, rows=54, source=path, length=96),)


def test_calibration_and_evaluation_begin_as_the_tokenizer_begins(model_folder, data_folder, tokenizer):
    from tokenizers.processors import TemplateProcessing

    begun = copy.deepcopy(tokenizer)
    begun.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    text = recipe(f"train: {data_folder}")
    with_, without = (load_data(text, one) for one in (begun, tokenizer))
    for name in ("calibration", "evaluation", "validation"):
        for one, other in zip(getattr(with_, name), getattr(without, name), strict=True):
            assert (one[:, 0] == begun.bos_token_id).all() and one.shape == other.shape
            assert not (other[:, 0] == begun.bos_token_id).all()
    assert (with_.train[0][:, 0] == begun.bos_token_id).all()


def test_all_of_a_file_is_measured(model_folder, tokenizer, tmp_path, capsys):
    text = "def function(argument): return argument\n" * 100
    (tmp_path / "test.txt").write_text(text)
    count = len(tokenizer(text)["input_ids"]) + 1  # and the end of the text
    given = ["evaluate", model_folder, "--data", tmp_path / "test.txt"]
    code, out, err = call(capsys, *given, "--sequence-length", 50, "--json")
    found = json.loads(out)
    windows = math.ceil(count / 50)
    assert code == 0 and found["tokens"] == count - windows and found["sequence_length"] == 50, err
    code, out, _ = call(capsys, *given)
    assert code == 0 and said(out, "evaluate.perplexity", tokens=count - math.ceil(count / 1024), length=1024)
    code, _, err = call(capsys, *given, "--loss-on", "some")
    assert code == 2 and said(err, "cli.loss-on", word="some")
    code, _, err = call(capsys, *given, "--sequence-length", 1)
    assert code == 2 and said(err, "cli.one-token")


def documents_in(folder, numbers):
    folder.mkdir()
    for i in numbers:
        (folder / f"{i:02}.txt").write_text(f"def function_{i}(argument): return argument + {i}\n" * 20)
    return folder


def notes_on(tokenizer, data):
    return list(load_data(recipe(data), tokenizer).notes)


def test_what_is_measured_on_and_trained_on_is_noted(tmp_path, tokenizer):
    one, other = documents_in(tmp_path / "one", range(20)), documents_in(tmp_path / "other", range(15, 35))
    new = documents_in(tmp_path / "new", range(40, 50))
    own = "evaluation: {samples: 4, sequence_length: 32"

    def with_evaluation(path):
        text = recipe(f"train: {one}").text.replace(own, f"{own}, path: {path}")
        return list(load_data(torchqat.parse_recipe(text, "recipe.yaml"), tokenizer).notes)

    assert with_evaluation(new) == []
    assert with_evaluation(one) == [sentence("data.seen", count=20, all=20, source=one, other=one)]
    assert with_evaluation(other) == [sentence("data.seen", count=5, all=20, source=other, other=one)]
    file = one / "03.txt"
    assert with_evaluation(file) == [sentence("data.seen", count=1, all=1, source=file, other=one)]


def test_what_one_source_holds_out_another_does_not(tmp_path, tokenizer):
    one, other = documents_in(tmp_path / "one", range(20)), documents_in(tmp_path / "other", range(15, 35))
    apart = documents_in(tmp_path / "apart", range(40, 60))
    # Each holds out its sixth and its sixteenth: 5 and 15 of one, 20 and 30 of the other.
    assert notes_on(tokenizer, f"train: [{{path: {one}}}, {{path: {apart}}}]") == []
    assert notes_on(tokenizer, f"train: [{{path: {one}}}, {{path: {one}, weight: 2}}]") == []
    noted = [sentence("data.seen", count=1, all=2, source=one, other=other)]
    assert notes_on(tokenizer, f"train: [{{path: {one}}}, {{path: {other}}}]") == noted
