"""BERT in GGUF files: its tensors, how vectors are made of its hidden states, and its tokenizer."""

import json

import gguf
import pytest
import torch
import torchqat
import transformers
from command import call
from conftest import BERT
from sentences import matches, said, sentence
from test_gguf import reader_of, value_of
from torchqat.checkpoints.export import export_notes
from torchqat.checkpoints.formats.gguf import write_gguf
from torchqat.kinds.pooling import vectors_of
from word_pieces import PIECES, SPECIAL, word_pieces

RECIPE = (
    "version: 1\nmodel: {kind: sentence_encoder}\nlayers: [{match: blocks, weight: {dtype: q4_0, scale: learned}}]\n"
)


def bert(pooler=False, **settings):
    torch.manual_seed(0)
    config = transformers.BertConfig(**{**BERT, "hidden_act": "gelu", **settings})
    return transformers.BertModel(config, add_pooling_layer=pooler).eval()


def prepared(**settings):
    return torchqat.prepare(bert(**settings), torchqat.parse_recipe(RECIPE))


@pytest.mark.parametrize("pooling, number", (("mean", 1), ("cls", 2), ("last", 3)))
def test_it_is_written_and_verified(pooling, number, tmp_path):
    model = prepared()
    folder = torchqat.export(model, tmp_path / "out", "gguf", word_pieces(), pooling=pooling)
    checked = torchqat.verify(folder, model)
    assert checked.ok and checked.layers == 12, str(checked)
    reader = reader_of(folder)
    assert value_of(reader, "general.architecture") == "bert"
    assert value_of(reader, "bert.pooling_type") == number and value_of(reader, "bert.attention.causal") is False
    assert value_of(reader, "bert.attention.layer_norm_epsilon") == pytest.approx(1e-12)
    assert value_of(reader, "tokenizer.ggml.token_type_count") == 2
    kinds = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert kinds["blk.1.attn_q.weight"] == "Q4_0" and kinds["token_embd.weight"] == "F16"
    assert kinds["position_embd.weight"] == kinds["token_types.weight"] == kinds["token_embd_norm.weight"] == "F32"


def test_damage_is_found(tmp_path):
    model = prepared()
    folder = torchqat.export(model, tmp_path / "out", "gguf", word_pieces(), pooling="mean")
    for name in ("blk.0.ffn_down.weight", "position_embd.weight"):
        data = next(t for t in gguf.GGUFReader(folder / "model.gguf", "r+").tensors if t.name == name).data
        data.view("uint8").reshape(-1)[2] ^= 1
        assert not torchqat.verify(folder, model).ok
        data.view("uint8").reshape(-1)[2] ^= 1
    assert torchqat.verify(folder, model).ok


@pytest.mark.parametrize(
    "lowercase, strips, wanted", ((True, None, True), (False, None, False), (False, True, True), (True, False, False))
)
def test_pieces_that_begin_a_word_are_marked(lowercase, strips, wanted, tmp_path):
    tokenizer = word_pieces(lowercase, strips)
    reader = reader_of(torchqat.export(prepared(), tmp_path / "out", "gguf", tokenizer, pooling="mean"))
    tokens = value_of(reader, "tokenizer.ggml.tokens")
    assert tuple(tokens[: len(SPECIAL)]) == SPECIAL
    marked = [text[2:] if text.startswith("##") else "\u2581" + text for text in PIECES]
    assert tokens[len(SPECIAL) : len(SPECIAL) + len(PIECES)] == marked
    assert value_of(reader, "tokenizer.ggml.model") == "bert"
    assert value_of(reader, "tokenizer.ggml.normalizer.lowercase") is lowercase
    assert value_of(reader, "tokenizer.ggml.normalizer.strip_accents") is wanted
    ids = ("padding", "unknown", "bos", "seperator", "mask")  # gguf spells it so
    assert [value_of(reader, f"tokenizer.ggml.{name}_token_id") for name in ids] == [0, 1, 2, 3, 4]
    types = value_of(reader, "tokenizer.ggml.token_type")
    assert types[2] == gguf.TokenType.CONTROL and types[1] == gguf.TokenType.UNKNOWN
    assert types[6] == gguf.TokenType.NORMAL and types[-1] == gguf.TokenType.UNUSED


def test_tokenizers_that_llama_cpp_splits_otherwise_are_refused(tokenizer, tmp_path):
    from tokenizers import pre_tokenizers

    other = word_pieces()
    other.backend_tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    for found in (other, word_pieces(clean_text=False), word_pieces(handle_chinese_chars=False)):
        with pytest.raises(torchqat.UserError, match=matches("export.gguf-word-pieces")):
            torchqat.export(prepared(), tmp_path / "out", "gguf", found, pooling="mean")
    without = word_pieces()
    without.backend_tokenizer.post_processor = None
    with pytest.raises(torchqat.UserError, match=matches("export.gguf-word-pieces-ends")):
        torchqat.export(prepared(), tmp_path / "out", "gguf", without, pooling="mean")
    assert not (tmp_path / "out").exists()


def test_how_vectors_are_made_must_be_known_to_llama_cpp(tmp_path):
    for pooling, why in (("", "nothing that was said: give pooling"), ("max_tokens", "max_tokens")):
        with pytest.raises(torchqat.UserError, match=matches("export.gguf-pooling", pooling=why)):
            torchqat.export(prepared(), tmp_path / "out", "gguf", word_pieces(), pooling=pooling)


@pytest.mark.parametrize(
    "settings, words",
    (
        ({"pooling_mode": "mean"}, "mean"),
        ({"pooling_mode": "cls"}, "cls"),
        ({"pooling_mode_lasttoken": True}, "last"),
        ({"pooling_mode": ["mean", "max"]}, "max_tokens and mean"),
    ),
)
def test_a_folder_says_how_in_words(settings, words, tmp_path):
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(settings))
    assert vectors_of(str(tmp_path)).in_words() == words


def test_models_that_are_no_encoders_of_texts_are_refused(tmp_path):
    model = transformers.BertForSequenceClassification(transformers.BertConfig(**BERT))
    with pytest.raises(torchqat.UserError, match=matches("export.gguf-encoder", name="BertForSequenceClassification")):
        write_gguf(model, [], None, tmp_path / "model.gguf", pooling="mean")
    model = bert(hidden_act="relu")
    with pytest.raises(torchqat.UserError, match=matches("export.gguf-fixed", key="hidden_act")):
        write_gguf(model, [], None, tmp_path / "model.gguf", pooling="mean")


def test_a_pooler_is_left_out_and_said(tmp_path):
    model = prepared(pooler=True)
    folder = torchqat.export(model, tmp_path / "out", "gguf", pooling="cls")
    assert torchqat.verify(folder, model).ok
    assert export_notes(model, "gguf") == [sentence("export.gguf-pooler")]
    rule = '  - {match: "pooler.dense", weight: {dtype: q4_0}}\n'
    made = torchqat.parse_recipe(RECIPE.replace("layers: [", "layers:\n  - ").replace("}}]\n", "}}\n") + rule)
    with pytest.raises(torchqat.UserError, match=matches("export.gguf-no-place", name="pooler.dense")):
        torchqat.export(torchqat.prepare(bert(pooler=True), made), tmp_path / "other", "gguf", pooling="cls")


def test_a_run_of_an_encoder_ends_in_gguf(encoder_folder, tmp_path, capsys):
    config = json.loads((encoder_folder / "config.json").read_text())
    (encoder_folder / "config.json").write_text(json.dumps({**config, "hidden_act": "gelu"}))
    word_pieces().save_pretrained(encoder_folder)
    (encoder_folder / "modules.json").unlink()
    data = "data: {evaluation: {samples: 4, sequence_length: 16}, calibration: {samples: 4, sequence_length: 16}}\n"
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.replace("learned", "mse") + data + "initialize: {method: mse}\nexport: [gguf]\n")
    text = tmp_path / "sentences.txt"
    text.write_text("\n\n".join(f"The quick fox runs {'a b c ' * (1 + i % 5)} {i}" for i in range(120)))
    given = [recipe, "--model", encoder_folder, "--data", text, "--output", tmp_path / "run"]
    code, out, err = call(capsys, "ptq", *given)
    assert code == 0, err
    export = next((tmp_path / "run" / "exports").glob("gguf*"))
    code, out, err = call(capsys, "verify", export)
    assert code == 0 and said(out, "verify.equal", layers=12), err
    (encoder_folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_max_tokens": true}')
    code, _, err = call(capsys, "ptq", *given, "--restart")
    assert code == 2 and said(err, "export.gguf-pooling", pooling="max_tokens")
