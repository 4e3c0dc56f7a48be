"""Every format in every engine that runs on a CPU: bits equal, answers within the engine's bound.

Engines are those that TORCHQAT_VLLM, TORCHQAT_LLAMA_CPP, TORCHQAT_MLX, TORCHQAT_OPENVINO, TORCHQAT_ONNXRUNTIME_GENAI and
TORCHQAT_TRANSFORMERS name; make test-engines sets them up.
"""

import json
import os

import pytest
import torch
import torchqat
from conftest import MODELS
from gguf_models import BLOCKS
from gguf_models import MODELS as ARCHITECTURES
from gguf_models import build as build_architecture
from sentencepiece_like import sentencepiece_like
from torchqat.verification.engines import ENGINES, Bench, Question
from torchqat.verification.engines.agreement import agreement_of

GROUPS = "{dtype: int4, group_size: 32, grid: full, scale: learned}"
HALF = "{dtype: int4, group_size: 32, grid: full, scale_dtype: float16}"
OFFSET = "{dtype: int4, group_size: 32, symmetric: false, scale_dtype: float16}"
# llama.cpp's Q4_0 and Q8_0
SIGNED = "{dtype: int4, group_size: 32, grid: signed, scale_dtype: float16}"
IN_EIGHT_BITS = "{dtype: int8, group_size: 32, scale_dtype: float16}"
# llama.cpp's q8_0 and q4_1 of caches
BLOCKS_OF_CACHE = "keys: group, values: group, group_size: 32"

CASES = [
    # engine, format, weight, input, other sections
    ("transformers", "compressed-tensors", GROUPS, "", ""),
    ("transformers", "gptq", HALF, "", "initialize: {method: gptq}\n"),
    ("transformers", "gptq", "{dtype: int3, group_size: 32}", "", ""),
    ("transformers", "gptq", "{dtype: int8}", "", ""),
    ("transformers", "gptq_v2", OFFSET, "", ""),
    ("transformers", "awq", OFFSET, "", "initialize: {method: awq}\n"),
    ("vllm", "compressed-tensors", GROUPS, "", ""),
    ("vllm", "compressed-tensors", "{dtype: int4, group_size: 128, scale: mse}", "", ""),
    ("vllm", "compressed-tensors", "{dtype: int4, group_size: 32, symmetric: false}", "", ""),
    ("vllm", "compressed-tensors", "{dtype: int8}", "{dtype: int8}", ""),
    ("vllm", "compressed-tensors", GROUPS, "{dtype: int8}", ""),
    ("vllm", "compressed-tensors", GROUPS, "", "initialize: {method: gptq}\nkv_cache: {dtype: fp8_e4m3}\n"),
    ("vllm", "gptq", HALF, "", "initialize: {method: gptq}\n"),
    ("vllm", "awq", OFFSET, "", ""),
    ("llama.cpp", "gguf", SIGNED, "", ""),
    ("llama.cpp", "gguf", OFFSET, "", ""),
    ("llama.cpp", "gguf", IN_EIGHT_BITS, "", ""),
    ("llama.cpp", "gguf", IN_EIGHT_BITS, "", f"kv_cache: {{dtype: int8, symmetric: true, {BLOCKS_OF_CACHE}}}\n"),
    ("llama.cpp", "gguf", IN_EIGHT_BITS, "", f"kv_cache: {{dtype: int4, {BLOCKS_OF_CACHE}}}\n"),
    ("llama.cpp", "gguf", "{mix: q4_k_m, scale: learned}", "", ""),
    ("llama.cpp", "gguf", "{mix: q2_k, scale: learned}", "", ""),
    ("llama.cpp", "gguf", "{dtype: q2_0, scale: learned}", "", ""),
    ("llama.cpp", "gguf", "{dtype: tq2_0, scale: learned}", "", ""),
    ("llama.cpp", "gguf", "{dtype: q5_1, scale: learned}", "", ""),
    ("llama.cpp", "gguf", "{dtype: nvfp4, scale: learned}", "", ""),
    ("llama.cpp", "gguf", "{dtype: mxfp4, scale: learned}", "", ""),
    ("mlx", "mlx", GROUPS, "", ""),
    ("mlx", "mlx", "{dtype: int3, group_size: 32, symmetric: false}", "", ""),
    ("mlx", "mlx", "{dtype: int4, group_size: 32, scale_dtype: e8m0_even}", "", ""),
    ("mlx", "mlx", "{dtype: mxfp4, scale: learned}", "", ""),
    ("mlx", "mlx", "{dtype: mxfp8_e4m3}", "", ""),
    ("mlx", "mlx", "{dtype: fp4_e2m1, group_size: 16, scale_dtype: e4m3}", "", ""),
    ("openvino", "gguf", SIGNED, "", ""),
    ("openvino", "gguf", OFFSET, "", ""),
    ("openvino", "gguf", IN_EIGHT_BITS, "", ""),
    ("onnxruntime-genai", "gptq", HALF, "", "initialize: {method: gptq}\n"),
    ("onnxruntime-genai", "gptq", IN_EIGHT_BITS, "", ""),
    ("onnxruntime-genai", "awq", OFFSET, "", "initialize: {method: awq}\n"),
    ("transformers", "compressed-tensors-0.18", "{dtype: int3, group_size: 32}", "", ""),
    ("transformers", "compressed-tensors", "{dtype: nvfp4, scale: learned}", "", ""),
    ("transformers", "compressed-tensors", "{dtype: mxfp4, scale: learned}", "", ""),
    ("transformers", "compressed-tensors", "{dtype: mxfp6_e2m3}", "", ""),
    ("transformers", "compressed-tensors", "{dtype: mxfp8_e4m3}", "", ""),
]


def name_of(case):
    engine, format, weight, input, other = case
    return " ".join(word for word in (engine, format, weight, input and "w-a", other.split("\n")[0]) if word)


def needs(engine):
    variable = ENGINES[engine].variable()
    if variable not in os.environ:
        pytest.skip(f"{variable} must name the Python of {engine}; make test-engines sets it")


def prepared(model, weight, input, other, prompts):
    rule = f'  - {{match: "model.layers.*", weight: {weight}{f", input: {input}" if input else ""}}}\n'
    model = torchqat.prepare(model, torchqat.parse_recipe(f"version: 1\nlayers:\n{rule}{other}")).eval()
    torchqat.calibrate(model, [prompts], lambda m, batch: m(input_ids=batch, use_cache=False))
    return model


@pytest.mark.parametrize("case", CASES, ids=name_of)
@pytest.mark.parametrize("architecture", MODELS)
def test_an_engine_agrees(architecture, case, trained, prompts, tmp_path):
    engine, format, weight, input, other = case
    needs(engine)
    model, tokenizer = trained(architecture)
    # vLLM computes in half precision; the trained model does as well, to be comparable.
    model = prepared(
        model.bfloat16() if engine == "vllm" and format == "compressed-tensors" else model,
        weight,
        input,
        other,
        prompts,
    )
    folder = torchqat.export(model, tmp_path / "out", format, tokenizer)
    checked = torchqat.verify(folder, model, prompts, engine, tokenizer=tokenizer)
    print(f"\n| {architecture} | {name_of(case)} | {checked} |")
    if results := os.environ.get("TORCHQAT_ENGINE_RESULTS"):
        with open(results, "a", encoding="utf-8") as file:
            file.write(json.dumps([architecture, *case, checked.layers, vars(checked.agreement)]) + "\n")
    assert checked.ok and checked.layers == 7 * model.config.num_hidden_layers, str(checked)
    assert checked.agreement.same_text >= 3


@pytest.mark.parametrize("architecture", MODELS)
def test_llama_cpp_keeps_the_cache_of_the_training(architecture, trained, prompts, tmp_path):
    """In its usual cache of float16 its answers are further from the training forward, which had 4 bits."""
    needs("llama.cpp")
    model, tokenizer = trained(architecture)
    model = prepared(model, IN_EIGHT_BITS, "", f"kv_cache: {{dtype: int4, {BLOCKS_OF_CACHE}}}\n", prompts)
    folder = torchqat.export(model, tmp_path / "out", "gguf", tokenizer)
    engine, asked = ENGINES["llama.cpp"], {}
    for cache in ((), ("q4_1", "q4_1")):
        served = engine.serve("gguf", Question(str(folder), prompts.tolist(), cache=cache))
        asked[cache] = agreement_of(engine, served, model, prompts, half=True, rounded=True).kl
    print(f"\n| {architecture} | cache | {asked} |")
    assert asked["q4_1", "q4_1"] < 0.5 * asked[()]


# engine, format, weight
MIXTURES = [
    ("llama.cpp", "gguf", SIGNED),
    ("llama.cpp", "gguf", IN_EIGHT_BITS),
    ("llama.cpp", "gguf", "{dtype: nvfp4}"),
    ("llama.cpp", "gguf", "{dtype: mxfp4}"),
    ("transformers", "compressed-tensors", GROUPS),
]


@pytest.mark.parametrize("case", MIXTURES, ids=lambda case: " ".join(case))
@pytest.mark.parametrize("architecture", ["qwen3_moe", "mixtral"])
def test_an_engine_agrees_on_experts(architecture, case, trained, prompts, tmp_path):
    engine, format, weight = case
    needs(engine)
    model, tokenizer = trained(architecture)
    model = prepared(model, weight, "", "initialize: {method: gptq}\n" if "scale: " in weight else "", prompts)
    folder = torchqat.export(model, tmp_path / "out", format, tokenizer)
    checked = torchqat.verify(folder, model, prompts, engine, tokenizer=tokenizer)
    print(f"\n| {architecture} | {' '.join(case)} | {checked} |")
    assert checked.ok and checked.layers == 6 * model.config.num_hidden_layers, str(checked)
    assert checked.agreement.same_text >= 3


@pytest.mark.parametrize("weight", ["float16", "Q4_0", "Q8_0"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_llama_cpp_computes_each_architecture(name, weight, tmp_path):
    """Tiny models of random weights whose predictions differ; windows are shorter than the prompts.

    In float16 all is as exact as the cache. Weights in blocks are multiplied with inputs that llama.cpp rounds to 8 bits, so
    that tokens reach other experts, unless blocks add little to what they are given.
    """
    from torchqat.checkpoints.formats.gguf import write_gguf

    needs("llama.cpp")
    model = build_architecture(name, gain=1.3 if weight == "float16" else 0.6)
    folder = tmp_path / "out"
    if weight == "float16":
        folder.mkdir()
        write_gguf(model, [], None, folder / "model.gguf")
    else:
        spec = SIGNED if weight == "Q4_0" else IN_EIGHT_BITS
        rule = (
            f"version: 1\nlayers:\n  - {{match: '{BLOCKS.get(name.split()[0], 'model.layers.*')}', weight: {spec}}}\n"
        )
        model = torchqat.prepare(model, torchqat.parse_recipe(rule)).eval()
        torchqat.export(model, folder, "gguf")
        assert torchqat.verify(folder, model, engine="reader").ok
    tokens = torch.randint(5, 320, (4, 40), generator=torch.Generator().manual_seed(2))
    engine = ENGINES["llama.cpp"]
    served = engine.serve("gguf", Question(str(folder), tokens.tolist(), context=64))
    found = agreement_of(engine, served, model, tokens, half=True)
    print(f"\n| {name} | {weight} | {found} |")
    assert found.ok, str(found)
    assert weight != "float16" or (found.kl < 1e-4 and found.same_text >= 2), str(found)


# Reads an importance matrix as llama-quantize does, and quantizes by it, in the engine's own Python.
QUANTIZE = """
import ctypes, sys
import numpy as np, llama_cpp as C
sys.path.insert(0, sys.argv[4])
import gguf
source, target, matrix = (path.encode() for path in sys.argv[1:4])
tensors = {t.name: t for t in gguf.GGUFReader(matrix.decode()).tensors}
names = [name.removesuffix(".counts") for name in tensors if name.endswith(".counts")]
pairs = [(tensors[name + ".in_sum2"].data, tensors[name + ".counts"].data) for name in names]
means = [(sums / np.maximum(1, counts)).ravel().astype(np.float32) for sums, counts in pairs]
entries = (C.llama_model_imatrix_data * (len(names) + 1))()
for entry, name, mean in zip(entries, names, means):
    entry.name, entry.size = name.encode(), mean.size
    entry.data = mean.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
parameters = C.llama_model_quantize_default_params()
parameters.ftype = C.LLAMA_FTYPE_MOSTLY_IQ2_XXS  # which llama.cpp refuses without a matrix for every tensor
if names:
    parameters.imatrix = entries
sys.exit(C.llama_model_quantize(source, target, ctypes.byref(parameters)))
"""


@pytest.mark.parametrize("name", ["llama", "qwen2_moe"])
def test_llama_cpp_quantizes_by_an_importance_matrix(name, tmp_path):
    """IQ2_XXS needs one for each tensor: without ours, or with a name of it wrong, llama.cpp refuses."""
    import subprocess
    from pathlib import Path

    import gguf
    from torchqat.checkpoints.formats.gguf import write_gguf

    needs("llama.cpp")
    wide = {
        "hidden_size": 256,
        "intermediate_size": 512,
        "moe_intermediate_size": 256,
        "shared_expert_intermediate_size": 256,
    }
    model = build_architecture(name, **wide)
    write_gguf(model, [], None, tmp_path / "float.gguf")
    tokens = [torch.randint(5, 320, (4, 64), generator=torch.Generator().manual_seed(3))]
    assert torchqat.imatrix(model, tokens, tmp_path / "imatrix.gguf")

    def quantized(matrix):
        package = str(Path(gguf.__file__).parents[1])
        files = [str(tmp_path / "float.gguf"), str(tmp_path / "small.gguf"), str(tmp_path / matrix)]
        command = [ENGINES["llama.cpp"].python("gguf"), "-c", QUANTIZE, *files, package]
        return subprocess.run(command, capture_output=True, text=True)

    done = quantized("imatrix.gguf")
    assert done.returncode == 0, done.stderr[-2000:]
    kinds = {t.name: t.tensor_type.name for t in gguf.GGUFReader(tmp_path / "small.gguf").tensors}
    part = "ffn_up_exps" if name == "qwen2_moe" else "ffn_up"
    assert kinds[f"blk.1.{part}.weight"] == "IQ2_XXS"
    wrong = (
        (tmp_path / "imatrix.gguf")
        .read_bytes()
        .replace(f"blk.1.{part}.weight".encode(), f"blk.9.{part}.weight".encode())
    )
    (tmp_path / "wrong.gguf").write_bytes(wrong)
    assert quantized("wrong.gguf").returncode != 0


def test_the_bound_tells_a_wrong_permutation(trained, prompts, tmp_path, monkeypatch):
    """That the order of rows is llama.cpp's is what llama.cpp must show itself."""
    from torchqat.checkpoints.formats.llama_cpp.tensors import RowOrder

    needs("llama.cpp")
    model, tokenizer = trained("llama")
    model = prepared(model, IN_EIGHT_BITS, "", "", prompts)
    monkeypatch.setattr(RowOrder, "to_file", lambda self, name, rows: rows)
    folder = torchqat.export(model, tmp_path / "out", "gguf", tokenizer)
    assert len(torchqat.verify(folder, model).differing) == 2 * model.config.num_hidden_layers
    engine = ENGINES["llama.cpp"]
    served = engine.serve("gguf", Question(str(folder), prompts.tolist()))
    found = agreement_of(engine, served, model, prompts, half=True)
    assert not found.ok and found.kl > 10 * found.kl_bound


@pytest.mark.parametrize("engine", ("transformers", "vllm", "llama.cpp"))
def test_an_engine_loads_a_checkpoint_of_several_files(engine, trained, prompts, tmp_path):
    needs(engine)
    model, tokenizer = trained("qwen2")
    weight, format = (SIGNED, "gguf") if engine == "llama.cpp" else (HALF, "gptq")
    model = prepared(model, weight, "", "", prompts)
    folder = torchqat.export(model, tmp_path / "out", format, tokenizer, max_shard_size="1MB")
    assert len(list(folder.glob("*-of-*"))) > 2
    checked = torchqat.verify(folder, model, prompts, engine)
    assert checked.ok, str(checked)


def _split_by(kind, vocabulary, documents):
    """A byte-level BPE tokenizer, made from text, that splits it as llama.cpp's pre-tokenizer ``kind`` does."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from torchqat.checkpoints.formats.llama_cpp.pre_tokenizers import PATTERNS
    from transformers import PreTrainedTokenizerFast

    octets = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=kind == "falcon")
    if kind == "falcon":
        parts = [pre_tokenizers.Punctuation("contiguous"), octets, pre_tokenizers.Digits(False)]
        parts.append(pre_tokenizers.Split(Regex("[0-9][0-9][0-9]"), "isolated"))
    else:
        pattern = next(pattern for (pattern, _), name in PATTERNS.items() if name == kind)
        parts = [pre_tokenizers.Split(Regex(pattern), "isolated"), octets]
    whole = kind in ("llama-bpe", "tekken")
    tokenizer = Tokenizer(models.BPE(ignore_merges=whole))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Sequence(parts), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=["<s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(documents, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="<s>")


@pytest.mark.parametrize(
    "kind", ("byte level", "sentencepiece", "llama-bpe", "dbrx", "qwen2", "gpt-4o", "tekken", "falcon")
)
def test_llama_cpp_splits_text_as_the_tokenizer_does(kind, trained, quickstart, prompts, tmp_path):
    needs("llama.cpp")
    model, tokenizer = trained("llama")
    if kind == "sentencepiece":
        tokenizer = sentencepiece_like(model.config.vocab_size, quickstart.corpus.train[:40])
    elif kind != "byte level":
        tokenizer = _split_by(kind, model.config.vocab_size, quickstart.corpus.train[:40])
    folder = torchqat.export(prepared(model, IN_EIGHT_BITS, "", "", prompts), tmp_path / "out", "gguf", tokenizer)
    texts = [document[:2000] for document in quickstart.corpus.held_out[:20]]
    asked = Question(str(folder), [], texts=texts, context=2048)
    served = ENGINES["llama.cpp"].serve("gguf", asked)
    wrong = [text for text, found in zip(texts, served.tokens, strict=True) if found != tokenizer(text).input_ids]
    assert not wrong, f"{len(wrong)} of {len(texts)} texts, the first {wrong[0][:200]!r}"


def test_the_smaller_file_is_the_faster_one(tmp_path):
    """Where linear layers dominate: at most 0.30 of the size of the float16 file, and faster at generating."""
    from torchqat.checkpoints.formats.gguf import write_gguf
    from torchqat.files import size_of
    from torchqat.runs.scratch import new_model

    needs("llama.cpp")

    class Wide:
        hidden_size, intermediate_size, layers, heads, kv_heads, sequence_length = 1024, 2816, 8, 16, 8, 512

    model = new_model(Wide, 512, seed=0)
    (tmp_path / "float").mkdir()
    write_gguf(model, [], None, tmp_path / "float" / "model.gguf")
    model = torchqat.prepare(model, torchqat.parse_recipe(
        f'version: 1\nlayers:\n  - {{match: "model.layers.*", weight: {SIGNED}}}\n'
    ))  # fmt: skip
    folder = torchqat.export(model, tmp_path / "out", "gguf")
    assert size_of(folder) <= 0.30 * size_of(tmp_path / "float")
    bench = Bench(list(range(256)), new_tokens=32)
    speeds = [
        ENGINES["llama.cpp"].serve("gguf", Question(str(f), [], bench=bench)).speed
        for f in (tmp_path / "float", folder)
    ]
    print(f"\nfloat16 {speeds[0]}, Q4_0 {speeds[1]}")
    assert speeds[1].peak_bytes < speeds[0].peak_bytes
    assert speeds[1].decode > speeds[0].decode
