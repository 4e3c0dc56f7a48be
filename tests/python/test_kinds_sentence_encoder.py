"""From hidden states to a vector, as sentence-transformers folders say: each way beside a slow reference of its own."""

import json
import shutil

import pytest
import torch
import torch.nn.functional as F
import torchqat
import transformers
from command import call
from safetensors.torch import load_file, save_file
from sentences import matches, said, sentence
from torchqat.data.examples import Examples
from torchqat.kinds import find_kind

REFERENCES = {
    "cls_token": lambda rows: rows[0],
    "mean_tokens": lambda rows: rows.mean(0),
    "max_tokens": lambda rows: rows.max(0).values,
    "lasttoken": lambda rows: rows[-1],
    "mean_sqrt_len_tokens": lambda rows: rows.sum(0) / len(rows) ** 0.5,
    "weightedmean_tokens": lambda rows: sum((i + 1) * row for i, row in enumerate(rows)) / sum(range(1, len(rows) + 1)),
}
RUN = """version: 1
model: {kind: sentence_encoder}
layers: [{match: blocks, weight: {dtype: int4, group_size: 32}}]
data: {calibration: {samples: 8, sequence_length: 32}, evaluation: {samples: 16, sequence_length: 32}}
train: {steps: 2, batch_size: 4, sequence_length: 32, checkpoint_every: 2, validate_every: 2}
"""
BEGINNING = [("Transformer", ""), ("Pooling", "1_Pooling")]


def says(folder, pooling, modules=None):
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    found = [{"type": f"sentence_transformers.models.{kind}", "path": path} for kind, path in modules or []]
    (folder / "modules.json").write_text(json.dumps(found))


def dense(folder, inputs, outputs, activation="torch.nn.modules.activation.Tanh", bias=True):
    folder.mkdir()
    settings = {"in_features": inputs, "out_features": outputs, "bias": bias, "activation_function": activation}
    (folder / "config.json").write_text(json.dumps(settings))
    state = {"linear.weight": torch.randn(outputs, inputs), "linear.bias": torch.randn(outputs)}
    state = state if bias else {"linear.weight": state["linear.weight"]}
    save_file(state, folder / "model.safetensors")
    return state


def loaded(path):
    notes, kind = [], find_kind("sentence_encoder")
    return kind, kind.load(str(path), "float32", notes.append), notes


@pytest.fixture
def examples():
    return Examples([torch.randint(400, (n,)) for n in (6, 3, 9)])


def hidden_of(model, examples):
    return [model(input_ids=ids[None]).last_hidden_state[0] for ids in examples.inputs]


@pytest.mark.parametrize("name", REFERENCES)
def test_hidden_states_are_pooled_as_the_folder_says(name, encoder_folder, examples):
    for settings in ({f"pooling_mode_{name}": True, "word_embedding_dimension": 64}, {"pooling_mode": name}):
        says(encoder_folder, settings, BEGINNING)
        kind, model, notes = loaded(encoder_folder)
        expected = torch.stack([F.normalize(REFERENCES[name](rows), dim=-1) for rows in hidden_of(model, examples)])
        torch.testing.assert_close(kind.outputs(model, examples.batch(torch.arange(3))), expected)
        assert notes == []


def test_the_last_token_is_that_of_the_text_wherever_padding_is(encoder_folder):
    says(encoder_folder, {"pooling_mode_lasttoken": True}, BEGINNING)
    kind = find_kind("sentence_encoder")
    kind.load(str(encoder_folder), "float32")
    hidden = torch.randn(2, 4, 8)
    found = kind.vectors(hidden, torch.tensor([[0, 1, 1, 1], [1, 1, 0, 0]]))
    torch.testing.assert_close(found, F.normalize(torch.stack([hidden[0, 3], hidden[1, 1]]), dim=-1))


def test_results_of_several_ways_are_side_by_side(encoder_folder, examples):
    says(encoder_folder, {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}, BEGINNING)
    kind, model, _ = loaded(encoder_folder)
    expected = torch.stack([torch.cat([rows[0], rows.mean(0)]) for rows in hidden_of(model, examples)])
    found = kind.outputs(model, examples.batch(torch.arange(3)))
    torch.testing.assert_close(found, F.normalize(expected, dim=-1))


def test_dense_layers_and_normalization_come_in_their_order(encoder_folder, examples):
    first = dense(encoder_folder / "2_Dense", 64, 32)
    second = dense(encoder_folder / "4_Dense", 32, 16, "torch.nn.modules.linear.Identity", bias=False)
    rest = [("Dense", "2_Dense"), ("Normalize", "3_Normalize"), ("Dense", "4_Dense")]
    says(encoder_folder, {"pooling_mode_mean_tokens": True}, BEGINNING + rest)
    kind, model, _ = loaded(encoder_folder)
    means = torch.stack([rows.mean(0) for rows in hidden_of(model, examples)])
    expected = F.normalize(torch.tanh(means @ first["linear.weight"].T + first["linear.bias"]), dim=-1)
    expected = F.normalize(expected @ second["linear.weight"].T, dim=-1)
    found = kind.outputs(model, examples.batch(torch.arange(3)))
    torch.testing.assert_close(found, expected)
    found.sum().backward()
    assert model.encoder.layer[0].attention.self.query.weight.grad is not None
    files = {"modules.json", "1_Pooling/config.json"}
    files |= {f"{place}/{name}" for place in ("2_Dense", "4_Dense") for name in ("config.json", "model.safetensors")}
    assert set(kind.companions(str(encoder_folder))) == files


def test_an_export_has_what_a_vector_takes(capsys, tmp_path, encoder_folder):
    state = dense(encoder_folder / "2_Dense", 64, 32)
    says(encoder_folder, {"pooling_mode_cls_token": True}, [*BEGINNING, ("Dense", "2_Dense")])
    lines = [json.dumps({"text": f"Function number {i} adds {i} to its argument."}) + "\n" for i in range(80)]
    (tmp_path / "sentences.jsonl").write_text("".join(lines))
    (tmp_path / "recipe.yaml").write_text(RUN)
    place = tmp_path / "run"
    arguments = ["--model", encoder_folder, "--data", tmp_path / "sentences.jsonl", "--output", place]
    code, out, err = call(capsys, "run", tmp_path / "recipe.yaml", *arguments)
    assert code == 0 and said(out + err, "verify.equal", layers=12), err
    exported = place / "exports" / "compressed-tensors"
    copied = load_file(exported / "2_Dense" / "model.safetensors")
    assert all(torch.equal(copied[name], tensor) for name, tensor in state.items())
    assert json.loads((exported / "modules.json").read_text())[2]["path"] == "2_Dense"
    kind = find_kind("sentence_encoder")
    assert 0.5 < json.loads((place / "report.json").read_text())["variants"][-1]["cosine"] < 1.0
    assert kind.load(str(encoder_folder), "float32") and kind.vectors.rest[0][0].out_features == 32


@pytest.mark.parametrize("name", ["T5EncoderModel", "T5ForConditionalGeneration"])
def test_the_encoder_of_a_t5_is_an_encoder(name, capsys, tmp_path, tokenizer):
    settings = {"d_model": 64, "d_ff": 96, "d_kv": 16, "num_heads": 4, "num_layers": 2, "vocab_size": 400}
    folder, place = tmp_path / "model", tmp_path / "run"
    getattr(transformers, name)(transformers.T5Config(**settings)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "1_Pooling").mkdir()
    dense(folder / "2_Dense", 64, 32, "torch.nn.modules.linear.Identity", bias=False)
    says(folder, {"pooling_mode_mean_tokens": True}, [*BEGINNING, ("Dense", "2_Dense"), ("Normalize", "3_Normalize")])
    _, model, notes = loaded(folder)
    assert type(model) is transformers.T5EncoderModel
    assert [said(note, "model.of-another-task") for note in notes] == [True] * (name != "T5EncoderModel")
    lines = [json.dumps({"text": f"Function number {i} adds {i} to its argument."}) + "\n" for i in range(80)]
    (tmp_path / "sentences.jsonl").write_text("".join(lines))
    (tmp_path / "recipe.yaml").write_text(RUN)
    arguments = ["--model", folder, "--data", tmp_path / "sentences.jsonl", "--output", place]
    code, out, err = call(capsys, "run", tmp_path / "recipe.yaml", *arguments)
    assert code == 0 and said(out + err, "verify.equal", layers=12), err


def test_a_folder_that_says_nothing_is_averaged_and_says_so(encoder_folder):
    shutil.rmtree(encoder_folder / "1_Pooling")
    (encoder_folder / "modules.json").unlink()
    kind, _, notes = loaded(encoder_folder)
    assert kind.vectors.pooling == ("mean_tokens",)
    assert notes == [sentence("model.says-no-pooling", path=encoder_folder)]


def test_what_is_not_known_is_refused_by_name(encoder_folder):
    def refused():
        with pytest.raises(torchqat.UserError) as error:
            loaded(encoder_folder)
        return str(error.value)

    file = encoder_folder / "1_Pooling" / "config.json"
    says(encoder_folder, {"pooling_mode_attention": True, "pooling_mode_mean_tokens": False}, BEGINNING)
    assert said(refused(), "model.unknown-pooling", file=file, modes='["attention"]')
    says(encoder_folder, {"pooling_mode_cls_token": False}, BEGINNING)
    assert said(refused(), "model.unknown-pooling", file=file, modes="[]")
    says(encoder_folder, {"pooling_mode_cls_token": True}, [*BEGINNING, ("LSTM", "2_LSTM")])
    assert said(refused(), "model.unknown-module", path=encoder_folder, module="LSTM")
    says(encoder_folder, {"pooling_mode_cls_token": True}, [("StaticEmbedding", "0_StaticEmbedding")])
    assert said(refused(), "model.begins-with-other-modules", path=encoder_folder, found="['StaticEmbedding']")
    says(encoder_folder, {"pooling_mode_cls_token": True}, [*BEGINNING, ("Dense", "../elsewhere")])
    assert said(refused(), "model.module-elsewhere", place="'../elsewhere'")
    says(encoder_folder, {"pooling_mode_cls_token": True}, [*BEGINNING, ("Dense", "2_Dense")])
    assert said(refused(), "model.module-missing", path=encoder_folder, name="2_Dense/config.json")
    dense(encoder_folder / "2_Dense", 64, 32, "my_code.Activation")
    assert said(refused(), "model.unknown-activation", name="my_code.Activation")
    (encoder_folder / "2_Dense" / "model.safetensors").rename(encoder_folder / "2_Dense" / "pytorch_model.bin")
    assert said(refused(), "model.module-pickled", path=encoder_folder, place="2_Dense")


# -- the hub ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path, monkeypatch, encoder_folder):
    """A hub with one encoder, ``me/encoder``, of which single files are fetched as from the real one."""
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
    from transformers.utils import hub as of_transformers

    cache = tmp_path / "hub"
    snapshot = cache / "models--me--encoder" / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (cache / "models--me--encoder" / "refs").mkdir()
    (cache / "models--me--encoder" / "refs" / "main").write_text("a" * 40)
    for file in (file for file in encoder_folder.iterdir() if file.is_file() and file.name != "modules.json"):
        shutil.copyfile(file, snapshot / file.name)  # what transformers has fetched before
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(of_transformers.constants, "HF_HUB_CACHE", str(cache))
    hub = type("Hub", (), {"is_there": True, "snapshot": snapshot, "fetched": []})

    def fetch(path, name, **_):
        assert path == "me/encoder"
        hub.fetched.append(name)
        if not hub.is_there:
            raise LocalEntryNotFoundError("no network")
        if not (encoder_folder / name).is_file():
            raise EntryNotFoundError(name)
        (snapshot / name).parent.mkdir(exist_ok=True)
        return shutil.copyfile(encoder_folder / name, snapshot / name)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(snapshot))
    model = transformers.BertModel.from_pretrained(encoder_folder)
    monkeypatch.setattr("torchqat.kinds.sentence_encoder.load_pretrained", lambda *_: model)
    return hub


def test_an_encoder_of_the_hub_is_pooled_as_it_says(hub, encoder_folder):
    dense(encoder_folder / "2_Dense", 64, 32)
    says(encoder_folder, {"pooling_mode_lasttoken": True}, [*BEGINNING, ("Dense", "2_Dense")])
    kind, _, notes = loaded("me/encoder")
    assert kind.vectors.pooling == ("lasttoken",) and len(kind.vectors.rest) == 1 and not notes
    assert set(hub.fetched) >= {"modules.json", "1_Pooling/config.json", "2_Dense/model.safetensors"}
    assert "2_Dense/model.safetensors" in kind.companions("me/encoder")


def test_an_encoder_of_the_hub_that_says_nothing_is_averaged(hub, encoder_folder):
    (encoder_folder / "modules.json").unlink()
    shutil.rmtree(encoder_folder / "1_Pooling")
    assert loaded("me/encoder")[2] == [sentence("model.says-no-pooling", path="me/encoder")]


def test_how_it_pools_is_not_guessed_without_network(hub):
    hub.is_there = False
    with pytest.raises(
        torchqat.UserError, match=matches("model.file-not-fetched", name="modules.json", path="me/encoder")
    ):
        loaded("me/encoder")
