"""GGUF files: other people's readers find the trained weights, the model's structure and its tokenizer."""

import gguf
import numpy as np
import pytest
import torch
import torchqat
from architectures import build
from sentences import matches
from small_net import recipe_for
from torchqat.checkpoints.formats.gguf import write_gguf
from torchqat.checkpoints.formats.gguf_architectures import ARCHITECTURES, architecture_of
from torchqat.checkpoints.formats.llama_cpp.rope import rope_tensors
from torchqat.checkpoints.formats.llama_cpp.tensors import RowOrder
from torchqat.checkpoints.readers.gguf import gguf_files
from torchqat.checkpoints.readers.gguf_layout import in_halves

NAMES = ("Llama", "Mistral", "Qwen2", "Qwen3", "Gemma")
WEIGHTS = {
    "Q4_0": "{dtype: int4, group_size: 32, grid: signed, scale_dtype: float16}",
    "Q4_1": "{dtype: int4, group_size: 32, symmetric: false, scale_dtype: float16}",
    "Q8_0": "{dtype: int8, group_size: 32, scale_dtype: float16}",
}


def prepared(name="Llama", weight="Q4_0", **settings):
    model = build(name, vocab_size=400, intermediate_size=128, **settings)
    return torchqat.prepare(model, recipe_for(WEIGHTS.get(weight, weight))).eval()


def reader_of(folder):
    return gguf.GGUFReader(gguf_files(folder)[0])


def value_of(reader, key):
    return reader.get_field(key).contents()


@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("name", NAMES)
def test_every_tensor_reads_back(name, weight, tokenizer, tmp_path):
    model = prepared(name, weight)
    folder = torchqat.export(model, tmp_path / "out", "gguf", tokenizer)
    types = {tensor.name: tensor.tensor_type.name for tensor in reader_of(folder).tensors}
    assert types["blk.1.ffn_down.weight"] == weight and types["token_embd.weight"] == "F16"
    assert types["blk.0.attn_norm.weight"] == "F32"
    checked = torchqat.verify(folder, model)
    assert checked.ok and checked.layers == 14, str(checked)


# transformers has its own map of names, its own permutation and its own dequantizer.
@pytest.mark.parametrize("name", ("Llama", "Mistral", "Qwen2", "Qwen3"))
def test_transformers_computes_the_same_from_the_file(name, tokenizer, tmp_path):
    from transformers import AutoModelForCausalLM

    # transformers takes a Qwen3's head size for 128, whatever the file says.
    model = prepared(name, **({"head_dim": 128} if name == "Qwen3" else {}))
    folder = torchqat.export(model, tmp_path / "out", "gguf", tokenizer)
    loaded = AutoModelForCausalLM.from_pretrained(folder, gguf_file="model.gguf", dtype=torch.float32).eval()
    tokens = torch.randint(0, 400, (2, 24))
    with torch.no_grad():
        ours, theirs = (m(input_ids=tokens, use_cache=False).logits for m in (model, loaded))
    for layer in ("self_attn.q_proj", "self_attn.k_proj", "mlp.down_proj"):
        path = f"model.layers.1.{layer}"
        assert torch.equal(loaded.get_submodule(path).weight, model.get_submodule(path).quantized_weight())
    assert (ours - theirs).abs().max() < 2e-3 * ours.abs().max()  # the embedding is float16


def test_rows_of_q_and_k_are_interleaved():
    """Row 2i + j of a head in the file is row j * 8 + i of the model's, for heads of 16."""
    model = build("Llama")
    order = RowOrder(model, architecture_of(model))
    rows = torch.arange(64.0)[:, None].expand(64, 3)
    moved = order.to_file("model.layers.0.self_attn.q_proj.weight", rows)[:, 0]
    for head in range(4):
        for i in range(8):
            for j in (0, 1):
                assert moved[head * 16 + 2 * i + j] == head * 16 + j * 8 + i
    for name, heads in (("q_proj", 4), ("k_proj", 2), ("v_proj", None)):
        path = f"model.layers.0.self_attn.{name}.weight"
        assert order.heads_of(path) == heads
        assert heads is None or torch.equal(in_halves(order.to_file(path, rows), heads), rows)
    assert torch.equal(order.to_file("model.layers.0.self_attn.v_proj.weight", rows), rows)
    assert torch.equal(RowOrder(model, ARCHITECTURES["qwen2"]).to_file("a.q_proj.weight", rows), rows)


def test_hyperparameters_are_the_models(tokenizer, tmp_path):
    model = prepared("Qwen3", head_dim=32, rope_parameters={"rope_type": "default", "rope_theta": 1e6})
    reader = reader_of(torchqat.export(model, tmp_path / "out", "gguf", tokenizer))
    expected = {
        "general.architecture": "qwen3",
        "qwen3.context_length": 64,
        "qwen3.embedding_length": 64,
        "qwen3.block_count": 2,
        "qwen3.feed_forward_length": 128,
        "qwen3.attention.head_count": 4,
        "qwen3.attention.head_count_kv": 2,
        "qwen3.attention.key_length": 32,
        "qwen3.attention.value_length": 32,
        "qwen3.rope.freq_base": 1e6,
        "qwen3.vocab_size": 400,
    }
    assert {key: value_of(reader, key) for key in expected} == expected
    assert value_of(reader, "qwen3.attention.layer_norm_rms_epsilon") == pytest.approx(1e-6)
    assert value_of(reader, "general.file_type") == gguf.LlamaFileType.MOSTLY_Q4_0


def test_gemma_norms_have_their_offset(tokenizer, tmp_path):
    model = prepared("Gemma")
    reader = reader_of(torchqat.export(model, tmp_path / "out", "gguf", tokenizer))
    norm = next(tensor for tensor in reader.tensors if tensor.name == "blk.0.attn_norm.weight")
    assert np.array_equal(norm.data, model.model.layers[0].input_layernorm.weight.detach().numpy() + 1)


def test_llama3_frequencies_are_a_tensor(tokenizer, tmp_path):
    scaling = {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    }
    model = prepared("Llama", rope_parameters=scaling)
    factors = rope_tensors(model, architecture_of(model))["rope_freqs.weight"]
    assert factors[0] == pytest.approx(1.0) and factors[-1] == pytest.approx(8.0)
    folder = torchqat.export(model, tmp_path / "out", "gguf", tokenizer)
    stored = next(tensor for tensor in reader_of(folder).tensors if tensor.name == "rope_freqs.weight")
    assert np.array_equal(stored.data, factors.numpy())
    assert torchqat.verify(folder, model).ok


def test_other_architectures_are_refused(tokenizer, tmp_path):
    model = torchqat.prepare(build("Cohere", intermediate_size=128), recipe_for(WEIGHTS["Q4_0"]))
    known = ", ".join(ARCHITECTURES)
    with pytest.raises(
        torchqat.UserError, match=matches("export.gguf-architecture", known=known, architecture="cohere")
    ):
        torchqat.export(model, tmp_path / "out", "gguf", tokenizer)


def test_mixed_widths_and_float_layers(tokenizer, tmp_path):
    recipe = torchqat.parse_recipe(
        "version: 1\nlayers:\n"
        f'  - {{match: "model.layers.*", weight: {WEIGHTS["Q4_0"]}}}\n'
        f'  - {{match: "*.down_proj", weight: {WEIGHTS["Q8_0"]}}}\n'
        '  - {match: "*.v_proj", weight: float}\n'
    )
    model = torchqat.prepare(build("Qwen2", vocab_size=400, intermediate_size=128), recipe)
    folder = torchqat.export(model, tmp_path / "out", "gguf", tokenizer)
    types = {tensor.name: tensor.tensor_type.name for tensor in reader_of(folder).tensors}
    assert types["blk.0.ffn_down.weight"] == "Q8_0" and types["blk.0.ffn_up.weight"] == "Q4_0"
    assert types["blk.0.attn_v.weight"] == "F16" and types["blk.0.attn_v.bias"] == "F32"
    assert torchqat.verify(folder, model).ok


def test_inputs_that_llama_cpp_rounds_alike_are_allowed(tokenizer, tmp_path):
    model = build("Llama", vocab_size=400, intermediate_size=128)
    recipe = recipe_for(WEIGHTS["Q4_0"], "{dtype: int8, group_size: 32, scale_dtype: float16}")
    model = torchqat.prepare(model, recipe)
    assert torchqat.verify(torchqat.export(model, tmp_path / "out", "gguf", tokenizer), model).ok
    model = torchqat.prepare(
        build("Llama", vocab_size=400, intermediate_size=128), recipe_for(WEIGHTS["Q4_0"], "{dtype: int8}")
    )
    with pytest.raises(torchqat.UserError, match=matches("export.because-inputs-of-llama-cpp")):
        torchqat.export(model, tmp_path / "other", "gguf", tokenizer)


def test_two_dimensional_blocks_are_repeated(tokenizer, tmp_path):
    model = prepared("Llama", "{dtype: int4, block: [16, 32], scale_dtype: float16}")
    assert torchqat.verify(torchqat.export(model, tmp_path / "out", "gguf", tokenizer), model).ok


def test_embeddings_of_8_bits(tokenizer, tmp_path):
    model = prepared("Llama", tie_word_embeddings=False)
    folder = torchqat.export(model, tmp_path / "out", "gguf", tokenizer, embeddings="q8_0")
    types = {tensor.name: tensor.tensor_type.name for tensor in reader_of(folder).tensors}
    assert types["token_embd.weight"] == types["output.weight"] == "Q8_0"
    assert torchqat.verify(folder, model).ok
    with pytest.raises(torchqat.UserError, match=matches("export.gguf-embeddings", embeddings="q2")):
        torchqat.export(model, tmp_path / "other", "gguf", tokenizer, embeddings="q2")


def test_a_trained_head_is_written_in_blocks(tokenizer, tmp_path):
    recipe = torchqat.parse_recipe(f"version: 1\nlayers:\n  - {{match: lm_head, weight: {WEIGHTS['Q8_0']}}}\n")
    model = torchqat.prepare(build("Llama", vocab_size=400, tie_word_embeddings=False), recipe)
    folder = torchqat.export(model, tmp_path / "out", "gguf", tokenizer)
    types = {tensor.name: tensor.tensor_type.name for tensor in reader_of(folder).tensors}
    assert types["output.weight"] == "Q8_0" and torchqat.verify(folder, model).ok


def test_several_files(tokenizer, tmp_path):
    model = prepared()
    folder = torchqat.export(model, tmp_path / "out", "gguf", tokenizer, max_shard_size="60KB")
    files = [path.name for path in gguf_files(folder)]
    assert len(files) > 2 and files[0] == f"model-00001-of-{len(files):05}.gguf"
    assert torchqat.verify(folder, model).ok


def test_a_float_model_is_a_file_too(tokenizer, tmp_path):
    model = build("Llama", vocab_size=400)
    write_gguf(model, [], None, tmp_path / "float.gguf", tokenizer)
    tensors = {tensor.name: tensor for tensor in reader_of(tmp_path).tensors}
    weight = model.model.layers[0].mlp.up_proj.weight.detach().half().numpy()
    assert np.array_equal(tensors["blk.0.ffn_up.weight"].data, weight)


# -- damage -----------------------------------------------------------------------------------------------------------


def _edit(folder, name, change):
    """Change the bytes of one tensor in place."""
    reader = gguf.GGUFReader(gguf_files(folder)[0], "r+")
    tensor = next(tensor for tensor in reader.tensors if tensor.name == name)
    change(tensor.data)
    tensor.data.base.flush() if hasattr(tensor.data.base, "flush") else None
    reader.data.flush()


@pytest.mark.parametrize("weight", WEIGHTS)
def test_damage_is_found(weight, tokenizer, tmp_path):
    model = prepared("Llama", weight)
    folder = torchqat.export(model, tmp_path / "out", "gguf", tokenizer)

    def flip_the_sign_of_a_scale(data):
        data[3, 1] ^= 0x80

    _edit(folder, "blk.1.attn_q.weight", flip_the_sign_of_a_scale)
    differing = torchqat.verify(folder, model).differing
    assert list(differing) == ["model.layers.1.self_attn.q_proj"] and differing.popitem()[1] <= 32


def test_rows_in_the_models_order_are_found(tokenizer, tmp_path):
    """What leaving the permutation out would give."""
    model = prepared("Llama")
    folder = torchqat.export(model, tmp_path / "out", "gguf", tokenizer)

    def undo(data):
        data[:] = in_halves(torch.from_numpy(data.copy()), 2).numpy()

    _edit(folder, "blk.0.attn_k.weight", undo)
    assert list(torchqat.verify(folder, model).differing) == ["model.layers.0.self_attn.k_proj"]


def test_a_writer_that_forgets_the_order_is_found(tokenizer, tmp_path, monkeypatch):
    """Which rows are rotated is the file's to say: the reader does not ask the writer."""
    model = prepared("Llama")
    monkeypatch.setattr(RowOrder, "heads_of", lambda self, name: None)
    folder = torchqat.export(model, tmp_path / "out", "gguf", tokenizer)
    found = torchqat.verify(folder, model).differing
    assert sorted(found) == [f"model.layers.{i}.self_attn.{name}" for i in (0, 1) for name in ("k_proj", "q_proj")]


def test_a_truncated_file_is_refused(tokenizer, tmp_path):
    model = prepared()
    folder = torchqat.export(model, tmp_path / "out", "gguf", tokenizer)
    path = gguf_files(folder)[0]
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(torchqat.UserError, match=matches("checkpoints.gguf-does-not-load", file=path)):
        torchqat.verify(folder, model)
