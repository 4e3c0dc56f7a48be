"""Each trainer, on a schedule that changes widths: what docs/trainers.md says of it (tools/trainer_table.py)."""

import logging

import peft
import pytest
import torch
import torchqat
import trainers
import transformers
from sentences import matches, said
from torch import nn
from torchqat.layers.prepared import quant_layers
from torchqat.training.trainable import check_trainable
from trainers import LADDER, STEPS, TRAINERS, adamw, arguments, batch, loaded, prepared, recipe, rows

EACH = [pytest.param(name, marks=pytest.mark.shows(trainer=name)) for name in TRAINERS]


def shows(feature, *trainers, refused=False):
    marks = [pytest.mark.shows(feature=feature, trainer=trainer, refused=refused) for trainer in trainers]

    def mark(test):
        for one in marks:
            test = one(test)
        return test

    return mark


@pytest.mark.shows(feature="widths follow the steps")
@pytest.mark.shows(feature="resumed, ends with the same bits")
@pytest.mark.parametrize("scale", ["learned", "mse"])
@pytest.mark.parametrize("trainer", EACH)
def test_a_resumed_training_ends_as_one_that_was_not_stopped(trainer, scale, tmp_path):
    train, of = TRAINERS[trainer], recipe(scale)
    whole = train(tmp_path / "whole", False, of)
    assert {layer.weight_bits for _, layer in quant_layers(whole)} == {4}
    resumed = train(tmp_path / "resumed", True, of)
    assert int(next(value for name, value in whole.state_dict().items() if name.endswith("qat_step"))) == STEPS
    for (name, a), (_, b) in zip(whole.state_dict().items(), resumed.state_dict().items(), strict=True):
        assert torch.equal(a, b), name


# -- scales -----------------------------------------------------------------------------------------------------------


def changes(model, before):
    """What learned scales of weights are by now times what they were."""
    return torch.cat([(layer.weight_scale / before[name]).flatten() for name, layer in quant_layers(model)])


def test_scales_of_parameter_groups_keep_their_sign_and_do_not_decay(tmp_path, caplog):
    of = recipe(ladder="train: {learning_rate: 2.0e-4, weight_decay: 0.1}\n")
    model = prepared(of)
    before = {name: layer.weight_scale.detach().clone() for name, layer in quant_layers(model)}
    optimizer = adamw(model, of)
    settings = arguments(tmp_path, max_steps=30, save_strategy="no")
    callbacks = [torchqat.TrainerCallback(of)]
    transformers.Trainer(
        model, settings, train_dataset=rows(), callbacks=callbacks, optimizers=(optimizer, None)
    ).train()
    moved = changes(model, before)
    assert moved.min() > 0.9 and moved.max() < 1.1
    decays = [group["weight_decay"] for group in optimizer.param_groups if group["relative"]]
    assert decays and not any(decays)
    assert not said(caplog.text, "training.scales-in-ordinary-groups")


def among_weights(model, of):
    return torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)


def by_hand(model, of):
    """The same, in groups."""
    trains = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    weights = [p for name, p in trains if not name.endswith("scale")]
    scales = [p for name, p in trains if name.endswith("scale")]
    rate = {"lr": of.train.scale_learning_rate, "weight_decay": 0.0, "relative": True}
    return torch.optim.AdamW(
        [{"params": weights, "weight_decay": 0.1, "relative": False}, *({"params": [p], **rate} for p in scales)], lr=1e-2
    )  # fmt: skip


@pytest.mark.shows(feature="learned scales at a rate of their own, in any optimizer")
@pytest.mark.parametrize("trainer", EACH)
def test_scales_among_weights_move_as_in_groups_of_their_own(trainer, tmp_path, monkeypatch, caplog):
    of, train = recipe(), TRAINERS[trainer]
    monkeypatch.setattr(trainers, "adamw", by_hand)
    expected = train(tmp_path / "groups", False, of).state_dict()
    assert not said(caplog.text, "training.scales-in-ordinary-groups")
    monkeypatch.setattr(trainers, "adamw", among_weights)
    for interrupted in (False, True):
        with caplog.at_level(logging.WARNING, "torchqat"):
            found = train(tmp_path / str(interrupted), interrupted, of).state_dict()
        assert said(caplog.text, "training.scales-in-ordinary-groups", optimizer="AdamW")
        for name, value in expected.items():
            assert torch.equal(found[name], value), name


def test_the_trainers_own_optimizer_leaves_scales_their_sign(tmp_path):
    of = recipe(ladder="")
    model = prepared(of)
    before = {name: layer.weight_scale.detach().clone() for name, layer in quant_layers(model)}
    settings = arguments(tmp_path, max_steps=30, save_strategy="no", learning_rate=5e-3, weight_decay=0.1)
    transformers.Trainer(model, settings, train_dataset=rows(), callbacks=[torchqat.TrainerCallback(of)]).train()
    moved = changes(model, before)
    assert moved.min() > 0.9 and moved.max() < 1.1


# -- the best checkpoint ----------------------------------------------------------------------------------------------


class Getting(nn.Module):
    """Worse with every step, and much worse with fewer bits: the first checkpoints would be the best."""

    def __init__(self, of):
        super().__init__()
        self.net = torchqat.prepare(nn.Sequential(nn.Linear(64, 8)), of)
        self.calls = 0

    def forward(self, x, labels=None):
        bits = quant_layers(self.net)[0][1].weight_bits
        self.calls += not self.training
        return {"loss": self.net(x).square().mean() * 0 + 10 - bits + self.calls / 100, "logits": x}


@shows("the best checkpoint has the exported widths", "transformers' Trainer")
@pytest.mark.parametrize("stops", [False, True])
def test_the_best_checkpoint_is_of_the_exported_widths(stops, tmp_path, caplog):
    of = recipe("mse", LADDER.replace("int4", "int2"), PLAIN.replace("int4", "int2"))
    model = Getting(of)
    early = transformers.EarlyStoppingCallback(early_stopping_patience=2)
    settings = arguments(
        tmp_path, max_steps=10, eval_steps=1, eval_strategy="steps", load_best_model_at_end=True,
        metric_for_best_model="eval_loss", greater_is_better=False, remove_unused_columns=False,
    )  # fmt: skip
    data = [{"x": torch.randn(64), "labels": torch.tensor(0)} for _ in range(8)]
    trainer = transformers.Trainer(
        model, settings, train_dataset=data, eval_dataset=data,
        callbacks=[*([early] if stops else []), torchqat.TrainerCallback(of)],
    )  # fmt: skip
    with caplog.at_level(logging.WARNING, "torchqat"):
        trainer.train()
    assert said(caplog.text, "training.wider-is-no-best", metric="eval_loss")
    assert trainer.state.best_global_step == 5  # the first at 2 bits
    assert trainer.state.global_step == (7 if stops else 10)
    assert torchqat.convert(model)[0].weight.bits == 2
    assert int(model.net.qat_step) == 10


@pytest.mark.shows(feature="a checkpoint of a wider stage is not exported")
@pytest.mark.parametrize("trainer", EACH)
def test_a_checkpoint_of_a_wider_stage_is_not_exported(trainer, tmp_path):
    of = recipe(ladder=LADDER.replace("50%", "75%"))  # wider where the trainer is interrupted
    TRAINERS[trainer](tmp_path / "kept", True, of)
    model = loaded(trainer, tmp_path / "kept", of)
    assert {layer.weight_bits for _, layer in quant_layers(model)} == {8}
    with pytest.raises(torchqat.UserError, match=matches("export.not-at-exported-width", dtype="int4", width="int8")):
        torchqat.export(model, tmp_path / "out", "safetensors")
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_of_a_wider_stage_runs_as_it_was_trained():
    model = prepared()
    torchqat.Schedule(model, recipe(), STEPS)
    fresh = prepared()
    fresh.load_state_dict(model.state_dict())
    ids = batch(0)
    assert torch.equal(fresh(input_ids=ids).logits, model(input_ids=ids).logits)


# -- what other libraries make of a model -----------------------------------------------------------------------------


@shows("parameters of another shape outside of the forward", "DeepSpeed ZeRO-3", refused=True)
def test_partitioned_parameters_are_refused():
    model = prepared()
    layer = model.model.layers[0].self_attn.q_proj
    whole = layer.weight.data
    layer.weight.data = torch.empty(0)  # as ZeRO-3 leaves it
    name = "model.layers.0.self_attn.q_proj"
    with pytest.raises(torchqat.UserError, match=matches("training.taken-apart", layer=name)):
        torchqat.Schedule(model, recipe(), STEPS)
    layer.weight.data, layer.weight.ds_id = whole, 0
    with pytest.raises(torchqat.UserError, match=matches("training.taken-apart", layer=name)):
        torchqat.Schedule(model, recipe(), STEPS)


@shows("parameters of another shape outside of the forward", "FSDP1", refused=True)
def test_flattened_parameters_are_refused(tmp_path):
    import torch.distributed as dist
    from torch.distributed.fsdp import FullyShardedDataParallel

    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        for original in (False, True):
            model = FullyShardedDataParallel(
                torchqat.prepare(nn.Sequential(nn.Linear(32, 8)), recipe("mse", rules=PLAIN)),
                use_orig_params=original, device_id=torch.device("cpu"),
            )  # fmt: skip
            with pytest.raises(torchqat.UserError, match=matches("training.taken-apart")):
                check_trainable(model)
    finally:
        dist.destroy_process_group()


PLAIN = '  - match: "*"\n    weight: {dtype: int4, group_size: 16, scale: SCALE}\n'


@shows("adapters of peft that the trainer adds", "transformers' Trainer")
def test_adapters_beside_rounded_weights_are_attached_by_the_callback_and_refused_elsewhere(tmp_path):
    of = recipe()
    model = peft.get_peft_model(prepared(of), peft.LoraConfig(r=2, target_modules=["q_proj"]))
    layer = "base_model.model.model.layers.0.self_attn.q_proj"
    with pytest.raises(torchqat.UserError, match=matches("training.adapters-beside", layer=layer)):
        torchqat.Schedule(model, of, STEPS)
    callbacks = [torchqat.TrainerCallback(of)]
    trainer = transformers.Trainer(
        model, arguments(tmp_path, save_strategy="no"), train_dataset=rows(), callbacks=callbacks
    )
    trainer.train()
    ids = batch(0)
    before = model(input_ids=ids).logits
    merged = model.merge_and_unload()
    assert torch.equal(merged(input_ids=ids).logits, before)
    assert torchqat.verify(torchqat.export(merged, tmp_path / "out", "safetensors"), merged, engine="reader").ok


@shows("casts of weights before they are rounded are refused", "Accelerate")
def test_mixed_precision_of_fsdp2_is_refused(tmp_path):
    """As Accelerate asks for it with fsdp_version 2 and mixed_precision bf16."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        mesh, of = init_device_mesh("cpu", (1,)), recipe("mse", rules=PLAIN)

        def scheduled(policy):
            model = torchqat.prepare(nn.Sequential(nn.Linear(32, 8)), of)
            fully_shard(model, mesh=mesh, mp_policy=policy)
            return torchqat.Schedule(model, of, STEPS)

        scheduled(MixedPrecisionPolicy())
        with pytest.raises(torchqat.UserError, match=matches("training.gathered-in-another-dtype", found="bfloat16")):
            scheduled(MixedPrecisionPolicy(param_dtype=torch.bfloat16))
    finally:
        dist.destroy_process_group()
