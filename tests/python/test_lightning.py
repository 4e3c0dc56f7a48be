"""The schedule in Lightning's Trainer: stepped once an optimizer step, logged, and resumed from its checkpoints."""

import lightning.pytorch as pl
import pytest
import torch
import torchqat
from sentences import said
from torch import nn
from torchqat.layers.prepared import quant_layers
from trainers import HaltAt

RECIPE = """version: 1
layers:
  - match: "*"
    weight: {dtype: int4, group_size: 32, grid: full, scale: learned}
schedule:
  - {until: 50%, weight: int8}
  - {until: 100%, weight: int4}
"""


class Module(pl.LightningModule):
    def __init__(self, recipe=None):
        super().__init__()
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4))
        self.net = torchqat.prepare(net, recipe or torchqat.parse_recipe(RECIPE, "recipe"))
        self.widths: list[int] = []

    def training_step(self, batch, index):
        self.widths.append(quant_layers(self)[0][1].weight_bits)
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


@pytest.fixture
def loader():
    torch.manual_seed(1)
    data = torch.utils.data.TensorDataset(torch.randn(16, 64), torch.randint(4, (16,)))
    return torch.utils.data.DataLoader(data, batch_size=4)


def trainer(tmp_path, steps=8, **options):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    return pl.Trainer(max_steps=steps, max_epochs=-1, default_root_dir=tmp_path, **{**quiet, **options})


@pytest.mark.shows(trainer="Lightning", feature="widths follow the steps")
def test_widths_follow_the_steps_and_are_logged(tmp_path, loader):
    module, callback = Module(), torchqat.LightningCallback(torchqat.parse_recipe(RECIPE, "recipe"))
    fit = trainer(tmp_path, callbacks=[callback], enable_checkpointing=False)
    fit.fit(module, loader)
    assert module.widths == [8] * 4 + [4] * 4
    assert callback.schedule.current_step == 8
    assert fit.callback_metrics["qat/weight_bits"] == 4.0
    assert {"qat/clipped_share", "qat/oscillating_share"} <= set(fit.callback_metrics)
    assert torchqat.convert(module)[0].weight.bits == 4


def test_inputs_alone_can_be_quantized(tmp_path, loader):
    text = 'version: 1\nlayers: [{match: "*", input: {dtype: int8, granularity: token}}]\n'
    recipe = torchqat.parse_recipe(text, "recipe")
    module, callback = Module(recipe), torchqat.LightningCallback(recipe)
    fit = trainer(tmp_path, callbacks=[callback], enable_checkpointing=False)
    fit.fit(module, loader)
    assert callback.schedule.current_step == 8 and fit.callback_metrics["qat/weight_bits"] == 0.0


def test_micro_batches_are_not_steps(tmp_path, loader):
    module, callback = Module(), torchqat.LightningCallback(torchqat.parse_recipe(RECIPE, "recipe"))
    trainer(tmp_path, 4, callbacks=[callback], accumulate_grad_batches=2, enable_checkpointing=False).fit(
        module, loader
    )
    assert module.widths == [8] * 4 + [4] * 4 and callback.schedule.current_step == 4


def test_a_resumed_fit_ends_as_one_that_was_not_stopped(tmp_path, loader):
    def fit(module, stop=8, path=None):
        callback = torchqat.LightningCallback(torchqat.parse_recipe(RECIPE, "recipe"))
        saves = pl.callbacks.ModelCheckpoint(tmp_path, filename="at-{step}", every_n_train_steps=4, save_top_k=-1)
        halt = HaltAt(stop)
        trainer(tmp_path, 8, callbacks=[callback, saves, halt]).fit(module, loader, ckpt_path=path, weights_only=False)
        return module

    whole = fit(Module())
    fit(Module(), stop=4)
    resumed = fit(Module(), path=tmp_path / "at-step=4.ckpt")
    assert resumed.widths == [4] * 4
    for (name, a), (_, b) in zip(whole.state_dict().items(), resumed.state_dict().items(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.shows(trainer="Lightning", feature="what is watched at wider widths is said")
def test_a_best_checkpoint_may_be_of_a_wider_stage_is_said(tmp_path, loader, caplog):
    saves = pl.callbacks.ModelCheckpoint(tmp_path, monitor="qat/clipped_share", every_n_train_steps=4)
    callback = torchqat.LightningCallback(torchqat.parse_recipe(RECIPE, "recipe"))
    with caplog.at_level("WARNING", "torchqat"):
        trainer(tmp_path, 8, callbacks=[callback, saves]).fit(Module(), loader)
    assert said(caplog.text, "training.watched-at-wider", monitor="qat/clipped_share")
