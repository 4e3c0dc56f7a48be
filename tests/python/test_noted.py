"""What ``prepare`` promised is kept, or told, by the steps after it, given the model or one around it."""

import copy

import pytest
import torch
import torchqat
import transformers
from sentences import matches, said, sentence
from torch import nn
from torch.nn.utils import prune
from torchqat.layers.linear import QuantLinear

WEIGHT = "{dtype: int4, group_size: 8, scale: mse}"


def recipe(method="gptq", match="*"):
    return torchqat.parse_recipe(
        f'version: 1\nlayers:\n  - match: "{match}"\n    weight: {WEIGHT}\ninitialize: {{method: {method}}}\n'
    )


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 8))


class Around(nn.Module):
    """As a trainer's module: it holds the model, and calls it with what it makes of a batch."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, batch):
        return self.model(2.0 * batch["x"])


BATCH = {"batch": {"x": torch.randn(64, 16, generator=torch.Generator().manual_seed(0))}}


# -- calibrate -------------------------------------------------------------------------------------------------------


def test_a_model_in_another_is_rounded_by_its_recipe():
    alone, around = torchqat.prepare(net(), recipe()), Around(torchqat.prepare(net(), recipe()))
    torchqat.calibrate(alone, [2.0 * BATCH["batch"]["x"]])
    losses = torchqat.calibrate(around, [BATCH]).losses
    assert set(losses) == {"model.0", "model.2"}
    assert all(torch.equal(a, b) for a, b in zip(alone.parameters(), around.parameters(), strict=True))


def test_models_that_were_prepared_one_by_one_are_calibrated_one_by_one():
    both = nn.Sequential(net(), nn.Linear(8, 16), net())
    torchqat.prepare(both[0], recipe())
    torchqat.prepare(both[2], recipe("awq+gptq"))
    with pytest.raises(torchqat.UserError, match=matches("noted.several", names="0 and 2")):
        torchqat.calibrate(both, [BATCH["batch"]["x"]])
    found = torchqat.calibrate(both[2], [BATCH["batch"]["x"]], forward=lambda _, batch: both(batch))
    assert set(found.losses) == {"0", "2"}


def test_models_that_were_prepared_one_by_one_share_a_search_for_ranges():
    both = nn.Sequential(net(), nn.Linear(8, 16), net())
    rule = "match: '*', weight: {dtype: int8}, input: {dtype: int8, granularity: tensor}"
    for part in (both[0], both[2]):
        torchqat.prepare(part, torchqat.parse_recipe(f"version: 1\nlayers: [{{{rule}}}]\n"))
    assert set(torchqat.calibrate(both, [BATCH["batch"]["x"]]).ranges) == {"0.0", "0.2", "2.0", "2.2"}


def test_a_part_of_a_model_is_refused():
    model = Around(net())
    torchqat.prepare(model, recipe())
    with pytest.raises(torchqat.UserError, match=matches("noted.part", type="Sequential")):
        torchqat.calibrate(model.model, [BATCH["batch"]["x"]])


# -- calibrate was left out ------------------------------------------------------------------------------------------


def first_step(model, caplog):
    schedule = torchqat.Schedule(model, recipe(), total_steps=4)
    model(BATCH["batch"]["x"])
    schedule.step()
    schedule.step()
    return [record.getMessage() for record in caplog.records if said(record.getMessage(), "noted.uncalibrated")]


def test_a_method_that_was_left_out_is_told_with_the_first_step(caplog):
    assert first_step(torchqat.prepare(net(), recipe()), caplog) == [sentence("noted.uncalibrated", method="gptq")]


def test_a_method_that_was_left_out_is_told_by_export(caplog, tmp_path):
    torchqat.export(torchqat.prepare(net(), recipe("awq+mse")), tmp_path / "out", format="safetensors")
    assert said(caplog.text, "noted.uncalibrated", method="awq+mse")


def calibrated():
    model = torchqat.prepare(net(), recipe())
    torchqat.calibrate(model, [BATCH["batch"]["x"]])
    return model


def loaded():
    model = torchqat.prepare(net(), recipe())
    model.load_state_dict(calibrated().state_dict())
    return model


@pytest.mark.parametrize(
    "make", [calibrated, lambda: copy.deepcopy(calibrated()), loaded, lambda: torchqat.prepare(net(), recipe("mse"))]
)
def test_nothing_is_told_where_nothing_was_left_out(make, caplog, tmp_path):
    model = make()
    assert first_step(model, caplog) == []
    torchqat.export(model, tmp_path / "out", format="safetensors")
    assert caplog.text == ""


def test_weights_in_floating_point_are_no_calibration(caplog):
    model = torchqat.prepare(net(), recipe())
    model.load_state_dict(net().state_dict())
    assert len(first_step(model, caplog)) == 1


# -- layers that are there no more -----------------------------------------------------------------------------------


def replaced():
    model = Around(torchqat.prepare(net(), recipe("mse")))
    model.model[2] = nn.Linear(16, 8)
    return model


def test_a_layer_that_was_replaced_is_told_before_training_and_before_export(tmp_path):
    told = matches("noted.replaced", layer="model.2", type="Linear")
    with pytest.raises(torchqat.UserError, match=told):
        torchqat.Schedule(replaced(), recipe("mse"), total_steps=4)
    with pytest.raises(torchqat.UserError, match=told):
        torchqat.export(replaced(), tmp_path / "out", format="safetensors")
    with pytest.raises(torchqat.UserError, match=told):
        torchqat.live_weights(replaced(), "safetensors")


def used(model, tmp_path):
    """What follows ``prepare``, each by itself."""
    x = torch.zeros(1, 2, dtype=torch.long) if hasattr(model, "config") else torch.randn(2, 16)
    return [
        lambda: torchqat.calibrate(model, [x]),
        lambda: torchqat.Schedule(model, recipe("mse"), 4),
        lambda: torchqat.export(model, tmp_path / "out", format="safetensors"),
        lambda: torchqat.live_weights(model, "safetensors"),
    ]


@pytest.mark.parametrize("scale", ["mse", "learned", "minmax"])
@pytest.mark.parametrize("tied", [True, False])
def test_a_table_that_transformers_resized_is_told(tied, scale, tmp_path):
    """Its scales are those of the tokens that it had."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=64, **sizes, tie_word_embeddings=tied))
    names = ["model.embed_tokens", "lm_head"] if tied else ["model.embed_tokens"]
    rules = [f"  - {{match: {name}, weight: {{dtype: int8, granularity: channel, scale: {scale}}}}}" for name in names]
    torchqat.prepare(model, torchqat.parse_recipe("\n".join(["version: 1", "layers:", *rules]), "recipe"))
    model.resize_token_embeddings(72, mean_resizing=False)
    told = matches("noted.reshaped", layer="model.embed_tokens", before=[64, 32], now=[72, 32])
    for use in used(model, tmp_path):
        with pytest.raises(torchqat.UserError, match=told):
            use()


class Doubled(nn.Module):
    def forward(self, weight):
        return 2.0 * weight


@pytest.mark.parametrize(
    "add",
    [
        lambda layer: nn.utils.parametrize.register_parametrization(layer, "weight", Doubled()),
        nn.utils.parametrizations.spectral_norm,
        nn.utils.spectral_norm,
        lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
    ],
)
def test_a_weight_that_is_computed_after_prepare_is_told(add, tmp_path):
    """What it is computed from would be written beside it."""
    model = torchqat.prepare(net(), recipe("mse"))
    add(model[0])
    for use in used(model, tmp_path):
        with pytest.raises(torchqat.UserError, match=matches("noted.computed", leaf="weight", layer="0")):
            use()


@pytest.mark.parametrize("place, leaf", [("0", "bias"), ("2", "weight")])
def test_what_else_is_computed_after_prepare_is_told(place, leaf, tmp_path):
    """A loader of the model would find no such tensor, and begin with one of its own."""
    model = torchqat.prepare(nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.LayerNorm(16)), recipe("mse", "0"))
    nn.utils.parametrize.register_parametrization(model[int(place)], leaf, Doubled())
    for use in used(model, tmp_path):
        with pytest.raises(torchqat.UserError, match=matches("noted.computed", leaf=leaf, layer=place)):
            use()


def test_what_was_computed_before_prepare_is_as_it_was(tmp_path):
    model = nn.Sequential(nn.Linear(16, 16), nn.utils.parametrizations.weight_norm(nn.Linear(16, 8)))
    model[1].register_parameter("bias_orig", nn.Parameter(torch.ones(8)))
    model = torchqat.prepare(model, recipe("mse", "0"))
    folder = torchqat.export(model, tmp_path / "out", format="safetensors")
    assert torchqat.verify(folder, model, engine="reader").ok


def test_what_was_computed_stays_where_it_is_removed(tmp_path):
    model = torchqat.prepare(net(), recipe("mse"))
    before = model[0].weight.detach().clone()
    nn.utils.parametrize.register_parametrization(model[0], "weight", Doubled())
    nn.utils.parametrize.remove_parametrizations(model[0], "weight")
    assert torch.equal(model[0].weight, 2.0 * before)
    folder = torchqat.export(model, tmp_path / "out", format="safetensors")
    assert torchqat.verify(folder, model, engine="reader").ok


def test_a_head_that_transformers_resized_is_told(tiny_llama, tmp_path):
    model = copy.deepcopy(tiny_llama)
    model.config.tie_word_embeddings = False
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    torchqat.prepare(model, recipe("mse", "lm_head"))
    model.resize_token_embeddings(model.config.vocab_size + 8, mean_resizing=False)
    with pytest.raises(torchqat.UserError, match=matches("noted.replaced", layer="lm_head", type="Linear")):
        torchqat.export(model, tmp_path / "out")


def test_layers_that_were_taken_out_or_packed_are_no_matter(tmp_path):
    model = torchqat.prepare(net(), recipe("mse"))
    del model[2]
    torchqat.export(model, tmp_path / "out", format="safetensors")
    assert isinstance(model[0], QuantLinear)


# -- ranges ----------------------------------------------------------------------------------------------------------


def static(input):
    layers = f"layers: [{{match: '*', weight: {{dtype: int8}}, input: {{dtype: int8, granularity: tensor{input}}}}}]"
    return torchqat.parse_recipe(f"version: 1\n{layers}\n", "recipe")


def stepped(of, calibrates):
    model, heard = torchqat.prepare(net(), of), []
    if calibrates:
        torchqat.calibrate(model, [torch.randn(4, 16)])
    schedule = torchqat.Schedule(model, of, 4, say=heard.append)
    for _ in range(2):
        model(torch.randn(4, 16)).sum().backward()
        schedule.step()
    return model, heard


@pytest.mark.parametrize("input", (", scale: mse", ", scale: learned"))
def test_inputs_that_nothing_calibrated_are_told_in_the_first_step(tmp_path, input):
    model, heard = stepped(static(input), calibrates=False)
    assert heard == [sentence("noted.rangeless", what="the input of 0 and 1 more")]
    with pytest.raises(torchqat.UserError, match="must have a range"):
        torchqat.export(model, tmp_path / "out", "safetensors")
    assert stepped(static(input), calibrates=True)[1] == []


def test_inputs_whose_range_follows_find_it_in_training():
    for input in ("", ", observer: moving_average"):
        assert stepped(static(input), calibrates=False)[1] == []


def test_caches_that_nothing_calibrated_are_told(tiny_llama):
    layers = "layers: [{match: 'model.layers.*', weight: {dtype: int8}}]"
    of = torchqat.parse_recipe(f"version: 1\n{layers}\nkv_cache: {{dtype: fp8_e4m3}}\n", "recipe")
    for calibrates in (False, True):
        model, heard = torchqat.prepare(copy.deepcopy(tiny_llama), of), []
        if calibrates:
            torchqat.calibrate(model, [torch.arange(8).view(1, 8)])
        schedule = torchqat.Schedule(model, of, 4, say=heard.append)
        model(torch.arange(8).view(1, 8)).logits.sum().backward()
        schedule.step()
        rangeless = sentence("noted.rangeless", what="the cache of model.layers.0.self_attn and 1 more")
        assert heard == ([] if calibrates else [rangeless])
