"""report.html: everything a run found, in one file that fetches nothing."""

import json
import re
import sys
from html.parser import HTMLParser

import pytest
import torch
from command import call
from conftest import PTQ
from sentences import said
from torchqat.files import write_json
from torchqat.reports.html import write_html, write_pictures
from torchqat.reports.report import Limit, Report, Variant
from torchqat.runs.progress import Progress
from transformers import AutoModelForCausalLM

pytestmark = pytest.mark.drawn


class Page(HTMLParser):
    """The text of a page, its attributes, and whether its elements close."""

    def __init__(self, text):
        super().__init__()
        self.words, self.attributes, self.open = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.attributes += attributes
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.attributes += attributes

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data.strip())


@pytest.fixture
def folder(tmp_path):
    """A run's folder with figures that are easy to find again."""
    intervals = {"perplexity_ratio": [1.01, 0.99, 1.03], "kl": [0.02, 0.01, 0.03], "task_drop": [0.1, 0.05, 0.15]}
    sqnr = {
        f"model.layers.{block}.{kind}": 20.0 + block
        for block in range(3)
        for kind in ("mlp.up_proj", "self_attn.q_proj")
    }
    report = Report(
        baseline={
            "perplexity": 20.0,
            "bytes": 8_000_000,
            "bytes_at_16": 4_000_000,
            "tokens": 1000,
            "task": 0.9,
            "task_scores": [],
        },
        variants=[
            Variant("int8", "INT8", 8.25, 20.01, 0.0001, 0.99, 2_500_000, "exports/a", task=0.9),
            Variant(
                "int4",
                "INT4 <GPTQ>",
                4.25,
                20.2,
                0.02,
                0.95,
                1_500_000,
                "exports/b",
                task=0.8,
                intervals=intervals,
                sqnr=sqnr,
                kl_shares=[1 / 36] * 36,
                kl_by_position=[0.03, 0.02, 0.01],
                histograms={
                    "weights": {"ends": [-4.0, 4.0], "before": [0.25] * 4, "after": [0.0, 0.5, 0.5, 0.0]},
                    "scales": {"ends": [-2.0, 1.0], "after": [0.5, 0.5]},
                },
            ),
        ],
        accepted=True,
        limits=[Limit("KL", 0.02, 0.025), Limit("Cosine", 0.98, 0.95, at_least=True)],
        coverage=["70 % of the weights are quantized.", "30 % stay in floating point: lm_head, no rule matches it."],
        notes=["A note & more."],
        environment={"torch": "2.13", "device": "<cpu>"},
        chosen="int4",
        decision=["INT8 takes too much.", "Chosen: INT4."],
        engine={
            "name": "llama.cpp",
            "float": {"load_seconds": 1.0, "peak_bytes": 4e8, "prefill": 100.0, "decode": 10.0},
            "export": {"load_seconds": 0.5, "peak_bytes": 1e8, "prefill": 150.0, "decode": 23.4},
        },
        exports={"exports/b of <4>": {"variant": "int4", "sha256": "0123abcd"}},
        samples={
            "variant": "int4",
            "method": "INT4 <GPTQ>",
            "texts": [{"prompt": "def f(", "float": "x): return x", "quantized": "x): <pass>"}],
        },
    )
    run = tmp_path / "my run"
    write_json(run / "report.json", report.to_json())
    write_json(run / "run.json", {"model": "models/<m>", "data": "text", "steps": 3})
    (run / "recipe.yaml").write_text("version: 1  # <not html>\n")
    lines = [{"step": s, "loss": 1.0 / s, "weight_bits": [8 if s < 3 else 4]} for s in range(1, 6)]
    lines[4]["validation_kl"] = 0.1
    metrics = run / "candidates" / "int4" / "metrics.jsonl"
    metrics.parent.mkdir(parents=True)
    metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run


def test_it_says_what_was_measured(folder):
    page = Page(write_html(folder).read_text())
    text = " ".join(page.words)
    for expected in (
        "20.200", "19.800 to 20.600", "0.02000", "0.01000 to 0.03000", "80.00%", "75.00% to 85.00%", "0.38x", "of 16 bits",
        "KL 0.02, at most 0.025: met.", "Cosine 0.98, at least 0.95: met.", "30 % stay in floating point", "x): <pass>",
        "0123abcd",
        "The limits are met.", "Chosen: INT4.", "A note & more.", "INT4 <GPTQ>", "23.4", "Quality against size", "Training",
        "Weights and scales, before and after", "KL, prediction by prediction",
        "version: 1  # <not html>", "<cpu>", "--model 'models/<m>'", "within the noise",
    ):  # fmt: skip
        assert expected in text, expected
    assert not page.open


def test_it_fetches_nothing(folder):
    text = write_html(folder).read_text()
    page = Page(text)
    links = [value for name, value in page.attributes if name in ("src", "href", "xlink:href") and value]
    own = [link for link in links if not link.startswith(("#", "data:image/png;base64,"))]
    assert own == ["exports/b%20of%20%3C4%3E/"]  # which is followed when it is clicked
    assert "url(http" not in text and "@import" not in text and "<script" not in text


def test_pictures_take_the_ink_of_the_page(folder):
    text = write_html(folder).read_text()
    assert text.count("<svg") == 5 and "currentColor" in text and "prefers-color-scheme: dark" in text


def test_the_same_run_gives_the_same_file(folder):
    first = write_html(folder).read_bytes()
    assert write_html(folder).read_bytes() == first


def test_pictures_alone(folder, tmp_path):
    written = write_pictures(folder, tmp_path / "pictures")
    assert sorted(path.name for path in written) == [
        "layers.png", "layers.svg", "quality_and_size.png", "quality_and_size.svg", "token_kl.png", "token_kl.svg",
        "training.png", "training.svg", "weights.png", "weights.svg",
    ]  # fmt: skip
    for path in written:
        if path.suffix == ".png":
            assert path.read_bytes().startswith(b"\x89PNG")
        else:
            assert "currentColor" not in path.read_text() and path.read_text().startswith("<svg")


def test_a_run_that_has_hardly_begun_has_a_page(tmp_path):
    write_json(tmp_path / "run" / "report.json", Report().to_json())
    assert "<svg" not in write_html(tmp_path / "run").read_text()


def test_pictures_have_words_beside_them(folder):
    """Each is named by a text that the page has once, and no id is given twice."""
    page = Page(write_html(folder).read_text())
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    named = [value for name, value in page.attributes if name == "aria-labelledby"]
    assert len(named) == 5 and set(named) <= set(ids)
    text = " ".join(page.words)
    assert "Training loss from 1 to 0.2 over steps 1 to 5, at 8, then 4 bits. KL on held-out data goes from 0.1" in text
    assert (
        "Those that lose most: model.layers.0.mlp.up_proj (20.00)" in text
        and "Lower is nearer to the float model" in text
    )


def test_a_limit_that_is_not_met_is_named(folder):
    report = json.loads((folder / "report.json").read_text())
    report["accepted"], report["limits"][0]["value"] = False, 0.5
    write_json(folder / "report.json", report)
    text = " ".join(Page(write_html(folder).read_text()).words)
    assert "The limits are not met." in text and "KL 0.5, at most 0.025: NOT met." in text and "0.95: met." in text


def test_a_report_of_an_earlier_version_is_shown(folder):
    report = json.loads((folder / "report.json").read_text())
    del report["limits"], report["samples"], report["baseline"]["bytes_at_16"]
    write_json(folder / "report.json", report)
    text = " ".join(Page(write_html(folder).read_text()).words)
    assert "The limits are met." in text and "0.19x" in text and "of float" in text


def test_layers_are_shown_by_what_was_measured(folder):
    """Measured sensitivity comes before the noise of the weights."""
    assert "signal to noise, dB" in write_html(folder).read_text()
    report = json.loads((folder / "report.json").read_text())
    report["sensitivity"] = {f"model.layers.{i}.mlp.up_proj": {"4": 10.0**-i, "8": 1e-6} for i in range(3)}
    write_json(folder / "report.json", report)
    text = write_html(folder).read_text()
    assert "each layer alone at 4 bits" in text and "signal to noise, dB" not in text


def test_the_commands(folder, arguments, tmp_path, capsys):
    code, out, err = call(capsys, "run", *arguments)
    assert code == 0, err
    page = tmp_path / "run" / "report.html"
    assert str(page) in err and "INT4 QAT" in page.read_text()
    code, out, _ = call(capsys, "report", tmp_path / "run", folder, "--pictures", tmp_path / "pictures")
    assert code == 0 and "my run" in out and "INT4 <GPTQ> (chosen)" in out and "INT4 QAT" in out
    assert out.count("full precision") == 2, "by which one sees whether both measured on the same text"
    assert (tmp_path / "pictures" / "run" / "training.png").is_file()
    code, out, _ = call(capsys, "report", folder)
    assert code == 0 and re.search(r"INT8\s+8\.25", out)
    code, _, err = call(capsys, "report", tmp_path)
    assert code == 2 and said(err, "runs.no-run", file="report.json", folder=tmp_path)


def test_a_run_that_was_only_trained_is_reported(tmp_path, capsys):
    write_json(tmp_path / "report.json", Report().to_json())
    code, out, err = call(capsys, "report", tmp_path)
    assert code == 0 and "full precision" not in out, err
    assert said(out + err, "reports.nothing-measured", run=tmp_path)


def test_a_run_in_python_has_a_page_too(begin, tmp_path):
    """With the limits beside what was measured, and what both models write after the same words."""
    report = begin(PTQ + "train: {steps: 0}\nevaluate: {compare: [], accept: {kl: 100, perplexity_ratio: 0.5}}\n")
    text = " ".join(Page((tmp_path / "run" / "report.html").read_text()).words)
    kl, perplexity = report.limits
    assert kl.met and kl.value == report.variants[-1].kl and kl.bound == 100 and report.accepted is False
    assert not perplexity.met and perplexity.bound == 0.5 * report.baseline["perplexity"]
    assert "KL" in text and "at most 100: met." in text and "NOT met." in text
    assert report.coverage[0] in text and "exports/compressed-tensors-int4-gptq" in text
    assert report.baseline["bytes_at_16"] * 2 == report.baseline["bytes"]  # of float32


def test_samples_are_what_the_models_write(begin, tmp_path, model_folder, tokenizer):
    """The float model's by transformers' own greedy search, the quantized one's by what was exported."""
    report = begin(PTQ + "train: {steps: 0}\nevaluate: {compare: []}\n")
    assert report.samples["method"] == report.variants[-1].method and len(report.samples["texts"]) == 2
    loaded = {
        "float": AutoModelForCausalLM.from_pretrained(model_folder),
        "quantized": AutoModelForCausalLM.from_pretrained(tmp_path / "run" / report.variants[-1].export),
    }
    batch = torch.load(tmp_path / "run" / "checkpoints" / "example.pt", weights_only=True)["batch"]
    for index, text in enumerate(report.samples["texts"]):
        given = batch[index : index + 1, :24]
        assert text["prompt"] == tokenizer.decode(given[0], skip_special_tokens=True)
        for name, model in loaded.items():
            room = {"max_new_tokens": 48, "do_sample": False, "pad_token_id": 0}
            written = model.generate(given, attention_mask=torch.ones_like(given), **room)[0, given.shape[1] :]
            assert text[name] == tokenizer.decode(written, skip_special_tokens=True)


def test_a_page_that_cannot_be_drawn_costs_no_run(begin, tmp_path, monkeypatch):
    """Of a run in Python without the extra: it is measured and exported, and a note says what is missing."""
    said_then = []
    progress = Progress(quiet=True)
    progress.say = said_then.append
    monkeypatch.setitem(sys.modules, "jinja2", None)
    report = begin(PTQ + "train: {steps: 0}\nevaluate: {compare: []}\n", progress=progress)
    assert report.variants and not (tmp_path / "run" / "report.html").exists()
    assert any(said(text, "reports.not-written", library="jinja2") for text in said_then)
