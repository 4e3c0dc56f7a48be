"""Encoders with a decoder: the command line says that it takes none, and Python quantizes them from beginning to end."""

import copy

import pytest
import torch
import torch.nn.functional as F
import torchqat
import transformers
from command import call
from sentences import said

RECIPE = """version: 1
layers:
  - match: blocks
    weight: {dtype: int4, group_size: 32, grid: full, scale: learned}
schedule: [{until: 50%, weight: int8}, {until: 100%, weight: int4}]
initialize: {method: gptq}
"""
T5 = {
    "d_model": 64,
    "d_ff": 96,
    "d_kv": 16,
    "num_heads": 4,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "vocab_size": 200,
}
BART = {
    "d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "encoder_ffn_dim": 96, "decoder_ffn_dim": 96, "vocab_size": 200, "max_position_embeddings": 64, "pad_token_id": 1,
}  # fmt: skip
WHISPER = {
    **BART, "num_mel_bins": 16, "max_source_positions": 20, "max_target_positions": 32, "decoder_start_token_id": 3,
    "bos_token_id": 4, "eos_token_id": 5, "suppress_tokens": None, "begin_suppress_tokens": None,
}  # fmt: skip


def text(generator):
    ids = torch.randint(10, 200, (2, 12), generator=generator)
    return {"input_ids": ids, "decoder_input_ids": torch.randint(10, 200, (2, 8), generator=generator)}


def speech(generator):
    sound = torch.randn(2, 16, 40, generator=generator)
    return {"input_features": sound, "decoder_input_ids": torch.randint(10, 200, (2, 8), generator=generator)}


# The class, its settings, its inputs, and how many layers its blocks have: those of both towers.
MODELS = {
    "T5ForConditionalGeneration": (T5, text, 2 * 6 + 2 * 10),
    "BartForConditionalGeneration": (BART, text, 2 * 6 + 2 * 10),
    "WhisperForConditionalGeneration": (WHISPER, speech, 2 * 6 + 2 * 10),
}


def build(name):
    torch.manual_seed(0)
    model = getattr(transformers, name)
    return model(model.config_class(**MODELS[name][0])).eval()


@pytest.mark.parametrize("name", MODELS)
def test_python_quantizes_trains_exports_and_verifies_them(name, tmp_path):
    _, inputs, layers = MODELS[name]
    generator = torch.Generator().manual_seed(1)
    batches = [inputs(generator) for _ in range(8)]
    original, recipe = build(name), torchqat.parse_recipe(RECIPE, "recipe")
    model = torchqat.prepare(copy.deepcopy(original), recipe)

    def forward(model, batch):
        return model(**batch, use_cache=False)

    result = torchqat.calibrate(model, batches, forward)
    assert result.warnings == []
    optimizer = torch.optim.AdamW(torchqat.parameter_groups(model, recipe.train))
    schedule = torchqat.Schedule(model, recipe, len(batches), optimizer)
    for batch in batches:
        with torch.no_grad():
            wanted = forward(original, batch).logits.log_softmax(-1)
        loss = F.kl_div(forward(model, batch).logits.log_softmax(-1), wanted, reduction="batchmean", log_target=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    folder = torchqat.export(model.eval(), tmp_path / "out")
    checked = torchqat.verify(folder, model, engine="transformers", example=batches[0])
    assert checked.ok and checked.layers == layers and checked.agreement.difference < 1e-4, str(checked)
    with torch.no_grad():
        model.get_encoder().register_forward_hook(lambda _, args, found: [found[0].mul_(1.1), found][1])
    assert not torchqat.verify(folder, model, engine="transformers", example=batches[0]).ok


@pytest.mark.parametrize("name", MODELS)
def test_the_command_line_says_what_takes_them(name, capsys, tmp_path, data_folder):
    build(name).save_pretrained(tmp_path / "model")
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    place = tmp_path / "run"
    arguments = [tmp_path / "recipe.yaml", "--model", tmp_path / "model"]
    for command in (["run", "--output", place, "--data", data_folder], ["check"]):
        code, _, err = call(capsys, command[0], *arguments, *command[1:])
        assert code == 2 and said(err, "model.encoder-decoder", path=tmp_path / "model", name=name), err
    assert not place.exists()


def test_a_decoder_that_was_saved_alone_is_a_language_model(tmp_path):
    from torchqat.kinds import find_kind

    torch.manual_seed(0)
    transformers.BartForCausalLM(transformers.BartConfig(**BART)).save_pretrained(tmp_path)
    assert type(find_kind("causal_lm").load(str(tmp_path), "float32")) is transformers.BartForCausalLM
