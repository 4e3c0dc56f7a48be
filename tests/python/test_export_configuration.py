"""Configurations and tokenizers beside the tensors: written as the model has them, or refused in a sentence."""

import pytest
import torchqat
import transformers
from sentences import matches
from torchqat.checkpoints.export import check_exports

RECIPE = "version: 1\nlayers: [{match: 'model.layers.*', weight: {dtype: int4}}]\n"


@pytest.fixture
def prepared(tiny_llama):
    return torchqat.prepare(tiny_llama, torchqat.parse_recipe(RECIPE, "recipe"))


@pytest.mark.filterwarnings("ignore:generation_config.json is written")
def test_settings_of_generation_that_transformers_does_not_write_are_kept(prepared, tmp_path):
    """A chat model's temperature without sampling, once a trainer has set the id of padding."""
    prepared.generation_config.temperature, prepared.generation_config.pad_token_id = 0.9, 3
    with pytest.raises(ValueError, match="temperature"):
        prepared.generation_config.save_pretrained(tmp_path / "by-transformers")
    torchqat.export(prepared, tmp_path / "out")
    found = transformers.GenerationConfig.from_pretrained(tmp_path / "out")
    assert (found.temperature, found.pad_token_id) == (0.9, 3)


def test_a_configuration_that_cannot_be_written_is_refused_before_training(tiny_llama, tmp_path):
    tiny_llama.config.mine = object()
    recipe = torchqat.parse_recipe(RECIPE, "recipe")
    with pytest.raises(torchqat.UserError, match=matches("export.configuration")):
        check_exports(tiny_llama, torchqat.make_plan(tiny_llama, recipe), ["compressed-tensors"], True)
    with pytest.raises(torchqat.UserError, match=matches("export.configuration")):
        torchqat.export(torchqat.prepare(tiny_llama, recipe), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_that_cannot_be_written_is_refused(prepared, tmp_path):
    class Tokenizer:
        def save_pretrained(self, _folder):
            raise RuntimeError("no vocabulary")

    with pytest.raises(torchqat.UserError, match=matches("export.tokenizer", why="no vocabulary")):
        torchqat.export(prepared, tmp_path / "out", tokenizer=Tokenizer())
