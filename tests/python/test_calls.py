"""Layers that a model's forward passes by: told before anything is trained or exported."""

import copy

import pytest
import torch
import torch.nn.functional as F
import torchqat
import transformers
from command import call
from conftest import RECIPE
from sentences import matches, said, sentence
from torch import nn
from torchqat.layers.linear import QuantLinear
from torchqat.model.calls import check_called


def prepared(model, match="*", rest=""):
    weight = "{dtype: int2, granularity: channel, grid: full}"
    text = f'version: 1\nlayers:\n  - match: "{match}"\n    weight: {weight}\n{rest}'
    return torchqat.prepare(model, torchqat.make_plan(model, torchqat.parse_recipe(text)))


def called(model, batches):
    return check_called(model, batches, lambda model, batch: model(batch))


class Reader(nn.Module):
    """Multiplies with its layer's weight by itself, as Mamba does, always or only in one mode."""

    def __init__(self, training=True, evaluation=True):
        super().__init__()
        self.proj, self.by_itself = nn.Linear(8, 8), {True: training, False: evaluation}

    def forward(self, x):
        return F.linear(x, self.proj.weight, self.proj.bias) if self.by_itself[self.training] else self.proj(x)


@pytest.mark.parametrize("mode", ["training", "evaluation"])
def test_a_weight_that_is_read_past_its_layer_is_refused(mode):
    model = prepared(nn.Sequential(Reader(mode == "training", mode == "evaluation")))
    with pytest.raises(torchqat.UserError, match=matches("calls.read", parent="Reader (0)", layer="0.proj", mode=mode)):
        called(model, [torch.randn(2, 8)])


def test_calibrate_refuses_it_before_it_solves():
    model = prepared(nn.Sequential(Reader()), rest="initialize: {method: gptq}\n")
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(
        torchqat.UserError, match=matches("calls.read", parent="Reader (0)", layer="0.proj", mode="evaluation")
    ):
        torchqat.calibrate(model, [torch.randn(64, 8)])
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())


class Asks(nn.Module):
    """Wants to know of a weight, not to have it."""

    def __init__(self):
        super().__init__()
        self.proj = nn.Linear(8, 8)

    def forward(self, x):
        return self.proj(x.to(self.proj.weight.dtype).to(self.proj.weight.device))


def test_what_asks_for_the_dtype_of_a_weight_does_not_read_it():
    assert called(prepared(nn.Sequential(Asks())), [torch.randn(2, 8)]) == []


class Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.left = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        return self.used(x)


def test_a_layer_that_is_never_called_is_refused():
    with pytest.raises(torchqat.UserError, match=matches("calls.never", parent="Unused", layer="left")):
        called(prepared(Unused()), [torch.randn(2, 8)])


class Experts(nn.Module):
    """Sends each row to the expert that its first number names."""

    def __init__(self):
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(8, 8) for _ in range(4))

    def forward(self, x):
        chosen, out = x[:, 0].long(), torch.zeros_like(x)
        for index, expert in enumerate(self.experts):
            rows = torch.where(chosen == index)[0]
            if rows.numel():
                out = out.index_add(0, rows, expert(x[rows]))
        return out


def sent_to(*experts):
    x = torch.randn(32, 8)
    x[:, 0] = torch.tensor(experts).repeat(32)[:32].float() + 0.1
    return x


def test_experts_may_wait_for_a_later_batch():
    assert called(prepared(Experts()), [sent_to(0, 1), sent_to(2)]) == ["experts.3"]


def test_an_expert_that_no_batch_reaches_takes_the_range_of_its_neighbours():
    model = prepared(Experts(), rest="    input: {dtype: int8, granularity: tensor}\n")
    found = torchqat.calibrate(model, [sent_to(0, 1, 2)])
    assert len(found.warnings) == 1 and said(found.warnings[0], "calls.lent", name="experts.3", count=3)
    low = min(model.experts[i].input_low.item() for i in range(3))
    high = max(model.experts[i].input_high.item() for i in range(3))
    lent = model.experts[3]
    assert (lent.input_low.item(), lent.input_high.item()) == (low, high)
    x = 100 * torch.randn(4, 8)
    assert not torch.equal(lent.quantized_input(x), x) and lent.input_ready


class Conditioned(nn.Module):
    def __init__(self):
        super().__init__()
        self.main, self.side = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x, condition):
        return self.main(x) + self.side(condition)


def test_an_input_without_a_range_is_not_exported(tmp_path):
    model = prepared(nn.Sequential(nn.Linear(8, 8)), rest="    input: {dtype: int8, granularity: tensor}\n")
    with pytest.raises(torchqat.UserError, match=matches("export.input-without-range", name="0")):
        torchqat.export(model, tmp_path / "out", "safetensors")
    assert not (tmp_path / "out").exists()
    torchqat.calibrate(model, [torch.randn(4, 8)])
    torchqat.export(model, tmp_path / "out", "safetensors")


def test_buffers_and_random_numbers_are_as_they_were():
    model = prepared(nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout(0.5)), match="0")
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    called(model, [torch.randn(4, 8)])
    torch.set_rng_state(state)
    first = torch.rand(1)
    torch.set_rng_state(state)
    called(model, [torch.ones(4, 8)])
    assert torch.equal(torch.rand(1), first) and model.training
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())


class Average(nn.Module):
    """Keeps a running mean by putting a new tensor in the buffer's place."""

    def __init__(self):
        super().__init__()
        self.proj = nn.Linear(8, 8)
        self.register_buffer("mean", torch.zeros(8))

    def forward(self, x):
        y = self.proj(x)
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * y.detach().mean(0)
        return y - self.mean


def test_a_buffer_that_a_forward_replaces_is_as_it_was():
    model = prepared(Average())
    mean = model.mean
    called(model, [torch.randn(4, 8)])
    assert model.mean is mean and not mean.any()


def test_attention_of_torch_reads_its_output_projection():
    """``nn.MultiheadAttention`` hands the weight to a function: such a layer is no layer that can be quantized."""
    with pytest.raises(torchqat.RecipeError, match=matches("plan.uncovered", match="*")) as told:
        prepared(nn.MultiheadAttention(8, 2), "*")
    assert "in_proj_weight" in str(told.value)


def test_the_fused_path_of_an_encoder_is_off():
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, dropout=0.0), 2).eval()
    x = torch.randn(2, 6, 32)
    with torch.no_grad():
        wanted = encoder(x)
        model = prepared(copy.deepcopy(encoder), "layers.*.linear*")
        assert called(model, [x]) == []
        evaluated, trained = model.eval()(x), model.train()(x)
    assert isinstance(model.layers[0].linear1, QuantLinear)
    torch.testing.assert_close(evaluated, trained, rtol=0, atol=1e-5)  # attention has a fused path of its own
    assert (evaluated - wanted).norm() > 0.05 * wanted.norm()


def first_step_of(model, *batches):
    """What a schedule says in its first step after these."""
    said = []
    recipe = torchqat.parse_recipe("version: 1\nlayers: [{match: x, weight: float}]\n")
    schedule = torchqat.Schedule(model, recipe, 10, say=said.append)
    for batch in batches:
        model(batch)
    schedule.step()
    schedule.step()
    return said


def test_the_first_step_of_a_schedule_names_a_layer_that_was_not_called():
    note = sentence("calls.not-yet", when="before the first step", layer="left", parent="Unused")
    assert first_step_of(prepared(Unused()), torch.randn(2, 8)) == [note]
    assert first_step_of(prepared(nn.Sequential(Asks())), torch.randn(2, 8)) == []


def test_layers_in_a_compiled_part_are_not_taken_for_uncalled():
    model = prepared(nn.Sequential(nn.Sequential(nn.Linear(8, 8)), nn.Linear(8, 8)))
    model[0].compile(backend="eager")
    assert first_step_of(model, torch.randn(2, 8)) == []


class Plain(nn.Module):
    """Asks its layer's weight for all but its numbers."""

    def __init__(self):
        super().__init__()
        self.proj = nn.Linear(8, 8)

    def forward(self, x):
        weight = self.proj.weight
        x = x.to(weight).type_as(weight) + weight.new_zeros(1) + torch.zeros_like(weight)[0]
        assert weight.dim() == 2 and len(weight) == weight.size(0) and weight.is_floating_point() and weight.numel()
        return self.proj(x)


def test_what_is_made_like_a_weight_does_not_read_it():
    assert called(prepared(nn.Sequential(Plain())), [torch.randn(2, 8)]) == []


def test_a_model_that_cannot_be_trained_on_the_batch_is_seen_in_evaluation():
    model = prepared(nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8)), match="0")
    assert called(model, [torch.randn(1, 8)]) == [] and model.training


class TwoTasks(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.other = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        return self.one(x) if x[0, 0] > 0 else self.other(x)


def test_a_later_batch_may_be_the_first_that_calls_a_layer():
    batches = torch.utils.data.DataLoader([torch.ones(8), -torch.ones(8)], batch_size=1)
    assert called(prepared(TwoTasks()), batches) == []


def test_a_run_refuses_what_its_model_reads_before_it_trains(tmp_path, tokenizer, data_folder, capsys):
    config = transformers.MambaConfig(vocab_size=400, hidden_size=32, num_hidden_layers=2, state_size=8)
    transformers.MambaForCausalLM(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    text = RECIPE.replace('"model.layers.*"', '"blocks"').replace("group_size: 32", "granularity: channel")
    text = text.replace("schedule:", '  - {match: "*.conv1d", weight: float}\nschedule:')
    (tmp_path / "recipe.yaml").write_text(text)
    places = ["--model", tmp_path / "model", "--data", data_folder, "--output", tmp_path / "run"]
    code, _, err = call(capsys, "train", tmp_path / "recipe.yaml", *places)
    assert code == 2 and said(err, "calls.read", parent="MambaMixer (backbone.layers.0.mixer)"), err
    assert not (tmp_path / "run" / "checkpoints" / "train.pt").exists()


def exported(model, folder):
    """What an export says."""
    said = []
    torchqat.export(model, folder, "safetensors", say=said.append)
    return said


def test_an_export_names_a_layer_that_was_never_called(tmp_path):
    note = sentence("calls.not-yet", when="since prepare", layer="left", parent="Unused")
    model = prepared(Unused())
    assert exported(model, tmp_path / "not run") == []
    model(torch.randn(2, 8))
    assert exported(copy.deepcopy(model), tmp_path / "run") == [note]
