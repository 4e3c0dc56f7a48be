"""``torchqat evaluate --kind``: models that write no text, quantized or not, on all of a file."""

import json

import pytest
import torchqat
from command import call
from sentences import matches
from torchqat.kinds import find_kind

RECIPE = 'version: 1\nlayers: [{match: "*.layer.*", weight: {dtype: int4, group_size: 32, grid: full}}]\n'


@pytest.fixture
def labelled(tmp_path):
    lines = [{"text": f"def function_{i}(argument): return {i % 3}", "label": i % 3} for i in range(40)]
    path = tmp_path / "labelled.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def evaluated(capsys, *arguments):
    code, out, err = call(capsys, "evaluate", *arguments, "--json")
    assert code == 0, err
    return json.loads(out)


def exported(kind, folder, out):
    """The model in ``folder``, quantized."""
    model = torchqat.prepare(find_kind(kind).load(str(folder), "float32"), torchqat.parse_recipe(RECIPE))
    return torchqat.export(model, out, tokenizer=find_kind(kind).load_tokenizer(str(folder))), model


def test_a_classifier_is_measured_on_all_of_its_file(capsys, classifier_folder, labelled, tmp_path):
    folder, model = exported("classifier", classifier_folder, tmp_path / "out")
    places = ["--data", labelled, "--kind", "classifier", "--reference", classifier_folder]
    found = evaluated(capsys, folder, *places)
    kind = find_kind("classifier")
    original = kind.load(str(classifier_folder), "float32")
    batches = kind.measured(str(labelled), str(classifier_folder), 64, kind.load_tokenizer(str(classifier_folder)))
    wanted = torchqat.evaluate(model, batches, original, kind)
    assert found["tokens"] == wanted.tokens == 40
    assert found["perplexity"] == pytest.approx(wanted.perplexity, rel=1e-5)
    assert found["kl"] == pytest.approx(wanted.kl, rel=1e-5) and found["kl"] > 0
    assert evaluated(capsys, folder, *places, "--samples", "10")["tokens"] == 10


def test_a_sentence_encoder_is_held_against_its_reference(capsys, encoder_folder, data_folder, tmp_path):
    folder, _ = exported("sentence_encoder", encoder_folder, tmp_path / "out")
    found = evaluated(
        capsys,
        folder,
        "--data",
        data_folder,
        "--kind",
        "sentence_encoder",
        "--reference",
        encoder_folder,
        "--samples",
        30,
    )
    assert found["tokens"] == 30 and found["perplexity"] is None
    assert 0.9 < found["cosine"] < 1 and found["kl"] > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--kind", "detector"], matches("evaluate.no-kind", name="detector")),
        (["--kind", "classifier", "--loss-on", "all"], matches("evaluate.no-conversations", name="classifier")),
        (["--kind", "sentence_encoder"], matches("evaluate.no-reference")),
    ],
)
def test_what_a_kind_is_not_measured_by_is_said_before_it_is_loaded(options, message, capsys):
    import re

    code, _, err = call(capsys, "evaluate", "absent", "--data", "absent", *options)
    assert code == 2 and re.search(message, err)
