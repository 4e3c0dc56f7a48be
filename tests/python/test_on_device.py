"""Calibration, solvers, evaluation, sensitivity and tasks on a GPU that is pretended, whose numbers are the host's.

``pretend_gpu.py`` refuses what mixes devices. Sums are added there in another order than on the host, where torch has other
kernels for it: results are near, not equal.
"""

import copy
from contextlib import nullcontext

import pytest
import torch
import torchqat
from block_models import prepared as of_blocks
from conftest import Tiny, new_model
from pretend_gpu import PretendGpu
from torch import nn
from torchqat._library import DistillSection
from torchqat.data.batch import to_device
from torchqat.device import CPU
from torchqat.kinds import find_kind
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    MixtralConfig,
    MixtralForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

CUDA = torch.device("cuda:0")
INT4 = "weight: {dtype: int4, group_size: 32, grid: full, scale: learned}"
FIXED = "weight: {dtype: int8}, input: {dtype: int8, granularity: tensor}"


class Deep(Tiny):
    layers = 6


def recipe(settings="", rule=INT4, match="model.layers.*", more=""):
    return torchqat.parse_recipe(f'version: 1\nlayers: [{{match: "{match}", {rule}}}]\n{settings}\n{more}', "r.yaml")


def ids(count=3, rows=2, length=32):
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(0, Tiny.vocabulary, (rows, length), generator=generator) for _ in range(count)]


def logits(model, batch):
    return model(input_ids=batch, use_cache=False).logits


def places(model):
    return {tensor.device for tensor in model.state_dict().values()}


def near(model, other, tolerance=1e-3, share=0.0):
    """Whether two models have the same state, but for a ``share`` of elements, which lie on the border of two levels."""
    for (name, found), wanted in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
        far = (found.float() - wanted.float()).abs() > tolerance * wanted.float().abs().max().clamp(min=1e-6)
        assert far.float().mean() <= share, name


# -- calibrate ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def in_float32(monkeypatch):
    """Gradients for GPTQ are of bfloat16 products on some processors, and then not those of a GPU."""
    monkeypatch.setattr("torchqat.ptq.output_gradients._fast", lambda placed: nullcontext())


METHODS = ["gptq", "awq", "mse", "rtn", "hadamard+gptq", "smoothquant+rtn"]


@pytest.mark.parametrize("rule", [INT4, FIXED], ids=["weights", "inputs"])
@pytest.mark.parametrize("method", METHODS)
def test_a_model_on_the_host_is_calibrated_on_the_gpu(method, rule, tiny_llama, in_float32):
    # In passes over all codes, one on the border of two levels moves what all others of its layer are rounded from.
    settings = f"initialize: {{method: {method}{', sweeps: 0' if 'gptq' in method else ''}}}"
    models = [torchqat.prepare(copy.deepcopy(tiny_llama), recipe(settings, rule)) for _ in "12"]
    wanted = torchqat.calibrate(models[0], ids(), logits)
    with PretendGpu("xla:0") as gpu:  # where gradients go back
        found = torchqat.calibrate(models[1], ids(), logits, device=gpu.device)
    assert places(models[1]) == {CPU} and gpu.most > 0
    near(models[1], models[0], share=0.01)
    assert found.warnings == wanted.warnings and found.ranges.keys() == wanted.ranges.keys()
    assert found.losses == pytest.approx(wanted.losses, rel=1e-4)


def test_passes_over_codes_end_as_near_on_the_gpu(tiny_llama, in_float32):
    models = [torchqat.prepare(copy.deepcopy(tiny_llama), recipe("initialize: {method: gptq}")) for _ in "12"]
    wanted = torchqat.calibrate(models[0], ids(), logits)
    with PretendGpu("xla:0") as gpu:
        found = torchqat.calibrate(models[1], ids(), logits, device=gpu.device)
    assert places(models[1]) == {CPU} and gpu.most > 0
    assert sum(found.losses.values()) == pytest.approx(sum(wanted.losses.values()), rel=0.05)


def test_a_model_on_the_gpu_is_calibrated_there(tiny_llama, gpu):
    model = torchqat.prepare(tiny_llama, recipe("initialize: {method: gptq, objective: layer}")).to(CUDA)
    torchqat.calibrate(model, ids(), logits)  # on batches of the host
    assert places(model) == {CUDA}
    torchqat.calibrate(model, ids(), logits, device="cpu")
    assert places(model) == {CUDA}


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_what_it_takes_on_the_gpu_grows_neither_with_blocks_nor_with_batches(method, monkeypatch):
    monkeypatch.setattr("torchqat.device.BUILT_WITH_CUDA", True)
    most = []
    for layers, count in ((2, 2), (6, 2), (2, 8)):
        monkeypatch.setattr(Deep, "layers", layers)
        model = torchqat.prepare(new_model(Deep, 64, seed=0).eval(), recipe(f"initialize: {{method: {method}}}"))
        with PretendGpu("xla:0") as gpu:
            torchqat.calibrate(model, [batch % 64 for batch in ids(count)], logits, device=gpu.device)
        most.append(gpu.most)
    block = sum(tensor.nbytes for tensor in model.model.layers[0].state_dict().values())
    assert max(most) - min(most) < 0.2 * block


def test_blocks_are_trained_on_the_gpu(tiny_llama):
    settings = "initialize: {method: gptq, objective: layer, block_training: {steps: 4, batch_size: 2}}"
    models = [torchqat.prepare(copy.deepcopy(tiny_llama), recipe(settings)) for _ in "12"]
    torchqat.calibrate(models[0], ids(4), logits)
    with PretendGpu("xla:0") as gpu:
        torchqat.calibrate(models[1], ids(4), logits, device=gpu.device)
    near(models[1], models[0], share=0.05)


def _mixtral():
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "vocab_size": Tiny.vocabulary}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "num_local_experts": 4}
    return MixtralForCausalLM(MixtralConfig(**sizes, **heads)).eval()


def _t5():
    sizes = {"d_model": 32, "d_ff": 64, "d_kv": 16, "num_layers": 2, "num_heads": 2, "vocab_size": Tiny.vocabulary}
    return T5ForConditionalGeneration(T5Config(**sizes, decoder_start_token_id=0)).eval()


def small_conv():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(8 * 16, 5)).eval()


@pytest.mark.parametrize(
    "build, batches",
    [
        (_mixtral, [{"input_ids": batch, "use_cache": False} for batch in ids()]),
        (_t5, [{"input_ids": batch, "decoder_input_ids": batch[:, :8]} for batch in ids()]),
        (small_conv, [torch.randn(2, 3, 8, 8) for _ in range(3)]),
    ],
)
def test_experts_encoders_with_decoders_and_convolutions(build, batches, gpu):
    layer = "{method: gptq, objective: layer}"
    models = [of_blocks(model, initialize=layer) for model in [build()] for _ in "12"]
    given = lambda model, batch: model(**batch) if isinstance(batch, dict) else model(batch)  # noqa: E731
    wanted = torchqat.calibrate(models[0], batches, given)
    found = torchqat.calibrate(models[1], batches, given, device="cuda")
    assert places(models[1]) == {CPU} and found.warnings == wanted.warnings
    near(models[1], models[0], share=0.02)


def test_caches_are_calibrated_on_the_gpu(tiny_llama, gpu):
    more = "kv_cache: {dtype: fp8_e4m3}\n"
    models = [torchqat.prepare(copy.deepcopy(tiny_llama), recipe("initialize: {method: mse}", more=more)) for _ in "12"]
    wanted = torchqat.calibrate(models[0], ids(), logits)
    found = torchqat.calibrate(models[1], ids(), logits, device="cuda")
    assert found.cache_scales.keys() == wanted.cache_scales.keys() != set()
    near(models[1], models[0])


# -- evaluate, sensitivity, tasks --------------------------------------------------------------------------------------


def same_figures(found, wanted):
    for name, value in vars(wanted).items():
        if name == "kl_shares":  # some are near the end of a bin
            assert sum(getattr(found, name)) == pytest.approx(1)
            continue
        assert getattr(found, name) == (value if value is None else pytest.approx(value, rel=1e-3, abs=1e-6)), name


def small_classifier(labels=3):
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return BertForSequenceClassification(BertConfig(**sizes, vocab_size=Tiny.vocabulary, num_labels=labels)).eval()


def _encoder():
    return BertModel(small_classifier().config, add_pooling_layer=False).eval()


def labelled(labels=3):
    return [
        {
            "input_ids": batch,
            "attention_mask": torch.ones_like(batch),
            "labels": batch[:, 0] % labels if labels > 1 else batch[:, 0].float(),
        }
        for batch in ids(rows=4)
    ]


KINDS = {
    "causal_lm": lambda: (new_model(Tiny, Tiny.vocabulary, 0).eval(), ids(), "model.layers.*"),
    "classifier": lambda: (small_classifier(), labelled(), "bert.encoder.*"),
    "regression": lambda: (small_classifier(1), labelled(1), "bert.encoder.*"),
    "images": lambda: (small_conv(), [(torch.randn(4, 3, 8, 8), torch.arange(4)) for _ in range(2)], "*"),
    "sentence_encoder": lambda: (
        _encoder(),
        [{k: v for k, v in b.items() if k != "labels"} for b in labelled()],
        "enc*",
    ),
}


def kind_of(name):
    return name if name in ("causal_lm", "sentence_encoder") else "classifier"


@pytest.mark.parametrize("name", KINDS)
def test_both_models_are_evaluated_on_the_gpu_or_where_they_are(name, gpu):
    original, batches, match = KINDS[name]()
    model = torchqat.prepare(copy.deepcopy(original), recipe(rule="weight: {dtype: int8}", match=match))
    kind = kind_of(name)
    wanted = torchqat.evaluate(model, batches, original, kind)
    same_figures(torchqat.evaluate(model, batches, original, kind, device="cuda"), wanted)
    assert places(model) == places(original) == {CPU}
    same_figures(torchqat.evaluate(model.to(CUDA), batches, original, kind), wanted)
    torchqat.evaluate(original, batches, model, kind)
    assert places(model) == {CUDA} and places(original) == {CPU}


def test_evaluation_goes_by_blocks_where_there_is_no_room(monkeypatch):
    monkeypatch.setattr("torchqat.device.BUILT_WITH_CUDA", True)
    original = new_model(Deep, 64, seed=0).eval()
    model = torchqat.prepare(copy.deepcopy(original), recipe())
    batches = [batch % 64 for batch in ids()]
    size = sum(tensor.nbytes for tensor in original.state_dict().values())
    wanted = torchqat.evaluate(model, batches, original)
    with PretendGpu(memory=size) as gpu:
        same_figures(torchqat.evaluate(model, batches, original, device="auto"), wanted)
        assert gpu.most < size
    assert places(model) == {CPU}


@pytest.mark.parametrize("name", ["causal_lm", "classifier", "images"])
def test_sensitivity_is_measured_on_the_gpu(name, gpu):
    model, batches, match = KINDS[name]()
    plan = torchqat.make_plan(model, recipe(rule="weight: {dtype: int4}", match=match))
    kind = kind_of(name)
    wanted = torchqat.sensitivity.sensitivity(model, plan, batches, (2, 8), kind)
    for memory in (1 << 34, 1 << 15):
        gpu.memory = memory
        found = torchqat.sensitivity.sensitivity(model, plan, batches, (2, 8), kind, device="cuda")
        assert places(model) == {CPU}
        for one, other in zip(found, wanted, strict=True):
            assert one.name == other.name and one.kl == pytest.approx(other.kl, rel=2e-2, abs=1e-6)


TASK = [
    {"prompt": "def function", "expected": "_1"},
    {"prompt": "def ", "choices": ["function", "xyz"], "answer": 0},
]


def test_tasks_are_scored_on_the_gpu(tiny_llama, tokenizer, gpu):
    task = torchqat.tasks.Task("own", TASK)
    wanted = task.scores(tiny_llama, tokenizer)
    assert task.scores(tiny_llama.to(CUDA), tokenizer) == wanted
    labels = torchqat.tasks.Task("own", [{"text": "def function", "label": 1}])
    classifier = small_classifier()
    wanted = labels.scores(classifier, tokenizer)
    assert labels.scores(classifier.to(CUDA), tokenizer) == wanted


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("loss", ["kl", "cross_entropy"])
def test_losses_are_computed_where_the_model_is(loss, name):
    model, batches, _ = KINDS[name]()
    kind = find_kind(kind_of(name))
    settings = DistillSection()
    settings.loss, settings.weight = loss, 0.5
    wanted = kind.loss(settings, found := kind.outputs(model, batches[0]), found.detach() * 0.9, batches[0])
    with PretendGpu("xla:0") as gpu:
        batch = to_device(batches[0], gpu.device)
        found = kind.outputs(model.to(gpu.device), batch)
        found = kind.loss(settings, found, found.detach() * 0.9, batch)
        assert found.device == gpu.device and found.item() == pytest.approx(wanted.item(), rel=1e-5)
        found.backward()
        assert next(p.grad for p in model.parameters() if p.grad is not None).device == gpu.device
