"""``verify`` with engines: what it says of one that is missing, and what it makes of one that answers differently."""

import subprocess
import sys

import numpy as np
import pytest
import torch
import torchqat
from sentences import matches, said
from small_net import recipe_for
from torchqat.verification.engines import ENGINES, TRANSFORMERS, VLLM, Engine, Question, Served, Speed, find_engine
from torchqat.verification.engines.agreement import agreement_of
from torchqat.verification.engines.caches import NO_CACHES
from torchqat.verification.engines.workers import serving
from torchqat.verification.result import Verification

GROUPS = "{dtype: int4, group_size: 32, grid: full, scale_dtype: float16}"


@pytest.fixture
def model(tiny_llama):
    return torchqat.prepare(tiny_llama, recipe_for(GROUPS)).eval()


# -- engines that are not there ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("engine", "format", "package"),
    [("vllm", "awq", "vllm"), ("llama.cpp", "gguf", "llama-cpp"), ("transformers", "gptq", "gptqmodel")],
)
def test_a_missing_engine_is_named_with_what_installs_it(engine, format, package, model, tmp_path, monkeypatch):
    monkeypatch.delenv(ENGINES[engine].variable(), raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    folder = torchqat.export(model, tmp_path / "out", format)
    with pytest.raises(
        torchqat.UserError, match=matches("verify.engine-missing", install=f"pip install torchqat[{package}]")
    ):
        torchqat.verify(folder, model, engine=engine)


def test_an_engine_that_does_not_load_the_format_is_refused(model, tmp_path):
    folder = torchqat.export(model, tmp_path / "out", "awq")
    with pytest.raises(
        torchqat.UserError,
        match=matches("verify.engine-of-other-formats", format="awq", engine="llama.cpp", formats="gguf"),
    ):
        torchqat.verify(folder, model, engine="llama.cpp")
    with pytest.raises(torchqat.UserError, match=matches("verify.engine-unknown", engine="tensorflow")):
        find_engine("tensorflow")


def test_an_engine_that_fails_is_quoted(model, tmp_path, monkeypatch):
    """An interpreter that has no such package stands in for an engine that breaks."""
    monkeypatch.setenv(VLLM.variable(), sys.executable)
    folder = torchqat.export(model, tmp_path / "out", "awq")
    why = "ModuleNotFoundError: No module named 'vllm'"
    with pytest.raises(torchqat.UserError, match=matches("verify.engine-failed", engine="vllm", why=why)):
        torchqat.verify(folder, model, engine="vllm")


# -- what an engine answers -------------------------------------------------------------------------------------------


def test_transformers_is_asked_by_default(model, tmp_path):
    folder = torchqat.export(model, tmp_path / "out")
    checked = torchqat.verify(folder, model)
    assert checked.ok and checked.agreement.engine == "transformers" and checked.agreement.kl < 1e-9
    assert checked.agreement.top1 == 1 and checked.agreement.same_text == 4


def test_bench_runs_in_a_process_of_its_own_beside_the_float_model(tiny_llama, tmp_path):
    tiny_llama.save_pretrained(tmp_path / "float")
    model = torchqat.prepare(tiny_llama, recipe_for(GROUPS)).eval()
    folder = torchqat.export(model, tmp_path / "out")
    checked = torchqat.verify(folder, model, bench=True, baseline=str(tmp_path / "float"))
    assert checked.ok, str(checked)
    for speed in (checked.speed, checked.baseline):
        assert speed.prefill > speed.decode > 0 and speed.load_seconds > 0 and speed.peak_bytes > 50e6


def test_readers_are_not_timed(model, tmp_path):
    folder = torchqat.export(model, tmp_path / "out", "awq")
    with pytest.raises(torchqat.UserError, match=matches("verify.engine-not-given", format="awq")):
        torchqat.verify(folder, model, bench=True)


def test_rounded_inputs_are_not_compared_in_transformers(tiny_llama, tmp_path):
    model = torchqat.prepare(tiny_llama, recipe_for("{dtype: int8}", "{dtype: int8}"))
    folder = torchqat.export(model, tmp_path / "out")
    assert torchqat.verify(folder, model).agreement is None
    checked = torchqat.verify(folder, model, engine="transformers")
    assert checked.ok and said(str(checked), "verify.not-compared")


def _answers(model, prompts, change=lambda table: table):
    with torch.no_grad():
        tables = [torch.log_softmax(model(input_ids=p[None], use_cache=False).logits[0].float(), -1) for p in prompts]
    text = []
    for prompt in prompts:
        tokens = prompt
        for _ in range(3):
            with torch.no_grad():
                tokens = torch.cat([tokens, model(input_ids=tokens[None], use_cache=False).logits[0, -1:].argmax(-1)])
        text.append(tokens[len(prompt) :].tolist())
    return Served([change(table.numpy()) for table in tables], text, [], Speed(0.0, 0))


def test_equal_answers_agree(model):
    prompts = torch.randint(0, 400, (2, 9))
    found = agreement_of(TRANSFORMERS, _answers(model, prompts), model, prompts, half=False)
    assert found.ok and found.kl < 1e-10 and found.top1 == 1 and found.same_text == 2


def test_kl_is_that_of_the_distributions(model):
    prompts = torch.randint(0, 400, (2, 9))
    uniform = np.full((9, 400), -np.log(400.0), dtype=np.float32)
    found = agreement_of(TRANSFORMERS, _answers(model, prompts, lambda _: uniform), model, prompts, half=False)
    with torch.no_grad():
        log = torch.log_softmax(model(input_ids=prompts, use_cache=False).logits.double(), -1)
    assert found.kl == pytest.approx((log.exp() * (log + np.log(400.0))).sum(-1).mean().item(), rel=1e-5)
    assert not found.ok and said(str(found), "verify.kl")


def test_tokens_that_an_engine_does_not_list_count_as_one(model):
    """Merging what is not listed can only lose KL, and loses none when the engine agrees."""
    prompts = torch.randint(0, 400, (1, 9))

    def likeliest(table):
        cut = table.copy()
        cut[table < np.sort(table, -1)[:, -20:-19]] = np.nan
        return cut

    found = agreement_of(VLLM, _answers(model, prompts, likeliest), model, prompts, half=True)
    assert found.ok and abs(found.kl) < 1e-6 and found.top1 == 1


def test_a_clear_choice_that_is_overruled_is_counted(model):
    prompts = torch.randint(0, 400, (1, 9))
    engine = Engine("other", {}, "", kl_bound=1e9, margin=0.01, why="", caches=NO_CACHES)

    def prefer_the_least_likely(table):
        changed = table.copy()
        changed[4, table[4].argmin()] = 0.0
        return changed

    found = agreement_of(engine, _answers(model, prompts, prefer_the_least_likely), model, prompts, half=False)
    assert found.overruled == 1 and not found.ok and said(str(found), "verify.choices-differ", count=1)


def test_a_choice_is_clear_where_rounded_inputs_may_not_reverse_it(model):
    """They may move KL by 5 times as much, which is quadratic in log-probabilities."""
    prompts = torch.randint(0, 400, (1, 9))
    with torch.no_grad():
        first, second = torch.log_softmax(model(input_ids=prompts).logits[0, 4].double(), -1).topk(2).values.tolist()

    def prefer_the_second(table):
        changed = table.copy()
        changed[4, table[4].argsort()[-2]] = 0.0
        return changed

    for share, overruled in ((2.0, 0), (2.3, 1)):
        engine = Engine("other", {}, "", kl_bound=1e9, margin=(first - second) / share, why="", caches=NO_CACHES)
        served = _answers(model, prompts, prefer_the_second)
        assert agreement_of(engine, served, model, prompts, half=True, rounded=True).overruled == overruled
        assert agreement_of(engine, served, model, prompts, half=True).overruled == 1


def test_other_tokens_are_counted(model, tokenizer):
    prompts = torch.randint(0, 400, (1, 4))
    served = _answers(model, prompts)
    texts = ["return argument", "def"]
    right = [tokenizer(text).input_ids for text in texts]
    for tokens, wrong in ((right, 0), ([right[0], [1, 2]], 1), ([None, None], 0)):
        answer = Served(served.logprobs, served.greedy, tokens, served.speed)
        assert agreement_of(TRANSFORMERS, answer, model, prompts, False, False, tokenizer, texts).mistokenized == wrong


# -- the worker's side ------------------------------------------------------------------------------------------------


class Echo:
    """An engine whose answers are known."""

    def __init__(self, folder, question):
        self.vocabulary = question["context"]

    def logprobs(self, prompt):
        return np.full((len(prompt), self.vocabulary), -1.0)

    def greedy(self, prompt, count):
        return [prompt[-1]] * count

    def tokenize(self, text):
        return [len(text)]


def test_a_job_is_done():
    question = Question("folder", [[1, 2], [3]], new_tokens=2, texts=["four"], context=5, threads=1)
    result, arrays = serving.serve(
        Echo, {**question.as_dict(), "bench": {"prompt": [1], "new_tokens": 4, "repeats": 2}}
    )
    served = Served.of(result, arrays)
    assert served.greedy == [[2, 2], [3, 3]] and served.tokens == [[4]]
    assert [table.shape for table in served.logprobs] == [(2, 5), (1, 5)]
    assert served.speed.prefill > 0 and served.speed.peak_bytes > 0


def test_workers_need_nothing_of_torchqat():
    """They run where it is not installed."""
    code = (
        "import sys; sys.modules['torchqat'] = None; sys.path.insert(0, sys.argv[1]); "
        "import serving, transformers_worker, onnxruntime_worker"
    )
    folder = str(__import__("pathlib").Path(serving.__file__).parent)
    done = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_nothing_compared_is_not_ok():
    assert not Verification(0).ok


def test_an_engine_that_computes_no_numbers_is_said(tiny_llama):
    tokens = torch.randint(0, tiny_llama.config.vocab_size, (1, 4))
    answered = np.zeros((4, tiny_llama.config.vocab_size), np.float32)
    answered[2] = np.nan
    served = Served([answered], [[1]], [], Speed(1.0, 1))
    with pytest.raises(torchqat.UserError, match=matches("engine.no-numbers", engine="transformers")):
        agreement_of(TRANSFORMERS, served, tiny_llama, tokens, half=False)
