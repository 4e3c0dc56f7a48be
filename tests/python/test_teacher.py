"""A teacher that is asked once: its likeliest choices, on disk, in the loss and in a training."""

import json

import pytest
import torch
import torchqat
from command import call
from conftest import TEXT
from sentences import matches
from torchqat.kinds import pieces
from torchqat.kinds.losses import forward_kl
from torchqat.kinds.stored_teacher import StoredTeacher
from torchqat.kinds.top_choices import kl_to_top, top_choices
from torchqat.runs.flow import run_of
from torchqat.runs.progress import Progress
from torchqat.runs.teacher import write_teacher

SHAPE = (3, 7, 101)


def in_short(logits, count, temperature):
    """The distribution over the likeliest choices and the rest, float64, and where these are."""
    p = torch.softmax(logits.double() / temperature, -1)
    likeliest, places = p.topk(count, dim=-1)
    return torch.cat([likeliest, 1 - likeliest.sum(-1, keepdim=True)], -1), places


@pytest.mark.parametrize("size", [1 << 20, 101 * 3])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kl_to_the_likeliest_is_the_formula(dtype, temperature, size, monkeypatch):
    monkeypatch.setattr(pieces, "_ELSEWHERE", size)
    student, teacher = (3 * torch.randn(SHAPE)).to(dtype).requires_grad_(), (3 * torch.randn(SHAPE)).to(dtype)
    top = top_choices(teacher, 8, temperature)
    p, places = in_short(teacher, 8, temperature)
    assert torch.equal(top.choices.long(), places)
    torch.testing.assert_close(top.log_probabilities.exp().double(), p, rtol=1e-5, atol=1e-7)
    q = torch.softmax(student.double() / temperature, -1)
    q = torch.cat([q.gather(-1, places), 1 - q.gather(-1, places).sum(-1, keepdim=True)], -1)
    each = temperature**2 * (p * (p.log() - q.log())).sum(-1)
    counted = torch.rand(SHAPE[:2]) < 0.5
    for found, expected in (
        (kl_to_top(student, top, temperature), each.mean()),
        (kl_to_top(student, top, temperature, counted), each[counted].mean()),
    ):
        assert found.item() == pytest.approx(expected.item(), rel=1e-5)
        ours, theirs = (torch.autograd.grad(loss, student, retain_graph=True)[0] for loss in (found, expected))
        step = 2e-5 if dtype == torch.float32 else 2**-8
        torch.testing.assert_close(ours.double(), theirs.double(), rtol=step, atol=step * theirs.abs().max().item())


def test_it_is_at_most_that_of_all_choices_and_nears_it():
    student, teacher = 3 * torch.randn(SHAPE), 3 * torch.randn(SHAPE)
    whole = forward_kl(student, teacher).item()
    found = [kl_to_top(student, top_choices(teacher, count), 1.0).item() for count in (1, 8, 32, 99)]
    assert found == sorted(found) and found[-1] <= whole * (1 + 1e-6)
    assert found[-1] == pytest.approx(whole, rel=1e-5)


def test_certain_choices_leave_a_finite_loss():
    teacher = torch.full((1, 1, 10), -1e4).index_fill(-1, torch.tensor([3]), 1e4)
    student = torch.zeros(1, 1, 10, requires_grad=True)
    loss = kl_to_top(student, top_choices(teacher, 2), 1.0)
    loss.backward()
    assert loss.item() == pytest.approx(torch.tensor(10.0).log().item(), rel=1e-4)
    assert student.grad.isfinite().all()


@pytest.fixture
def new_run(recipe_file, model_folder, data_folder, tmp_path):
    def make(name="run", teacher="original", **train):
        run = run_of(recipe_file, model_folder, data_folder, tmp_path / name, Progress(quiet=True))
        run.recipe.distill.teacher = str(teacher)
        for key, value in train.items():
            setattr(run.recipe.train, key, value)
        return run

    return make


def losses(run):
    """Of each step of its training."""
    with run.opened():
        torchqat.runs.fine_tune.fine_tune(run)
    return [json.loads(line)["loss"] for line in (run.folder / "metrics.jsonl").read_text().splitlines()]


def test_a_training_from_stored_answers_is_that_from_the_float_model(new_run, tmp_path, monkeypatch):
    """All but one choice are kept, so that the sums alone differ; and no step asks the float model."""
    run = new_run(steps=4, validate_every=0)
    vocabulary = run.original.config.vocab_size
    write_teacher(run, tmp_path / "teacher", vocabulary - 1)
    whole = losses(new_run("whole", steps=4, validate_every=0))
    own = new_run("own", tmp_path / "teacher", steps=4, validate_every=0)
    asked, outputs = [], own.kind.outputs
    monkeypatch.setattr(own.kind, "outputs", lambda model, batch: asked.append(model) or outputs(model, batch))
    stored = losses(own)
    assert asked and not any(model is own.original for model in asked)
    assert stored == pytest.approx(whole, rel=1e-3, abs=2e-8)  # what sums of float32 probabilities are off by


def test_an_interrupted_writing_goes_on(new_run, tmp_path, monkeypatch):
    run, asked = new_run(steps=45), []
    outputs = run.kind.outputs

    def counting(model, batch):
        asked.append(1)
        if len(asked) == 30:
            raise KeyboardInterrupt
        return outputs(model, batch)

    monkeypatch.setattr(run.kind, "outputs", counting)
    with pytest.raises(KeyboardInterrupt):
        write_teacher(run, tmp_path / "teacher", 4)
    assert len(list((tmp_path / "teacher").glob("*.safetensors"))) == 1
    with pytest.raises(torchqat.UserError, match=matches("teacher.too-few-steps", there=20, steps=45)):
        StoredTeacher(tmp_path / "teacher").check_steps(45)
    write_teacher(run, tmp_path / "teacher", 4)
    assert len(asked) == 30 + 25  # those of the file that was not finished again, and no more than the last step
    answers = StoredTeacher(tmp_path / "teacher")
    answers.check_steps(45)
    for step in (0, 19, 20, 44):
        expected = top_choices(outputs(run.original, run.data.train[step]), 4)
        assert torch.equal(answers[step].choices, expected.choices)
        assert torch.equal(answers[step].log_probabilities, expected.log_probabilities)


def test_more_steps_are_asked_for_alone(new_run, tmp_path, monkeypatch):
    """No step is asked for that the training does not take, and none twice where it is to take more."""
    run, folder, asked = new_run(steps=3), tmp_path / "teacher", []
    outputs = run.kind.outputs
    monkeypatch.setattr(run.kind, "outputs", lambda model, batch: asked.append(1) or outputs(model, batch))
    for steps, files in ((3, ["000-002"]), (3, ["000-002"]), (22, ["000-019", "020-021"]), (7, ["000-019", "020-021"])):
        run.recipe.train.steps = steps
        write_teacher(run, folder, 4)
        assert sorted(f.stem[9:13] + f.stem[16:] for f in folder.glob("*.safetensors")) == files
    assert len(asked) == 22
    StoredTeacher(folder).check_steps(22)
    for step in (0, 2, 3, 21):
        expected = top_choices(outputs(run.original, run.data.train[step]), 4)
        assert torch.equal(StoredTeacher(folder)[step].choices, expected.choices)


def test_what_does_not_fit_is_refused_before_training(new_run, tmp_path):
    write_teacher(new_run(steps=4), tmp_path / "teacher", 4)
    for change, key in (
        ({"seed": 7}, "seed"),
        ({"batch_size": 3}, "rows"),
        ({"sequence_length": 16}, "sequence_length"),
    ):
        with (
            pytest.raises(torchqat.UserError, match=matches("teacher.of-something-else", key=key)),
            new_run("other", tmp_path / "teacher", steps=4, **change).opened(),
        ):
            pass
    (tmp_path / "data" / "06.py").write_text("def another(): return 0\n" * 20)
    with (
        pytest.raises(torchqat.UserError, match=matches("teacher.of-other-contents", key="data")),
        new_run("other", tmp_path / "teacher", steps=4).opened(),
    ):
        pass
    (tmp_path / "data" / "06.py").write_text(TEXT[6])
    with (
        pytest.raises(torchqat.UserError, match=matches("teacher.too-few-steps", there=4, steps=5)),
        new_run("other", tmp_path / "teacher", steps=5).opened(),
    ):
        pass
    with pytest.raises(torchqat.UserError, match=matches("teacher.none")), new_run("other", tmp_path, steps=4).opened():
        pass
    assert not (tmp_path / "other").exists()
    with pytest.raises(torchqat.UserError, match=matches("teacher.of-something-else", key="top")):
        write_teacher(new_run(steps=4), tmp_path / "teacher", 5)


def test_what_was_refused_leaves_nothing_in_the_way(new_run, tmp_path):
    run = new_run(steps=2)
    vocabulary = run.original.config.vocab_size
    with pytest.raises(torchqat.UserError, match=matches("teacher.top", vocabulary=vocabulary, top=vocabulary)):
        write_teacher(run, tmp_path / "teacher", vocabulary)
    write_teacher(run, tmp_path / "teacher", 4)
    StoredTeacher(tmp_path / "teacher").check_steps(2)


@pytest.mark.parametrize("change", [{"steps": 0}, {"loss": "cross_entropy"}, {"weight": 0.0}])
def test_a_recipe_that_learns_from_no_teacher_is_refused(new_run, tmp_path, change):
    run = new_run(steps=change.pop("steps", 4))
    for key, value in change.items():
        setattr(run.recipe.distill, key, value)
    with pytest.raises(torchqat.UserError, match=matches("teacher.not-distilled")):
        write_teacher(run, tmp_path / "teacher")
    assert not (tmp_path / "teacher").exists()


def test_by_the_command_line(capsys, recipe_file, model_folder, data_folder, tmp_path):
    options = ["--model", model_folder, "--data", data_folder, "--output", tmp_path / "teacher"]
    said = json.loads(call(capsys, "teacher", recipe_file, *options, "--top", 16, "--json")[1])
    assert said["top"] == 16 and said["bytes"] == sum(
        f.stat().st_size for f in (tmp_path / "teacher").glob("*.safetensors")
    )


def test_other_kinds_are_refused(recipe_file, data_folder, encoder_folder, tmp_path):
    recipe = torchqat.load_recipe(str(recipe_file))
    recipe.model.kind = "sentence_encoder"
    run = run_of(recipe, encoder_folder, data_folder, tmp_path / "run", Progress(quiet=True))
    with pytest.raises(torchqat.UserError, match=matches("teacher.another-kind", kind="sentence_encoder")):
        write_teacher(run, tmp_path / "teacher")
