"""Types and mixes against llama-quantize: it reads our blocks as the forward's weights, and gives layers the same types."""

import numpy as np
import pytest
import torchqat
from engine_models import needs
from llama_quantize import llama_quantize
from torchqat.checkpoints.formats.gguf import write_gguf
from torchqat.checkpoints.readers.gguf import gguf_files
from torchqat.checkpoints.readers.gguf_types import Reader
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

# llama.h
FILE_TYPES = {
    "q2_k": 10,
    "q3_k_s": 11,
    "q3_k_m": 12,
    "q3_k_l": 13,
    "q4_k_s": 14,
    "q4_k_m": 15,
    "q5_k_s": 16,
    "q5_k_m": 17,
    "q6_k": 18,
}
TYPES = (
    "q2_k",
    "q3_k",
    "q4_k",
    "q5_k",
    "q6_k",
    "q4_0",
    "q4_1",
    "q5_0",
    "q5_1",
    "q8_0",
    "q2_0",
    "tq2_0",
    "iq4_nl",
    "iq4_xs",
    "mxfp4",
)
SHAPE = {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 256, "head_dim": 64}
MODELS = {
    "sixteen blocks": lambda: LlamaForCausalLM(
        LlamaConfig(hidden_size=256, intermediate_size=256, num_hidden_layers=16, **SHAPE)
    ),
    "four queries a key": lambda: LlamaForCausalLM(
        LlamaConfig(hidden_size=256, intermediate_size=256, num_hidden_layers=2, **{**SHAPE, "num_key_value_heads": 1})
    ),
    "tied, 192 columns": lambda: LlamaForCausalLM(
        LlamaConfig(hidden_size=192, intermediate_size=256, num_hidden_layers=9, tie_word_embeddings=True, **SHAPE)
    ),
    "eight experts": lambda: MixtralForCausalLM(
        MixtralConfig(hidden_size=256, intermediate_size=256, num_hidden_layers=3, num_local_experts=8, **SHAPE)
    ),
}


def quantized(source, made, file_type):
    """The tensors of ``made``, which llama.cpp writes of the file ``source``."""
    llama_quantize(source, made, file_type)
    return Reader(made).tensors


def types_by_llama_cpp(model, mix, folder):
    """By the file's name of each matrix, what llama-quantize makes of the float model."""
    source = folder / "float.gguf"
    if not source.exists():
        write_gguf(model, [], None, source)
    return {
        tensor.name: int(tensor.tensor_type) for tensor in quantized(source, folder / f"{mix}.gguf", FILE_TYPES[mix])
    }


def types_by_torchqat(model, mix, folder):
    rules = f"  - {{match: blocks, weight: {{mix: {mix}}}}}\n"
    rules += (
        f'  - {{match: "type:Embedding", weight: {{mix: {mix}}}}}\n  - {{match: lm_head, weight: {{mix: {mix}}}}}\n'
    )
    prepared = torchqat.prepare(model, torchqat.parse_recipe(f"version: 1\nlayers:\n{rules}"), method="rtn")
    out = torchqat.export(prepared, folder / f"ours-{mix}", "gguf")
    return {tensor.name: int(tensor.tensor_type) for tensor in Reader(gguf_files(out)[0]).tensors}


@pytest.fixture(autouse=True)
def engine():
    needs("llama.cpp")


@pytest.mark.parametrize("name", MODELS)
def test_llama_quantize_gives_each_layer_the_same_type(name, tmp_path):
    for mix in FILE_TYPES:
        theirs = types_by_llama_cpp(MODELS[name](), mix, tmp_path)
        ours = types_by_torchqat(MODELS[name](), mix, tmp_path)
        assert ours == theirs, mix


@pytest.mark.parametrize("dtype, ternary", [*((dtype, "tq2_0") for dtype in TYPES), ("tq2_0", "tq1_0")])
def test_llama_cpp_reads_the_weights_of_the_forward(dtype, ternary, tmp_path):
    """Bit for bit: it writes the file again in float32, by its own decoder."""
    made = torchqat.parse_recipe(
        f"version: 1\nlayers: [{{match: blocks, weight: {{dtype: {dtype}, scale: learned}}}}]\n"
    )
    model = torchqat.prepare(MODELS["four queries a key"](), made, method="mse")
    folder = torchqat.export(model, tmp_path / "out", "gguf", ternary=ternary)
    read = {tensor.name: tensor for tensor in quantized(gguf_files(folder)[0], tmp_path / "float32.gguf", 0)}
    for ours, theirs in (("mlp.up_proj", "ffn_up"), ("mlp.down_proj", "ffn_down"), ("self_attn.v_proj", "attn_v")):
        weight = model.get_submodule(f"model.layers.1.{ours}").quantized_weight().detach().numpy()
        tensor = read[f"blk.1.{theirs}.weight"]
        assert tensor.tensor_type == 0 and np.array_equal(tensor.data, weight), ours


def test_a_tied_table_that_is_written_once_gives_the_same_logits(tmp_path, monkeypatch):
    """llama.cpp multiplies with the embedding where there is no head: number by number as with a copy of it."""
    from torchqat.checkpoints.formats import gguf
    from torchqat.verification.engines import ENGINES, Question

    ends = "".join(
        f'  - {{match: "{name}", weight: {{dtype: q6_k, scale: learned}}}}\n' for name in ("type:Embedding", "lm_head")
    )
    recipe = torchqat.parse_recipe(f"version: 1\nlayers:\n  - {{match: blocks, weight: {{mix: q4_k_m}}}}\n{ends}")
    config = LlamaConfig(hidden_size=256, intermediate_size=256, num_hidden_layers=2, tie_word_embeddings=True, **SHAPE)
    model = torchqat.prepare(LlamaForCausalLM(config), recipe, method="rtn")
    once = torchqat.export(model, tmp_path / "once", "gguf")
    monkeypatch.setattr(gguf, "repeated_head", lambda _: None)
    twice = torchqat.export(model, tmp_path / "twice", "gguf")
    tensors = [{tensor.name: tensor for tensor in Reader(gguf_files(folder)[0]).tensors} for folder in (once, twice)]
    assert tensors[1].keys() - tensors[0].keys() == {"output.weight"}
    assert np.array_equal(tensors[1]["output.weight"].data, tensors[1]["token_embd.weight"].data)
    prompts = [[1, 5, 200, 37, 8, 99], [7, 7, 3]]
    answers = [ENGINES["llama.cpp"].serve("gguf", Question(str(folder), prompts)).logprobs for folder in (once, twice)]
    for ours, theirs in zip(*answers, strict=True):
        assert np.array_equal(ours, theirs) and np.ptp(ours) > 0.1
