"""Where data come from, and what is held out of them."""

import gzip
import sys

import pytest
import torchqat
from chats import messages, write_lines
from sentences import matches
from torchqat import UserError
from torchqat.data.corpus import load_corpus
from torchqat.data.documents import cut, pieces_of_file
from torchqat.data.holding_out import HELD, TRAIN, parts_of
from torchqat.data.sources import Source, content_of, documents
from torchqat.kinds import find_kind

TEXTS = [f"document {i} says something\n" for i in range(20)]


def texts(source, **options):
    return ["".join(document) for document in documents(Source(str(source), **options))]


def parquet(path, rows):
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def test_parquet_is_read_as_jsonl_is(tmp_path):
    rows = [{"text": text} for text in TEXTS]
    write_lines(tmp_path / "rows.jsonl", rows)
    assert texts(parquet(tmp_path / "rows.parquet", rows)) == texts(tmp_path / "rows.jsonl") == TEXTS


def test_a_folder_of_parquet_and_another_column(tmp_path):
    for part in (0, 1):
        parquet(tmp_path / f"part-{part}.parquet", [{"body": text} for text in TEXTS[part * 10 : part * 10 + 10]])
    assert texts(tmp_path, column="body") == TEXTS
    with pytest.raises(
        UserError,
        match=matches("data.row-without-text", row=1, source=tmp_path / "part-0.parquet", columns="body (str)"),
    ):
        texts(tmp_path)


def test_a_table_without_rows_adds_none(tmp_path):
    import pyarrow

    empty = pyarrow.table({"text": pyarrow.array([], pyarrow.string())})
    pyarrow.parquet.write_table(empty, tmp_path / "part-0.parquet")
    assert texts(tmp_path / "part-0.parquet") == []
    parquet(tmp_path / "part-1.parquet", [{"text": text} for text in TEXTS])
    assert texts(tmp_path) == TEXTS


@pytest.mark.parametrize(("cells", "told"), [(["a", None], "null"), ([7], "int")])
def test_a_cell_without_text_is_named(tmp_path, cells, told):
    rows = [{"text": cell} for cell in cells]
    path = parquet(tmp_path / "rows.parquet", rows)
    wanted = matches("data.row-without-text", row=len(rows), source=path, columns=f"text ({told})")
    with pytest.raises(UserError, match=wanted):
        texts(path)


def test_what_parquet_fills_columns_with_is_not_there(tmp_path):
    """Calls of two tools: a table gives each the arguments of both."""

    def call(**arguments):
        call = {"type": "function", "function": {"name": "f", "arguments": arguments}}
        return {"role": "assistant", "content": None, "tool_calls": [call]}

    rows = [
        {"messages": [{"role": "user", "content": "a"}, call(**found)]} for found in ({"city": "Rome"}, {"year": 1})
    ]
    found = documents(Source(str(parquet(tmp_path / "calls.parquet", rows))))
    calls = [one.messages[1]["tool_calls"][0]["function"]["arguments"] for one in found]
    assert calls == [{"city": "Rome"}, {"year": 1}]


def test_conversations_of_parquet(tmp_path):
    path = parquet(tmp_path / "chat.parquet", [{"messages": messages(i)} for i in range(3)])
    assert [one.messages for one in documents(Source(str(path)))] == [tuple(messages(i)) for i in range(3)]


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A data set of the Hub in its cache, as ``datasets`` leaves it there."""
    import datasets
    from datasets.packaged_modules.parquet.parquet import Parquet

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    path = parquet(tmp_path / "hub.parquet", [{"text": text} for text in TEXTS])
    builder = Parquet(
        cache_dir=str(tmp_path / "cache"),
        dataset_name="texts",
        hash="0123456789abcdef",
        data_files={"train": [str(path)]},
    )
    builder.download_and_prepare()
    kept = tmp_path / "cache" / "someone___texts"
    (tmp_path / "cache" / "texts").rename(kept)
    next(kept.glob("default-*")).rename(kept / "default")
    return "someone/texts"


def test_a_data_set_of_the_hub_comes_from_its_cache(hub):
    source = Source(hub)
    assert source.is_on_hub and texts(hub) == TEXTS
    assert content_of(source) == content_of(source)
    with pytest.raises(UserError, match=matches("data.not-on-hub", name=hub, split="test")):
        texts(hub, split="test")
    with pytest.raises(UserError, match=matches("data.not-on-hub", name="nobody/nothing", split="train")):
        texts("nobody/nothing")


def test_parts_of_files_are_refused(tmp_path):
    path = write_lines(tmp_path / "rows.jsonl", [{"text": "a"}])
    for options in ({"subset": "a"}, {"split": "test"}):
        with pytest.raises(UserError, match=matches("data.split-of-a-file", source=path)):
            texts(path, **options)


def test_content_does_not_change_with_names(tmp_path):
    paths = [write_lines(tmp_path / name, [{"text": "a"}]) for name in ("a.jsonl", "b.jsonl")]
    other = write_lines(tmp_path / "c.jsonl", [{"text": "b"}])
    first, again, changed = (content_of(Source(path)) for path in (*paths, other))
    assert first == again != changed


def test_texts_and_conversations_are_not_mixed_in_a_source(tmp_path):
    path = write_lines(tmp_path / "rows.jsonl", [{"text": "a"}, {"prompt": "a", "completion": "b"}])
    with pytest.raises(UserError, match=matches("data.both-forms", source=path)):
        parts_of(Source(path))


def test_every_tenth_is_held_out_and_no_copy(tmp_path):
    path = write_lines(tmp_path / "rows.jsonl", [{"text": text} for text in [*TEXTS[:16], TEXTS[0], *TEXTS[17:]]])
    parts = parts_of(Source(path))
    assert [place for place, part in enumerate(parts.of) if part == HELD] == [5, 15]
    copied = write_lines(tmp_path / "copies.jsonl", [{"text": text} for text in [*TEXTS[:15], TEXTS[0], *TEXTS[16:]]])
    parts = parts_of(Source(copied))
    assert [place for place, part in enumerate(parts.of) if part == HELD] == [5] and parts.of[15] != TRAIN


def test_blank_documents_count_for_nothing(tmp_path):
    path = write_lines(tmp_path / "rows.jsonl", [{"text": text} for one in TEXTS for text in (" \n", one)])
    found = load_corpus(str(path))
    assert found.held_out == [TEXTS[5], TEXTS[15]] and len(found.train) == 18


def test_one_conversation_cannot_be_held_out(tmp_path):
    path = write_lines(tmp_path / "rows.jsonl", [{"messages": messages(1)}])
    with pytest.raises(UserError, match=matches("data.one-example", source=path)):
        parts_of(Source(path))


def test_encoders_and_classifiers_take_one_path_of_texts(tmp_path):
    path = write_lines(tmp_path / "rows.jsonl", [{"messages": messages(i)} for i in range(20)])
    with pytest.raises(UserError, match=matches("data.conversations-here", source=path)):
        load_corpus(path)

    def load(data):
        text = f"version: 1\nmodel: {{kind: classifier}}\ndata: {data}\nlayers: [{{match: a, weight: float}}]\n"
        find_kind("classifier").load_data(torchqat.parse_recipe(text, "r"), None)

    with pytest.raises(UserError, match=matches("data.one-path", kind="classifier")):
        load("{train: {path: a}}")
    for key, asked in (("packing", "true"), ("loss_on", "all")):
        with pytest.raises(UserError, match=matches("data.of-conversations", key=key, kind="classifier")):
            load(f"{{train: a, {key}: {asked}}}")


@pytest.mark.parametrize("name", ["a.jsonl", "A.JSONL"])
def test_jsonl_is_known_whatever_case_and_mark_it_begins_with(name, tmp_path):
    (tmp_path / name).write_text('{"text": "x"}\n', encoding="utf-8-sig")
    for path in (tmp_path, tmp_path / name):
        assert [list(found) for found in documents(Source(str(path)))] == [["x"]]


def test_long_texts_are_cut_where_a_line_ends(tmp_path):
    text = "".join(f"def function_{i}():\n    return {i}\n\n" for i in range(20_000))
    (tmp_path / "long.py").write_text(text)
    for pieces in (cut(text), list(pieces_of_file(tmp_path / "long.py"))):
        assert "".join(pieces) == text and len(pieces) > 10
        assert all(piece[0] == "\n" for piece in pieces[1:]) and max(map(len, pieces)) < 1 << 16
    for other in ("x" * 3_000_000, "", "a", "\n" * 100_000):
        (tmp_path / "other.txt").write_text(other)
        assert "".join(cut(other)) == "".join(pieces_of_file(tmp_path / "other.txt")) == other


def test_a_missing_library_is_said(tmp_path, monkeypatch):
    path = parquet(tmp_path / "rows.parquet", [{"text": "a"}])
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=matches("extras.missing", what="Parquet", extra="data")):
        texts(path)


@pytest.mark.parametrize("name, content", (("table.csv", b"text\nhello"), ("all.json", b"[]"), ("model.bin", b"a\0b")))
def test_a_file_that_is_no_text_is_refused(name, content, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=matches("data.another-kind", file=tmp_path / name)):
        texts(tmp_path / name)


NO_TEXT = {"utf-16": "text".encode("utf-16"), "latin-1": "caf\xe9".encode("latin-1"), "gzip": gzip.compress(b"text")}


@pytest.mark.parametrize("content", NO_TEXT.values(), ids=NO_TEXT)
@pytest.mark.parametrize("name", ["notes.txt", "notes.md", "rows.jsonl"])
def test_bytes_that_are_no_text_are_not_taken_for_some(name, content, tmp_path):
    (tmp_path / name).write_bytes(content)
    for path in (tmp_path, tmp_path / name):
        with pytest.raises(UserError, match=matches("data.no-utf8", file=tmp_path / name)):
            texts(path)


def test_zeros_are_no_text(tmp_path):
    (tmp_path / "notes.txt").write_bytes(b"a\0b")
    with pytest.raises(UserError, match=matches("data.no-utf8", file=tmp_path / "notes.txt")):
        texts(tmp_path)


def test_the_standard_library_is_in_utf8():
    assert sum(len(piece) for text in documents(Source("python-stdlib")) for piece in text) > 1_000_000


def test_half_a_surrogate_pair_is_told_by_its_line(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"text": "\\ud83d\\ude00 fine"}\n{"text": "\\ud83d cut off"}\n')
    with pytest.raises(UserError, match=matches("data.no-unicode", file=tmp_path / "rows.jsonl", line=2)):
        texts(tmp_path / "rows.jsonl")


def test_lines_too_deep_to_read_are_told(tmp_path):
    (tmp_path / "rows.jsonl").write_text("[" * 100_000)
    with pytest.raises(UserError, match=matches("data.line-without-text", file=tmp_path / "rows.jsonl", line=1)):
        texts(tmp_path / "rows.jsonl")


@pytest.mark.parametrize("content", [5, {"a": "b"}, True])
def test_messages_say_text(content, tmp_path):
    """A template would print what else there is as Python does."""
    path = write_lines(tmp_path / "rows.jsonl", [{"messages": [{"role": "user", "content": content}]}])
    with pytest.raises(UserError, match=matches("data.line-without-text", file=path, line=1)):
        texts(path)


def test_text_of_an_unknown_suffix_is_text(tmp_path):
    (tmp_path / "notes.log").write_text("all of it")
    assert texts(tmp_path / "notes.log") == ["all of it"]
