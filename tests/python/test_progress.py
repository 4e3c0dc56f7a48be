"""Long work says how far it is: bars on a terminal, a line a minute in a pipe, nothing where quiet is asked for."""

import io
import os
import pty
import re
import threading
import time

import pytest
import torch
import torchqat
from command import call
from conftest import PTQ, RECIPE
from sentences import said
from torchqat.progress import Work, counted, duration, told, working
from torchqat.runs import progress as module
from torchqat.runs.progress import Progress


class Heard:
    """Remembers each piece of work as it ended, with the titles of those that it was inside of."""

    def __init__(self):
        self.open, self.ended = [], []

    def begin(self, work):
        self.open.append(work)

    def moved(self, work):
        assert work in self.open and work.done <= (work.total if work.total is not None else work.done)

    def end(self, work):
        self.open.remove(work)
        self.ended.append((work.what, work.done, work.total, [outer.what for outer in self.open]))

    def of(self, beginning):
        return [entry for entry in self.ended if entry[0].startswith(beginning)]


@pytest.fixture
def quick(monkeypatch):
    """A quarter of a second in place of 5, and half a one in place of a minute."""
    monkeypatch.setattr(module, "_LASTS", 0.25)
    monkeypatch.setattr(module, "_BETWEEN", 0.5)


def test_work_without_a_listener_goes_on():
    assert list(counted(range(3), "Counting")) == [0, 1, 2]
    with working("Working", 1) as part:
        part()


def test_parts_and_pieces_inside():
    heard = Heard()
    with told(heard):
        for _ in counted([1, 2], "Outer"):
            assert list(counted(iter("abc"), "Inner")) == list("abc")
        with pytest.raises(ZeroDivisionError), working("Broken", 4) as part:
            part()
            1 / 0  # noqa: B018
    list(counted([1], "Nobody hears"))
    inner = ("Inner", 3, None, ["Outer"])
    assert heard.ended == [inner, inner, ("Outer", 2, 2, []), ("Broken", 1, 4, [])] and not heard.open


def test_the_time_left_is_that_of_parts_taken_here(monkeypatch):
    work = Work("Training", total=10, done=4, first=4, begun=time.monotonic() - 6)
    assert work.seconds_left() is None and work.left() == "6 s so far"
    work.done = 6
    assert work.seconds_left() == pytest.approx(12, abs=0.5)
    words = ["0 s", "89 s", "2 min", "60 min", "1 h 30 min", "2 h 30 min"]
    assert [duration(seconds) for seconds in (0.4, 89, 90, 3600, 5400, 9000)] == words


def test_in_a_pipe_a_line_at_a_time(quick):
    stream, begun = io.StringIO(), time.monotonic()
    with Progress(stream).listens():
        list(counted(range(100), "Too short for a line"))
        for _ in counted(range(4), "Calibrating blocks"):
            for _ in counted(range(2), "Rounding"):
                time.sleep(0.2)
    most = (time.monotonic() - begun) / 0.5 + 2
    *lines, last = stream.getvalue().splitlines()
    assert 2 <= len(lines) <= most, lines
    assert all(line.startswith("Calibrating blocks: ") and "; Rounding: " in line for line in lines)
    assert said(lines[-1], "progress.left", what="Calibrating blocks", total=4)
    assert said(last, "progress.took", what="Calibrating blocks", total=4)


def test_lines_come_though_no_part_ends(quick):
    stream = io.StringIO()
    with Progress(stream).listens(), working("Asking vllm"):
        time.sleep(0.9)
    lines = stream.getvalue().splitlines()
    assert said(lines[0], "progress.so-far", what="Asking vllm") and len(lines) >= 3


def test_training_says_its_loss(quick):
    stream = io.StringIO()
    progress = Progress(stream)
    with progress.listens():
        show = progress.steps("Fine-tuning", 4)
        for step in range(1, 5):
            time.sleep(0.2)
            show(step, {"loss": 1 / step})
    last = stream.getvalue().splitlines()[-1]
    assert last.startswith("Fine-tuning: 4 of 4, loss 0.25 in ")


def test_a_small_loss_is_not_shown_as_none():
    stream = io.StringIO()
    progress = Progress(stream)
    with progress.listens():
        progress.steps("Fine-tuning", 4)(1, {"loss": 0.0000234})
        assert progress._open[0].detail == "loss 2.34e-05"


def test_what_an_error_cuts_off_is_closed(quick):
    stream = io.StringIO()
    progress, before = Progress(stream), threading.active_count()
    with pytest.raises(KeyboardInterrupt), progress.listens():
        progress.steps("Fine-tuning", 4)(1, {"loss": 1.0})
        time.sleep(0.3)
        raise KeyboardInterrupt
    assert threading.active_count() == before
    said_before = stream.getvalue()
    assert "1 of 4" in said_before and " in " not in said_before
    time.sleep(0.6)
    assert stream.getvalue() == said_before, "the clock has stopped"


def test_quiet_is_quiet(quick):
    stream = io.StringIO()
    progress = Progress(stream, quiet=True)
    with progress.listens():
        for _ in counted(range(2), "Calibrating"):
            time.sleep(0.3)
        progress.say("Calibrating")
    assert stream.getvalue() == ""


@pytest.fixture
def terminal():
    """A stream that is a terminal, and a function that gives what it was shown."""
    master, slave = pty.openpty()
    shown, stream = [], os.fdopen(slave, "w")

    def read():
        try:
            while data := os.read(master, 4096):
                shown.append(data)
        except OSError:  # the other end is closed
            pass

    reader = threading.Thread(target=read)
    reader.start()

    def text():
        stream.close()
        reader.join()
        return b"".join(shown).decode()

    yield stream, text
    if not stream.closed:
        stream.close()
    os.close(master)


def test_on_a_terminal_bars_that_vanish(quick, terminal, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    stream, text = terminal
    progress = Progress(stream)
    with progress.listens():
        for index in counted(range(3), "Calibrating blocks"):
            progress.say(f"A sentence [{index}]")
            list(counted(range(2), "Rounding model.layers.0"))
            time.sleep(0.2)
    found = text()
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", found)
    assert "Calibrating blocks" in plain and "2/3" in plain and "s left" in plain
    assert all(f"A sentence [{index}]" in plain for index in range(3))
    assert found.count("\x1b[?25l") == found.count("\x1b[?25h") == 1, "the cursor comes back"
    assert re.split(r"[\r\n]+", plain.rstrip())[-1].startswith("Calibrating blocks: 3 of 3 in ")


def test_without_rich_a_terminal_has_lines(quick, terminal, monkeypatch):
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    stream, text = terminal
    with Progress(stream).listens():
        for _ in counted(range(2), "Calibrating"):
            time.sleep(0.2)
    assert said(text(), "progress.left", what="Calibrating", done=1, total=2)


# -- who reports ------------------------------------------------------------------------------------------------------


class Listening(Progress, Heard):
    """A run's progress that remembers."""

    def __init__(self):
        Progress.__init__(self, quiet=True)
        Heard.__init__(self)

    begin, moved = Heard.begin, Heard.moved

    def end(self, work, finished=True):
        Heard.end(self, work)


def test_calibration_reports_block_by_block(begin):
    heard = Listening()
    training = "initialize: {method: gptq, block_training: {steps: 3}}"
    begin(PTQ.replace("initialize: {method: gptq}", training) + "train: {steps: 0}\n", progress=heard)
    assert heard.of("Calibrating blocks") == [("Calibrating blocks", 2, 2, [])]
    rounding = [entry[1:] for entry in heard.of("Rounding model.layers.")]
    assert rounding == [(4, 4, ["Calibrating blocks"])] * 2  # queries, keys and values; output; gate and up; down
    assert [entry[1:3] for entry in heard.of("Training model.layers.")] == [(3, 3)] * 2


def test_a_run_reports_evaluation_exports_and_verification(begin):
    heard = Listening()
    begin(RECIPE.replace("evaluate: {", "evaluate: {sensitivity: true, "), progress=heard)
    assert all(done == total for _, done, total, _ in heard.ended if total is not None), heard.ended
    assert len(heard.of("Evaluating")) >= 4 and all(entry[2] for entry in heard.of("Evaluating"))
    assert heard.of("Measuring one layer at a time") == [("Measuring one layer at a time", 28, 28, [])]
    layers = [entry[1:3] for entry in heard.of("Writing ") + heard.of("Reading ")]
    assert layers == [(14, 14)] * len(layers) and len(layers) == 6, "of int8, int4 and what was trained"
    assert len(heard.of("Asking transformers")) == 3


def test_streaming_reports_block_by_block(arguments, recipe_file, capsys, monkeypatch):
    recipe_file.write_text(PTQ)
    heard = Heard()
    monkeypatch.setattr(Progress, "begin", lambda self, work: heard.begin(work))
    monkeypatch.setattr(Progress, "moved", lambda self, work: heard.moved(work))
    monkeypatch.setattr(Progress, "end", lambda self, work, finished=True: heard.end(work))
    code, _, err = call(capsys, "ptq", *arguments, "--stream")
    assert code == 0, err
    assert heard.of("Calibrating blocks")[0][1:3] == (2, 2)


def test_commands_outside_of_runs_report(model_folder, data_folder, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHQAT_CACHE", str(tmp_path / "cache"))  # where nothing was tokenized before
    heard = Heard()
    monkeypatch.setattr(Progress, "begin", lambda self, work: heard.begin(work))
    monkeypatch.setattr(Progress, "moved", lambda self, work: heard.moved(work))
    monkeypatch.setattr(Progress, "end", lambda self, work, finished=True: heard.end(work))
    code, _, err = call(capsys, "evaluate", model_folder, "--data", data_folder, "--samples", "4")
    assert code == 0, err
    assert heard.of("Evaluating") and heard.of("Tokenizing")


def test_the_library_is_silent_by_itself(tiny_llama, capfd):
    recipe = torchqat.parse_recipe(PTQ, "recipe")
    model = torchqat.prepare(tiny_llama, recipe)
    torchqat.calibrate(model, [torch.randint(0, 400, (2, 16))])
    assert capfd.readouterr() == ("", "")
