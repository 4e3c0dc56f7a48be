"""Low precision is chosen only where the device multiplies it, and one that is asked for and emulated is said."""

import json
import os
import subprocess
import sys
import time

import pytest
import torch
import torchqat
from conftest import RECIPE, TEXT
from sentences import said, sentence
from torchqat.data.corpus import Corpus
from torchqat.device import CPU
from torchqat.kinds.causal_lm import CausalLM
from torchqat.precision import Products, emulated, products
from torchqat.runs.progress import Progress
from torchqat.runs.scratch import train_scratch
from torchqat.training.muon import Muon, orthogonalized

GPU = torch.device("cuda:0")
LIMITS = {"TORCHQAT_CPU_CAPABILITY": "avx2", "ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
HAS_BFLOAT16 = products(CPU, torch.bfloat16).multiplied


@pytest.fixture
def processor(monkeypatch):
    """Makes torch see the instructions of another processor, none of which is hidden."""

    def processor(architecture, *instructions):
        found = {"architecture": architecture, **dict.fromkeys(instructions, True)}
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found)
        monkeypatch.setattr("torchqat.precision._hidden", lambda _: "")

    return processor


@pytest.mark.parametrize(
    "architecture, instructions, bfloat16, float16",
    [
        ("x86_64", ["avx2", "fma3"], False, False),  # Haswell, Zen 3
        ("x86_64", ["avx2", "avx512_f", "avx512_bw", "avx512_vnni"], False, False),  # Skylake-SP, Cascade Lake
        ("x86_64", ["avx2", "avx512_f", "avx512_bf16"], True, False),  # Zen 4, Cooper Lake
        ("x86_64", ["avx2", "avx512_f", "avx512_bf16", "amx_bf16", "avx512_fp16"], True, True),  # Sapphire Rapids
        ("arm64", ["neon", "fp16_arith"], False, True),  # Neoverse N1
        ("arm64", ["neon", "fp16_arith", "bf16", "sve"], True, True),  # Neoverse V1
        ("ppc64le", [], False, False),
    ],
)
def test_what_processors_multiply(architecture, instructions, bfloat16, float16, processor):
    processor(architecture, *instructions)
    assert products(CPU, torch.bfloat16).multiplied == bfloat16
    assert products(CPU, torch.float16).multiplied == float16
    assert products(CPU, torch.float32).multiplied


@pytest.mark.parametrize(
    "capability, bfloat16, float16", [((6, 1), False, False), ((7, 5), False, True), ((8, 0), True, True)]
)
def test_what_gpus_multiply(capability, bfloat16, float16, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    found = products(GPU, torch.bfloat16)
    assert found.multiplied == bfloat16 and "{}.{}".format(*capability) in found.why
    assert products(GPU, torch.float16).multiplied == float16


def test_an_emulated_dtype_is_said_with_its_reason(processor):
    processor("x86_64", "avx2")
    assert emulated(CPU, torch.bfloat16, "model.dtype") == sentence(
        "precision.emulated",
        what="model.dtype",
        dtype="bfloat16",
        device="cpu",
        why="the processor has no AMX_BF16 or AVX512_BF16",
    )
    assert not emulated(CPU, torch.float32, "model.dtype")


def seconds(dtype):
    """Of the processor, for a product: the least of several, which others on the machine do not lengthen."""
    a = torch.randn(384, 384).to(dtype)
    found = []
    for _ in range(6):
        begun = time.process_time()
        a @ a
        found.append(time.process_time() - begun)
    return min(found)


def times_float32(dtype):
    torch.set_num_threads(1)
    return seconds(dtype) / seconds(torch.float32)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_clock_agrees(dtype):
    """What is said to be multiplied takes no longer than float32, and what is said to be emulated takes much longer."""
    ratio = times_float32(dtype)
    assert ratio < 2 if products(CPU, dtype).multiplied else ratio > 3


def run(code, **environment):
    known = {**os.environ, "PYTHONPATH": os.path.dirname(__file__), **environment}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=known)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(not HAS_BFLOAT16, reason="the processor has nothing to hide")
@pytest.mark.parametrize("name", LIMITS)
def test_hidden_instructions_do_not_count(name):
    code = "import sys; sys.argv = ['torchqat', '--json', 'doctor']; from torchqat.cli import main; main()"
    found = json.loads(run(code, **{name: LIMITS[name]}))["bfloat16"]
    assert said(found, "precision.doctor-emulated", device="cpu") and f"{name} hides " in found


def test_without_instructions_the_clock_agrees_as_well():
    """oneDNN, told to do without: that is what a processor with AVX2 alone does."""
    code = (
        "import torch; from test_precision import times_float32; from torchqat.precision import products\n"
        "print(products(torch.device('cpu'), torch.bfloat16).multiplied, times_float32(torch.bfloat16))"
    )
    multiplied, ratio = run(code, **LIMITS).split()
    assert multiplied == "False" and float(ratio) > 3


@pytest.mark.parametrize("multiplied", [True, False])
def test_a_scratch_model_trains_in_what_is_multiplied(multiplied, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHQAT_CACHE", str(tmp_path))
    monkeypatch.setattr("torchqat.runs.scratch.products", lambda *_: Products(multiplied, "it is said"))
    seen = set()

    def loss(logits, batch):
        seen.add(logits.dtype)
        return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), batch[:, 1:].flatten())

    monkeypatch.setattr("torchqat.runs.scratch.cross_entropy", loss)
    scratch = "{vocabulary: 300, hidden_size: 32, intermediate_size: 32, layers: 1, heads: 2, kv_heads: 1, steps: 1, "
    text = RECIPE.replace("data: {", f"model: {{scratch: {scratch}batch_size: 2, sequence_length: 32}}}}\ndata: {{", 1)
    recipe = torchqat.parse_recipe(text, "recipe.yaml")
    folder = train_scratch(recipe, Corpus(TEXT, TEXT), Progress(quiet=True), CPU)
    assert seen == {torch.bfloat16 if multiplied else torch.float32}
    monkeypatch.setattr("torchqat.runs.scratch.products", lambda *_: Products(not multiplied, "it is said"))
    assert train_scratch(recipe, Corpus(TEXT, TEXT), Progress(quiet=True), CPU) != folder, "another model"


@pytest.mark.parametrize("adjust", ["original", "match_rms_adamw"])
def test_muon_in_float32_takes_the_steps_of_torch(adjust, monkeypatch):
    """Of torch's, whose products are rounded to bfloat16, and of Newton and Schulz in float64."""
    settings = {"lr": 0.1, "momentum": 0.95, "weight_decay": 0.1, "adjust_lr_fn": adjust}
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(shape, generator=generator) for shape in ((24, 40), (40, 24))]
    gradients = [[torch.randn(p.shape, generator=generator) for p in start] for _ in range(3)]

    def moved(optimizer_of, dtype=torch.float32):
        parameters = [torch.nn.Parameter(p.to(dtype, copy=True)) for p in start]
        optimizer = optimizer_of(parameters, **settings)
        for step in gradients:
            for parameter, gradient in zip(parameters, step, strict=True):
                parameter.grad = gradient.to(dtype)
            optimizer.step()
        return parameters, optimizer

    theirs, theirs_state = moved(torch.optim.Muon)
    multiplied, _ = moved(Muon)
    monkeypatch.setattr("torchqat.training.muon.products", lambda *_: Products(False, "it is said"))
    ours, ours_state = moved(Muon)
    for begin, a, b in zip(start, ours, theirs, strict=True):
        assert 0 < (a - b).norm() < 0.02 * (b - begin).norm()  # bfloat16 has 8 bits: 1 % is seen
    if HAS_BFLOAT16:
        assert all(torch.equal(a, b) for a, b in zip(multiplied, theirs, strict=True)), "torch's own where it is quick"
    theirs_state.load_state_dict(ours_state.state_dict())
    x = gradients[0][0].double()
    exact = x / x.norm()
    for _ in range(5):
        gram = exact @ exact.T
        exact = 3.4445 * exact + (-4.775 * gram + 2.0315 * gram @ gram) @ exact
    found = orthogonalized(gradients[0][0], (3.4445, -4.775, 2.0315), 5, 1e-7)
    assert torch.allclose(found.double(), exact, atol=1e-5)


def test_what_is_asked_for_and_emulated_is_done_and_said(begin, processor):
    processor("x86_64", "avx2")
    seen = []
    watched = torch.nn.functional.linear

    def linear(x, *more):
        seen.append(torch.is_autocast_enabled("cpu"))
        return watched(x, *more)

    told = Progress(quiet=True)
    text = RECIPE.replace("train: {steps: 8", "train: {mixed_precision: bfloat16, steps: 2")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "linear", linear)
        report = begin(text, progress=told)
    asked = {"what": "train.mixed_precision", "dtype": "bfloat16", "device": "cpu"}
    assert any(seen) and [note for note in report.notes if said(note, "precision.emulated", **asked)]


def test_check_says_it_before_anything_is_paid_for(recipe_file, processor, capsys):
    from command import call

    processor("x86_64", "avx2")
    recipe_file.write_text(RECIPE.replace("train: {steps: 8", "train: {mixed_precision: bfloat16, steps: 8"))
    code, out, _ = call(capsys, "check", recipe_file)
    assert code == 0 and said(out, "precision.emulated", what="train.mixed_precision")
    recipe_file.write_text(RECIPE)
    assert not said(call(capsys, "check", recipe_file)[1], "precision.emulated")


@pytest.mark.parametrize("asked", ["none", "bfloat16"])
def test_the_control_is_trained_in_the_precision_of_the_recipe(asked, begin, monkeypatch):
    """Else it is not what quantization costs that the two differ by."""
    seen, own = [], CausalLM.loss

    def loss(self, settings, *given):
        if settings.loss == "cross_entropy":
            seen.append(torch.is_autocast_enabled("cpu"))
        return own(self, settings, *given)

    monkeypatch.setattr(CausalLM, "loss", loss)
    train = f"train: {{control: true, mixed_precision: {asked}, validate_every: 0, steps: 1"
    begin(RECIPE.replace("train: {steps: 8", train).split("evaluate:")[0])
    assert seen == [asked == "bfloat16"]
