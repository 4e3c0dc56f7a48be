"""The schedule in TRL's ``SFTTrainer``."""

import datasets
import torchqat
from conftest import RECIPE, TEXT
from torchqat.layers.prepared import quant_layers
from trl import SFTConfig, SFTTrainer


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
