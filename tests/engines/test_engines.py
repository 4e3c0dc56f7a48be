"""Every format in every engine that runs on a CPU: bits equal, answers within the engine's bound.

Engines are those that TORCHQAT_VLLM, TORCHQAT_LLAMA_CPP, TORCHQAT_MLX, TORCHQAT_OPENVINO, TORCHQAT_ONNXRUNTIME_GENAI and
TORCHQAT_TRANSFORMERS name; make test-engines sets them up.
"""

import json
import os

import pytest
import torchqat
from conftest import MODELS
from engine_models import GROUPS, HALF, IN_EIGHT_BITS, OFFSET, SIGNED, needs, prepared
from torchqat.verification.engines import ENGINES, Question
from torchqat.verification.engines.agreement import agreement_of

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
    if architecture == "qwen2" and format == "gguf" and "nvfp4" in weight:
        with pytest.raises(torchqat.UserError, match="gguf takes nvfp4 for models of the architectures llama"):
            torchqat.export(model, tmp_path / "out", format, tokenizer)
        return
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
