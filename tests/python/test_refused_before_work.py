"""What a command could not end well with is said before any work."""

import pytest
from command import call
from sentences import said


@pytest.mark.parametrize(
    "command, option",
    [("sensitivity", ["--budget", 5, "--write"]), ("sensitivity", ["--plot"]), ("imatrix", ["--output"])],
)
def test_a_place_that_cannot_be_written_is_said_before_any_work(
    command, option, arguments, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("torchqat.runs.flow.run_of", None)
    (tmp_path / "file").write_text("")
    place = tmp_path / "file" / "found.png"
    code, _, err = call(capsys, command, *arguments[:5], *option, place)
    assert code == 2 and said(err, "checkpoints.not-written", path=place, why="File exists")


@pytest.mark.parametrize("size", ["nan", "inf", "-1", "0"])
@pytest.mark.parametrize("option", ["--budget", "--gguf-size"])
def test_budgets_that_are_none_are_refused(option, size, arguments, capsys):
    code, _, err = call(capsys, "sensitivity", *arguments[:5], option, size)
    assert code == 2 and said(err, "evaluate.no-budget", option=option, size=size)


def test_verify_says_what_is_no_folder_of_a_checkpoint(tmp_path, capsys):
    absent, file = tmp_path / "exports" / "gguf", tmp_path / "model.gguf"
    file.write_text("")
    for place, what in ((absent, "not there"), (file, f"a file: give the folder that it is in, {tmp_path}")):
        code, _, err = call(capsys, "verify", place)
        assert code == 2 and said(err, "runs.no-folder-of-a-checkpoint", folder=place, what=what)
