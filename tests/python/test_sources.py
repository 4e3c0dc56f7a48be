"""What a model's folder must hold: all that the model needs, and nothing that would be lost on the way."""

import json
import shutil

import pytest
import torch
import torchqat
import transformers
from command import call
from conftest import BERT
from safetensors.torch import load_file, save_file
from sentences import matches, said, sentence
from torchqat.kinds import find_kind
from torchqat.model.loading import load_model
from torchqat.reports.report import read_report

SHAPE = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 16, "vocab_size": 100, "pad_token_id": 0,
}  # fmt: skip
UP = "model.layers.0.mlp.up_proj.weight"


def saved(folder, name, **settings):
    """The folder of a model of transformers, its weights random."""
    torch.manual_seed(0)
    model = getattr(transformers, name)
    model = model(model.config_class(**settings)).eval()
    model.save_pretrained(folder)
    return model


def changed(folder, change):
    """``folder`` with other tensors: ``change`` is given them by name."""
    file = folder / "model.safetensors"
    state = load_file(file)
    change(state)
    save_file(state, file, metadata={"format": "pt"})
    return str(folder)


def loaded(path, kind="causal_lm"):
    """The model and what is said of it."""
    notes = []
    return find_kind(kind).load(str(path), "float32", notes.append), notes


def refused(path, kind="causal_lm"):
    """What is said of it, the same with weights and, for the plan, without."""
    said_of_it = []
    for read in (find_kind(kind).load, find_kind(kind).outline):
        with pytest.raises(torchqat.UserError) as error:
            read(str(path), "float32")
        said_of_it.append(str(error.value))
    assert said_of_it[0] == said_of_it[1]
    return said_of_it[0]


def test_a_tensor_that_lacks_is_named(model_folder):
    path = changed(model_folder, lambda state: state.pop(UP))
    assert refused(path) == sentence("model.lacks", kind="LlamaForCausalLM", path=path, names=UP)
    changed(
        model_folder, lambda state: [state.pop(f"model.layers.1.mlp.{leaf}_proj.weight") for leaf in ("up", "down")]
    )
    assert said(refused(path), "model.lacks", names=f"{UP} and 2 more")


def test_a_tensor_of_another_shape_is_named(model_folder):
    path = changed(model_folder, lambda state: state.update({UP: torch.zeros(95, 64)}))
    there, expected = [95, 64], [96, 64]
    given = {"path": path, "name": UP, "found": there, "kind": "LlamaForCausalLM", "expected": expected}
    assert refused(path) == sentence("model.other-shape", **given)
    changed(model_folder, lambda state: state.update({"model.norm.weight": torch.ones(1)}))
    assert said(refused(path), "model.other-shapes", path=path, more=1)


def test_a_tensor_that_nothing_takes_is_named(model_folder):
    extra = "model.layers.2.mlp.up_proj.weight"
    path = changed(model_folder, lambda state: state.update({extra: torch.zeros(96, 64)}))
    what = "causal language model"
    assert refused(path) == sentence("model.not-taken", what=what, path=path, names=extra, kind="LlamaForCausalLM")


def test_commands_say_so_before_anything_is_written(model_folder, arguments, recipe_file, tmp_path, capsys):
    path = changed(model_folder, lambda state: state.pop(UP))
    for command in ("run", "ptq", "train"):
        code, _, err = call(capsys, command, *arguments)
        assert code == 2 and said(err, "model.lacks", path=path, names=UP)
    code, _, err = call(capsys, "check", recipe_file, "--model", path)
    assert code == 2 and said(err, "model.lacks", path=path, names=UP)
    code, _, err = call(capsys, "ptq", *arguments, "--stream")
    assert code == 2 and said(err, "checkpoints.lacks-tensor", folder=path, name=UP)
    code, _, err = call(capsys, "evaluate", path, "--data", tmp_path / "data")
    assert code == 2 and said(err, "model.lacks", path=path, names=UP)
    assert not (tmp_path / "run").exists()


def test_a_tied_head_is_no_tensor_that_lacks(tmp_path):
    model = saved(tmp_path, "LlamaForCausalLM", **SHAPE, tie_word_embeddings=True)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    found, notes = loaded(tmp_path)
    assert torch.equal(found.lm_head.weight, model.lm_head.weight) and not notes


def test_a_matrix_of_an_expert_is_named_as_it_is_on_disk(tmp_path):
    """In memory all experts are one tensor."""
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    model = saved(tmp_path, "Qwen3MoeForCausalLM", **SHAPE, **experts)
    found, notes = loaded(tmp_path)
    assert not notes and all(torch.equal(a, b) for a, b in zip(model.parameters(), found.parameters(), strict=True))
    name = "model.layers.0.mlp.experts.1.gate_proj.weight"
    path = changed(tmp_path, lambda state: state.pop(name))
    assert said(refused(path), "model.lacks", kind="Qwen3MoeForCausalLM", path=path, names=name)


@pytest.mark.parametrize("name", ["LlamaForSequenceClassification", "LlamaModel"])
def test_another_model_is_no_language_model_with_a_random_head(name, tmp_path):
    saved(tmp_path, name, **SHAPE)
    given = {"kind": "LlamaForCausalLM", "path": tmp_path, "other": name, "names": "lm_head.weight"}
    assert refused(tmp_path) == sentence("model.lacks-of-another", **given)


def test_an_encoder_decoder_is_no_language_model_without_its_encoder(tmp_path):
    saved(tmp_path, "BartForConditionalGeneration", d_model=32, vocab_size=100, encoder_layers=1, decoder_layers=1,
          encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32)  # fmt: skip
    name = "BartForConditionalGeneration"
    assert refused(tmp_path) == sentence("model.encoder-decoder", path=tmp_path, name=name)


# -- several parts ----------------------------------------------------------------------------------------------------

VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28,
          "patch_size": 14}  # fmt: skip
LINEAR = {
    "linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 16, "linear_value_head_dim": 16,
    "layer_types": ["linear_attention", "full_attention"],
}  # fmt: skip
PARTS = {
    "Qwen3_5ForConditionalGeneration": (
        {**SHAPE, **LINEAR},
        {"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 64},
        "model.visual",
    ),
    "Llama4ForConditionalGeneration": (
        {**SHAPE, "num_local_experts": 2, "intermediate_size_mlp": 96},
        {**VISION, "vision_output_dim": 32, "projector_input_dim": 32, "projector_output_dim": 32},
        "multi_modal_projector",
    ),
    "MllamaForConditionalGeneration": (
        {**SHAPE, "cross_attention_layers": [1], "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
        {**VISION, "attention_heads": 2, "num_global_layers": 1, "vision_output_dim": 64,
         "intermediate_layers_indices": [0], "supported_aspect_ratios": [[1, 1]]},
        "multi_modal_projector",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PARTS)
def test_no_vision_tower_is_lost(name, tmp_path):
    text, vision, first = PARTS[name]
    model = saved(tmp_path, name, text_config=text, vision_config=vision)
    found, notes = loaded(tmp_path)
    assert type(found) is type(model) and not notes and model.state_dict().keys() == found.state_dict().keys()
    assert any(key.startswith((first, f"model.{first}")) for key in found.state_dict())


@pytest.mark.parametrize("name", ["Qwen3_5ForConditionalGeneration"])
def test_a_vision_tower_that_the_architecture_does_not_name_is_not_left_out_either(name, tmp_path):
    text, vision, first = PARTS[name]
    saved(tmp_path, name, text_config=text, vision_config=vision)
    named = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**named, "architectures": ["Qwen3_5ForCausalLM"]}))
    whole = "Qwen3_5ForCausalLM"
    found = refused(tmp_path)
    assert said(found, "model.part-of-another", what="causal language model", path=tmp_path, whole=whole)
    assert first in found


def test_a_vision_language_model_that_is_loaded_whole_is_none_of_these(tmp_path):
    vision = {**VISION, "num_hidden_layers": 1}
    ids = {"mm_tokens_per_image": 4, "image_token_index": 90, "boi_token_index": 91, "eoi_token_index": 92}
    model = saved(tmp_path, "Gemma3ForConditionalGeneration", text_config=SHAPE, vision_config=vision, **ids)
    found, notes = loaded(tmp_path)
    assert type(found) is type(model) and not notes


def test_what_transformers_passes_over_is_noted(tmp_path):
    """DeepSeek-V3's layer that predicts further tokens."""
    few = {"num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "n_shared_experts": 1}
    low = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16}
    shape = {**SHAPE, "num_key_value_heads": 4, "moe_intermediate_size": 32, "n_routed_experts": 4}
    saved(tmp_path, "DeepseekV3ForCausalLM", **shape, **few, **low)
    assert loaded(tmp_path)[1] == []

    def add(state):
        state.update({n.replace("layers.1.", "layers.61."): t + 0 for n, t in state.items() if "layers.1." in n})

    path = changed(tmp_path, add)
    names = "model.layers.61.input_layernorm.weight and 24 more"
    assert loaded(path)[1] == [sentence("model.passed-over", path=path, names=names, kind="DeepseekV3ForCausalLM")]


def test_masks_and_frequencies_that_a_model_makes_anew_are_no_news(tmp_path):
    saved(tmp_path, "GPT2LMHeadModel", n_embd=32, n_layer=1, n_head=2, vocab_size=100, n_positions=16)

    def as_published(state):
        """Without the prefix, with masks."""
        for name in list(state):
            state[name.removeprefix("transformer.")] = state.pop(name)
        state["h.0.attn.bias"] = torch.ones(1, 1, 16, 16)

    assert loaded(changed(tmp_path, as_published))[1] == []
    saved(tmp_path, "LlamaForCausalLM", **SHAPE)
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    assert loaded(changed(tmp_path, lambda state: state.update({name: torch.ones(8)})))[1] == []


# -- heads and poolers ------------------------------------------------------------------------------------------------


def test_a_head_that_a_task_adds_is_noted_and_the_same_each_time(tmp_path):
    saved(tmp_path, "BertForMaskedLM", **BERT)
    (first, notes), (second, _) = loaded(tmp_path, "classifier"), loaded(tmp_path, "classifier")
    names = "bert.pooler.dense.weight and 3 more"
    assert said(notes[0], "model.head-at-random", path=tmp_path, names=names, what="classifier")
    assert said(notes[1], "model.of-another-task", path=tmp_path, names="cls.predictions.bias and 4 more")
    assert torch.equal(first.classifier.weight, second.classifier.weight) and first.classifier.weight.std() > 0


@pytest.mark.parametrize("lacking", ["classifier.weight", "bert.encoder.layer.1.output.dense.weight"])
def test_a_head_that_was_there_may_not_lack(lacking, classifier_folder):
    path = changed(classifier_folder, lambda state: state.pop(lacking))
    with pytest.raises(torchqat.UserError, match=matches("model.lacks", path=path, names=lacking)):
        find_kind("classifier").load(path, "float32")


def test_a_body_that_lacks_a_tensor_is_no_head(tmp_path):
    saved(tmp_path, "BertForMaskedLM", **BERT)
    lacking = "bert.encoder.layer.1.output.dense.weight"
    path = changed(tmp_path, lambda state: state.pop(lacking))
    with pytest.raises(torchqat.UserError, match=matches("model.lacks-of-another", names=lacking)):
        find_kind("classifier").load(path, "float32")


def test_a_block_too_many_is_no_head_of_another_task(tmp_path):
    saved(tmp_path, "BertForMaskedLM", **BERT)
    extra = "bert.encoder.layer.2.output.dense.weight"
    path = changed(tmp_path, lambda state: state.update({extra: torch.zeros(64, 96)}))
    with pytest.raises(torchqat.UserError, match=matches("model.not-taken", names=extra)):
        find_kind("sentence_encoder").load(path, "float32")


def test_an_encoder_without_a_pooler_gets_none(encoder_folder, tmp_path):
    model, notes = loaded(encoder_folder, "sentence_encoder")
    assert model.pooler is None and not notes
    saved(tmp_path / "pooled", "BertModel", **BERT)
    model, notes = loaded(tmp_path / "pooled", "sentence_encoder")
    assert model.pooler is not None and notes == [sentence("model.says-no-pooling", path=tmp_path / "pooled")]


def test_notes_reach_the_report(tmp_path, tokenizer, capsys):
    """A classifier whose head begins at random, by `check` and in the report of a run."""
    model, data, run = tmp_path / "base", tmp_path / "data.jsonl", tmp_path / "run"
    saved(model, "BertModel", **BERT)
    tokenizer.save_pretrained(model)
    data.write_text("".join(json.dumps({"text": f"return {i}", "label": i % 2}) + "\n" for i in range(24)))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "version: 1\nmodel: {kind: classifier}\ndata: {evaluation: {samples: 4, sequence_length: 16}}\n"
        "layers: [{match: '*.layer.*', weight: {dtype: int8}}]\n"
        "train: {steps: 2, batch_size: 2, sequence_length: 16}\nevaluate: {compare: []}\n"
    )
    note = sentence("model.head-at-random", path=model, names="classifier.weight and 1 more", what="classifier")
    code, out, err = call(capsys, "check", recipe, "--model", model)
    assert code == 0 and f"Note: {note}" in out, err
    code, _, err = call(capsys, "run", recipe, "--model", model, "--data", data, "--output", run)
    assert code == 0 and err.count(note) == 1, err
    assert read_report(run).notes.count(note) == 1


def test_files_beside_those_that_are_loaded_are_not_looked_at(model_folder):
    """Mistral's folders have the same weights once more, by other names."""
    shutil.copyfile(model_folder / "model.safetensors", model_folder / "consolidated.safetensors")
    changed(model_folder, lambda state: state.pop(UP))
    with pytest.raises(torchqat.UserError, match=matches("model.lacks", names=UP)):
        load_model(str(model_folder))
