"""GGUF files of each architecture: names, shapes and keys are those of gguf's tables, weights equal bit for bit."""

import gguf
import numpy as np
import pytest
import torch
import torchqat
from gguf_models import BLOCKS, MODELS, build
from sentences import matches, sentence
from small_net import recipe_for
from test_gguf import WEIGHTS, reader_of, value_of
from torchqat.checkpoints.export import check_exports
from torchqat.checkpoints.formats.gguf import write_gguf
from torchqat.checkpoints.formats.gguf_architectures import gguf_notes
from torchqat.layers.prepared import quant_layers
from torchqat.verification.unquantized_gguf import unquantized_in_gguf


def recipe_of(name, weight):
    match = BLOCKS.get(name.split()[0], "model.layers.*")
    return torchqat.parse_recipe(
        f"version: 1\nlayers:\n  - {{match: '{match}', weight: {WEIGHTS[weight]}}}\n", "r.yaml"
    )


@pytest.mark.parametrize("weight", ["Q4_0", "Q8_0"])
@pytest.mark.parametrize("name", MODELS)
def test_every_tensor_reads_back(name, weight, tmp_path):
    model = torchqat.prepare(build(name), recipe_of(name, weight)).eval()
    folder = torchqat.export(model, tmp_path / "out", "gguf")
    checked = torchqat.verify(folder, model, engine="reader")
    assert checked.ok and checked.layers == len(quant_layers(model)), str(checked)
    types = {tensor.name: tensor.tensor_type.name for tensor in reader_of(folder).tensors}
    blocks = [found for of_file, found in types.items() if of_file.startswith("blk.") and found not in ("F32", "F16")]
    assert blocks and set(blocks) == {weight}


@pytest.mark.parametrize("name", MODELS)
def test_names_are_those_that_llama_cpp_has_for_the_architecture(name, tmp_path):
    """The gguf package lists the tensors of each architecture, in the words of llama.cpp's loader."""
    write_gguf(build(name), [], None, tmp_path / "model.gguf")
    reader = gguf.GGUFReader(tmp_path / "model.gguf")
    kinds = {of_file: kind for kind, of_file in gguf.MODEL_ARCH_NAMES.items()}
    kind = kinds[value_of(reader, "general.architecture")]
    blocks = value_of(reader, f"{gguf.MODEL_ARCH_NAMES[kind]}.block_count")
    known = {
        gguf.TENSOR_NAMES[tensor].format(bid=block) for tensor in gguf.MODEL_TENSORS[kind] for block in range(blocks)
    }
    known |= {"rope_freqs"}  # which llama.cpp's loader has for granite, where the package's table forgets it
    found = [tensor.name for tensor in reader.tensors]
    assert {one.rpartition(".")[0] for one in found} <= known and len(found) == len(set(found))
    assert {one.rpartition(".")[2] for one in found} <= {"weight", "bias"}


@torch.no_grad()
def test_parts_of_one_weight_come_apart_where_they_should(tmp_path):
    """gpt-oss: gates are every second row of a matrix that is transposed; Falcon: all queries first."""
    model = build("gpt_oss")
    write_gguf(model, [], None, tmp_path / "a.gguf")
    found = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "a.gguf").tensors}
    experts = model.model.layers[1].mlp.experts
    assert np.array_equal(found["blk.1.ffn_up_exps.weight"].data[2], experts.gate_up_proj[2].t()[1::2].half().numpy())
    assert np.array_equal(found["blk.1.ffn_gate_exps.bias"].data, experts.gate_up_proj_bias[:, ::2].numpy())
    assert np.array_equal(found["blk.1.attn_sinks.weight"].data, model.model.layers[1].self_attn.sinks.numpy())
    model = build("falcon 40b")
    write_gguf(model, [], None, tmp_path / "b.gguf")
    found = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "b.gguf").tensors}
    fused = model.transformer.h[0].self_attention.query_key_value
    state = torch.randn(1, 5, 128)
    query, key, value = model.transformer.h[0].self_attention._split_heads(fused(state))
    rows = torch.from_numpy(found["blk.0.attn_qkv.weight"].data.copy()).float()
    expected = torch.cat([query.flatten(2), key[:, :, ::2].flatten(2), value[:, :, ::2].flatten(2)], dim=-1)
    assert torch.allclose(state @ rows.t(), expected, atol=1e-4)


KEYS = {
    "gemma2": {"attention.sliding_window": 8, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
    "gemma3_text": {
        "attention.sliding_window_pattern": [True, False, True],
        "rope.freq_base": 1e6,
        "rope.freq_base_swa": 1e4,
        "rope.scaling.type": "linear",
        "rope.scaling.factor": 8.0,
    },
    "phi3 longrope": {"rope.dimension_count": 24, "rope.scaling.original_context_length": 256},
    "qwen2_moe": {"expert_count": 4, "expert_feed_forward_length": 96, "expert_shared_feed_forward_length": 160},
    "gpt_oss": {"rope.scaling.type": "yarn", "expert_feed_forward_length": 192, "rope.scaling.yarn_beta_fast": 32.0},
    "granite": {"logit_scale": 2.0, "embedding_scale": 6.0},
    "glm4": {"rope.dimension_count": 16},
    "falcon 7b": {"attention.head_count_kv": 1, "feed_forward_length": 512, "tensor_data_layout": "jploski"},
    "gpt2": {"context_length": 256, "attention.head_count_kv": 4, "attention.layer_norm_epsilon": pytest.approx(1e-5)},
}


@pytest.mark.parametrize("name", KEYS)
def test_keys_say_what_the_configuration_does(name, tmp_path):
    write_gguf(build(name), [], None, tmp_path / "model.gguf")
    reader = gguf.GGUFReader(tmp_path / "model.gguf")
    prefix = value_of(reader, "general.architecture")
    assert {key: value_of(reader, f"{prefix}.{key}") for key in KEYS[name]} == KEYS[name]


def test_a_window_that_llama_cpp_does_not_have_is_the_context(tmp_path):
    write_gguf(build("llama"), [], None, tmp_path / "a.gguf")
    assert value_of(gguf.GGUFReader(tmp_path / "a.gguf"), "llama.context_length") == 256
    write_gguf(build("starcoder2", sliding_window=64), [], None, tmp_path / "b.gguf")
    assert value_of(gguf.GGUFReader(tmp_path / "b.gguf"), "starcoder2.context_length") == 64


REFUSED = [
    ("gemma2", "query_pre_attn_scalar", 17),
    ("gemma2", "attn_logit_softcapping", None),
    ("gemma3_text", "use_bidirectional_attention", True),
    ("smollm3", "no_rope_layers", [1, 1, 1, 1, 1]),
    ("qwen2_moe", "norm_topk_prob", True),
    ("olmoe", "clip_qkv", 3.0),
    ("olmo2", "tie_word_embeddings", True),
    ("gpt_oss", "swiglu_limit", 5.0),
    ("granite", "hidden_act", "relu"),
    ("starcoder2", "use_bias", False),
    ("gpt2", "scale_attn_by_inverse_layer_idx", True),
    ("falcon 7b", "alibi", True),
]


@pytest.mark.parametrize(("name", "key", "value"), REFUSED)
def test_what_llama_cpp_computes_otherwise_is_refused_before_training(name, key, value):
    from torchqat.model.prepare import make_plan

    model = build(name)
    plan = make_plan(model, recipe_of(name, "Q8_0"))
    check_exports(model, plan, ["gguf"], True)
    setattr(model.config, key, value)
    with pytest.raises(
        torchqat.UserError, match=matches("export.gguf-fixed", kind=name.split()[0], key=key, value=value)
    ):
        check_exports(model, plan, ["gguf"], True)


def test_positions_that_llama_cpp_does_not_rotate_by_are_refused():
    model = build("llama", rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0})
    with pytest.raises(
        torchqat.UserError, match=matches("export.gguf-stretched-positions", kind="llama", found="dynamic")
    ):
        check_exports(model, _plan("llama", model), ["gguf"], True)
    model = build("llama", rope_parameters={"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5})
    with pytest.raises(torchqat.UserError, match=matches("export.gguf-rotated-part", kind="llama", part=16, size=32)):
        check_exports(model, _plan("llama", model), ["gguf"], True)


def _plan(name, model):
    from torchqat.model.prepare import make_plan

    return make_plan(model, recipe_of(name, "Q8_0"))


def test_a_file_that_rotates_otherwise_is_found(tmp_path, monkeypatch):
    """Which frequencies the keys stand for is worked out again, from the file."""
    from torchqat.checkpoints.formats.llama_cpp import rope

    model = torchqat.prepare(build("llama linear"), recipe_for(WEIGHTS["Q8_0"])).eval()
    monkeypatch.setattr(rope, "rope_base", lambda config: 5e3)
    folder = torchqat.export(model, tmp_path / "out", "gguf")
    assert "rope_freqs.weight" in torchqat.verify(folder, model, engine="reader").missing
    assert "rope_freqs.weight" in unquantized_in_gguf(folder, model)


def test_what_a_file_does_not_have_is_said():
    assert gguf_notes(build("llama")) == gguf_notes(build("gemma2")) == []
    assert gguf_notes(build("gemma3 with images")) == [
        sentence("export.gguf-language-model", part="model.language_model")
    ]
    assert gguf_notes(build("starcoder2", sliding_window=64)) == [
        sentence("export.gguf-window", kind="starcoder2", context=64)
    ]
    model = build("gpt_oss", rope_parameters={**MODELS["gpt_oss"]["rope_parameters"], "truncate": False})
    assert gguf_notes(model) == [sentence("export.gguf-yarn")]
