"""The schedule in TRL's ``SFTTrainer``."""

import datasets
import peft
import pytest
import torch
import torchqat
from conftest import RECIPE, TEXT
from sentences import matches
from torchqat.layers.prepared import quant_layers
from trl import SFTConfig, SFTTrainer


@pytest.mark.shows(trainer="TRL's SFT", feature="widths follow the steps")
def test_widths_follow_its_steps(tiny_llama, tokenizer, tmp_path):
    recipe = torchqat.parse_recipe(RECIPE, "recipe")
    model = torchqat.prepare(tiny_llama, recipe)
    callback, seen = torchqat.TrainerCallback(recipe), []
    tokenizer.pad_token = tokenizer.eos_token
    settings = SFTConfig(
        str(tmp_path), max_steps=8, per_device_train_batch_size=2, max_length=32, report_to=[], logging_steps=1,
        save_strategy="no", use_cpu=True, learning_rate=1e-3,
    )  # fmt: skip

    class Watch(SFTTrainer):
        def training_step(self, model, *args, **kwargs):
            seen.append(quant_layers(model)[0][1].weight_bits)
            return super().training_step(model, *args, **kwargs)

    data = datasets.Dataset.from_dict({"text": TEXT})
    trainer = Watch(model, args=settings, train_dataset=data, processing_class=tokenizer)
    callback.add_to(trainer)
    trainer.train()
    assert seen == [8, 8, 6, 6, 4, 4, 4, 4]
    assert any("qat/weight_bits" in line for line in trainer.state.log_history)
    assert torchqat.convert(model)[0].weight.bits == 4


def with_peft(model, recipe, tokenizer, folder, late=False, **options):
    """An ``SFTTrainer`` that is told of adapters, and adds them itself."""
    tokenizer.pad_token = tokenizer.eos_token
    settings = SFTConfig(
        str(folder), max_steps=4, per_device_train_batch_size=2, max_length=32, report_to=[], logging_steps=1,
        save_strategy="no", use_cpu=True, learning_rate=1e-3,
    )  # fmt: skip
    callback = torchqat.TrainerCallback(recipe)
    trainer = SFTTrainer(
        model, args=settings, train_dataset=datasets.Dataset.from_dict({"text": TEXT}), processing_class=tokenizer,
        peft_config=peft.LoraConfig(r=2, target_modules=["q_proj", "up_proj"], **options),
        callbacks=[] if late else [callback],
    )  # fmt: skip
    if late:
        callback.add_to(trainer)
    return trainer


@pytest.mark.shows(trainer="TRL's SFT", feature="adapters of peft that the trainer adds")
@pytest.mark.parametrize("late", [False, True])
def test_adapters_that_it_adds_act_before_weights_are_rounded(late, tiny_llama, tokenizer, tmp_path):
    recipe = torchqat.parse_recipe(RECIPE, "recipe")
    model = torchqat.prepare(tiny_llama, recipe)
    before = model.model.layers[0].self_attn.q_proj.weight_scale.detach().clone()
    trainer = with_peft(model, recipe, tokenizer, tmp_path, late)
    trainer.train()
    layer = trainer.model.base_model.model.model.layers[0].self_attn.q_proj.base_layer
    assert layer.adapter is not None and layer.weight_scale.requires_grad
    assert not torch.equal(layer.weight_scale, before)
    ids = torch.arange(8)[None]
    with torch.autocast("cpu", torch.bfloat16):  # as the trainer runs it
        logits = trainer.model.eval()(input_ids=ids).logits
        merged = trainer.model.merge_and_unload()
        assert torch.equal(merged(input_ids=ids).logits.float(), logits.float())
    assert torchqat.verify(torchqat.export(merged, tmp_path / "out"), merged).ok


@pytest.mark.shows(trainer="TRL's SFT", feature="adapters that cannot be merged", refused=True)
def test_adapters_that_cannot_be_merged_are_refused_before_training(tiny_llama, tokenizer, tmp_path):
    recipe = torchqat.parse_recipe(RECIPE, "recipe")
    model = torchqat.prepare(tiny_llama, recipe)
    with pytest.raises(torchqat.UserError, match=matches("training.adapters-with-more")):
        with_peft(model, recipe, tokenizer, tmp_path, lora_dropout=0.1)


@pytest.mark.parametrize("late", [False, True])
def test_rollouts_in_an_engine_that_is_handed_float_weights_are_refused(late, tiny_llama, tokenizer, tmp_path):
    recipe = torchqat.parse_recipe(RECIPE, "recipe")
    model = torchqat.prepare(tiny_llama, recipe)
    tokenizer.pad_token = tokenizer.eos_token
    settings = SFTConfig(str(tmp_path), max_steps=1, report_to=[], save_strategy="no", use_cpu=True)
    settings.use_vllm = True  # as TRL's GRPOConfig has it, whose trainer wants the engine itself
    data = datasets.Dataset.from_dict({"text": TEXT})
    callback = torchqat.TrainerCallback(recipe)
    with pytest.raises(torchqat.UserError, match=matches("training.rollouts-in-float")):
        trainer = SFTTrainer(
            model, args=settings, train_dataset=data, processing_class=tokenizer, callbacks=[] if late else [callback]
        )
        callback.add_to(trainer)
