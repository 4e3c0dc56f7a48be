"""Which caches of keys and values an engine keeps, what of them is refused before training, and what is said of the rest."""

import sys

import architectures
import pytest
import torchqat
from command import call
from conftest import RECIPE
from sentences import matches, said, sentence
from test_engine_limits import HALF
from test_kv_cache import prepared
from test_recipe_engine import command, recipe_of  # noqa: F401, a fixture
from torchqat.checkpoints.formats.known import formats
from torchqat.verification.engines import ENGINES

IN_BLOCKS = "{dtype: int8, symmetric: true, keys: group, values: group}"
# What each engine is told to keep of a cache; None where it has none of that type, empty where the checkpoint tells it.
TOLD = {
    "{dtype: fp8_e4m3}": {"transformers": "", "vllm": ""},
    "{dtype: fp8_e4m3, keys: head, values: head}": {"transformers": "", "vllm": ""},
    "{dtype: fp8_e4m3, recent: 4}": {},
    "{dtype: fp8_e5m2}": {},
    "{dtype: fp8_e4m3, keys: token, values: token}": {"vllm": "--kv-cache-dtype fp8_per_token_head"},
    "{dtype: nvfp4}": {"vllm": "--kv-cache-dtype nvfp4"},
    "{dtype: mxfp4}": {},
    "{dtype: int8, symmetric: true, keys: token}": {
        "transformers": 'generate(cache_implementation="quantized", cache_config={"backend": "hqq", "nbits": 8, '
        '"residual_length": 1})',
        "vllm": "--kv-cache-dtype int8_per_token_head",
    },
    "{dtype: int4, recent: 32}": {
        "transformers": 'generate(cache_implementation="quantized", cache_config={"backend": "hqq", "nbits": 4, '
        '"residual_length": 32})',
    },
    IN_BLOCKS: {
        "transformers": 'generate(cache_implementation="quantized", cache_config={"backend": "hqq", "nbits": 8, '
        '"residual_length": 1})',
        "llama.cpp": "--cache-type-k q8_0 --cache-type-v q8_0 with LLAMA_ATTN_ROT_DISABLE=1",
    },
    "{dtype: int4, keys: group, values: group}": {
        "transformers": 'generate(cache_implementation="quantized", cache_config={"backend": "hqq", "nbits": 4, '
        '"residual_length": 1})',
        "llama.cpp": "--cache-type-k q4_1 --cache-type-v q4_1 with LLAMA_ATTN_ROT_DISABLE=1",
        "mlx": "--kv-bits 4 --kv-group-size 32",
        "openvino": "KEY_CACHE_PRECISION=u4 KEY_CACHE_GROUP_SIZE=32 VALUE_CACHE_PRECISION=u4 VALUE_CACHE_GROUP_SIZE=32",
    },
    "{dtype: int5, keys: group, values: group, group_size: 16}": {},
    "{dtype: int8, symmetric: true, keys: head, values: head}": {},
}


@pytest.mark.parametrize("cache", TOLD)
def test_each_engine_keeps_some_and_refuses_the_rest(cache):
    spec = torchqat.parse_recipe(RECIPE + f"kv_cache: {cache}\n").kv_cache
    for name, engine in ENGINES.items():
        setting = engine.caches.setting(spec)
        assert (setting and setting.words) == TOLD[cache].get(name), name
        refusal = engine.caches.refusal(spec)
        assert bool(refusal) == (setting is None)
        assert not refusal or refusal == sentence("engine.because-cache", kept=engine.caches.kept, cache=spec)


@pytest.mark.parametrize("name", ["check", "run", "ptq"])
def test_a_cache_that_the_engine_does_not_keep_is_refused_before_anything_is_written(name, command, tmp_path):  # noqa: F811
    code, _, err = command(recipe_of("llama.cpp") + "kv_cache: {dtype: fp8_e4m3}\n", name)
    cache = "fp8_e4m3 tensor keys, fp8_e4m3 tensor values"
    why = sentence("engine.because-cache", kept=ENGINES["llama.cpp"].caches.kept, cache=cache)
    assert code == 2 and said(err, "engine.cannot-run", engine="llama.cpp", why=why), err
    assert not (tmp_path / "run").exists()


def test_verify_refuses_it_too(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHQAT_LLAMA_CPP", sys.executable)  # which it is not asked to start
    model = prepared(architectures.build("Llama", hidden_size=64), "{dtype: fp8_e4m3}", weight=HALF)
    folder = torchqat.export(model, tmp_path / "out", "gguf")
    assert torchqat.verify(folder, model, engine="reader").ok
    cache = "fp8_e4m3 tensor keys, fp8_e4m3 tensor values"
    why = sentence("engine.because-cache", kept=ENGINES["llama.cpp"].caches.kept, cache=cache)
    with pytest.raises(torchqat.UserError, match=matches("engine.cannot-run", engine="llama.cpp", why=why)):
        torchqat.verify(folder, model, engine="llama.cpp")


def test_a_run_says_which_of_its_checkpoints_does_not_hold_the_cache(command):  # noqa: F811
    text = RECIPE + "kv_cache: {dtype: fp8_e4m3}\nexport: [compressed-tensors, safetensors]\n"
    code, out, err = command(text, "ptq")
    assert code == 0, err
    known = [format.name for format in formats()]
    assert [name for name in known if said(out + err, "kv-cache.not-in-checkpoint", format=name)] == ["safetensors"]


def test_another_export_of_a_run_says_so_too(command, tmp_path, capsys):  # noqa: F811
    assert command(RECIPE + "kv_cache: {dtype: fp8_e4m3}\n", "ptq")[0] == 0
    code, out, err = call(capsys, "export", tmp_path / "run", "--format", "safetensors")
    assert code == 0 and said(out + err, "kv-cache.not-in-checkpoint", format="safetensors"), err


def test_a_run_says_how_its_engine_is_told(command):  # noqa: F811
    code, out, err = command(recipe_of("vllm") + "kv_cache: {dtype: int8, symmetric: true, keys: token}\n", "ptq")
    assert code == 0, err
    assert said(out + err, "kv-cache.not-in-checkpoint", format="compressed-tensors")
    assert said(out + err, "kv-cache.told", engine="vllm", words="--kv-cache-dtype int8_per_token_head")
