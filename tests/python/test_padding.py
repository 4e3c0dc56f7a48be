"""What fills rows up reaches no Hessian, no range and no observer, whoever runs the model."""

import copy

import peft
import pytest
import torch
import torchqat
from sentences import matches
from torchqat import UserError
from torchqat.layers.prepared import quant_layers
from torchqat.ptq.unpadded import unpadded

INT3 = "{dtype: int3, granularity: channel, grid: full, scale: mse}"
STATIC = "{dtype: int8, granularity: tensor, dynamic: false, observer: %s}"


def llama(**options):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"vocab_size": 100, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    return LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2, **options)).eval()


def mixtral():
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    sizes = {"vocab_size": 100, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2}
    return MixtralForCausalLM(MixtralConfig(**sizes, **heads)).eval()


def batches(side="right", rows=4, count=4, length=32):
    """Padded batches, and the same texts each by itself."""
    generator, padded, bare = torch.Generator().manual_seed(2), [], []
    for _ in range(count):
        sizes = torch.randint(4, 12, (rows,), generator=generator).tolist()
        sizes = sorted(sizes, key=sizes.index)  # those of one size together, as experts see tokens in their order
        texts = [torch.randint(1, 100, (size,), generator=generator) for size in sizes]
        bare += [{"input_ids": text[None], "attention_mask": torch.ones_like(text[None])} for text in texts]
        ids, mask = torch.zeros(rows, length, dtype=torch.long), torch.zeros(rows, length, dtype=torch.long)
        for row, text in enumerate(texts):
            place = slice(0, len(text)) if side == "right" else slice(length - len(text), length)
            ids[row, place], mask[row, place] = text, 1
        padded.append({"input_ids": ids, "attention_mask": mask})
    return padded, bare


def recipe(layers, initialize=""):
    text = f"version: 1\nlayers: [{{match: blocks, {layers}}}]\n{initialize}"
    return torchqat.parse_recipe(text, "recipe")


def calibrated(model, text, data):
    prepared = torchqat.prepare(copy.deepcopy(model), text)
    return prepared, torchqat.calibrate(prepared, data, lambda model, batch: model(**batch, use_cache=False))


def same_codes(one, other):
    pairs = zip(quant_layers(one), quant_layers(other), strict=True)
    return sum((a.codes() != b.codes()).sum().item() for (_, a), (_, b) in pairs)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("make", [llama, mixtral])
@pytest.mark.parametrize("method", ["gptq", "awq", "smoothquant+gptq"])
def test_padding_is_not_calibrated_on(method, make, side):
    """Also of experts, which tokens reach one by one; before, 3072 positions were counted where 359 were text."""
    padded, bare = batches(side)
    rounded = "float" if make is mixtral else "{dtype: int8}"  # experts take none
    # Draws of choices go by the order of the rows, which is another one where padding is left out.
    text = recipe(f"weight: {INT3}, input: {rounded}", f"initialize: {{method: {method}, objective: layer}}")
    one, found = calibrated(make(), text, padded)
    other, wanted = calibrated(make(), text, bare)
    tokens = sum(batch["input_ids"].numel() for batch in bare)
    assert found.tokens == wanted.tokens and max(found.tokens.values()) == tokens
    assert found.losses == pytest.approx(wanted.losses, rel=1e-5)
    elements = sum(layer.weight.numel() for _, layer in quant_layers(one))
    assert same_codes(one, other) <= 0.002 * elements


@pytest.mark.parametrize("observer", ["minmax", "percentile", "mse", "entropy", "moving_average"])
def test_padding_is_in_no_calibrated_range(observer):
    padded, bare = batches()
    model = llama()
    with torch.no_grad():
        model.model.embed_tokens.weight[0] *= 50  # what the pads have
    text = recipe(f"weight: {INT3}, input: {STATIC % observer}")
    _, found = calibrated(model, text, padded)
    _, wanted = calibrated(model, text, bare)
    if observer != "moving_average":  # which goes by batches, and there are others
        assert found.ranges == {name: pytest.approx(ends, rel=1e-4) for name, ends in wanted.ranges.items()}
    assert max(high for _, high in found.ranges.values()) < 8


def test_batches_without_padding_stay_as_they_are():
    bare = batches()[1]
    tensors = [torch.ones(2, 3), (torch.ones(2, 3),), {"input_ids": torch.ones(2, 3)}, *bare]
    assert all(one is other for one, other in zip(unpadded(tensors), tensors, strict=True))


def test_every_argument_of_a_row_goes_with_it():
    mask = torch.tensor([[1, 1, 0, 0], [0, 1, 1, 1], [1, 1, 0, 0]])
    batch = {
        "input_ids": torch.arange(12).view(3, 4),
        "attention_mask": mask,
        "inputs_embeds": torch.arange(24).view(3, 4, 2),
        "decoder_input_ids": torch.arange(15).view(3, 5),
        "pixel_values": torch.arange(3),
        "use_cache": False,
    }
    first, second = unpadded([batch])
    assert first["input_ids"].tolist() == [[0, 1], [8, 9]] and second["input_ids"].tolist() == [[5, 6, 7]]
    assert second["inputs_embeds"].tolist() == [[[10, 11], [12, 13], [14, 15]]]
    assert first["decoder_input_ids"].shape == (2, 5) and first["pixel_values"].tolist() == [0, 2]
    assert first["use_cache"] is False and bool(second["attention_mask"].all())
    batch["decoder_attention_mask"] = torch.tensor([[1] * 5, [1] * 5, [1, 1, 1, 0, 0]])
    parts = list(unpadded([batch]))
    assert [tuple(part["decoder_input_ids"].shape) for part in parts] == [(1, 5), (1, 5), (1, 3)]


def test_a_row_without_text_is_left_out():
    batch = {"input_ids": torch.arange(6).view(2, 3), "attention_mask": torch.tensor([[0, 0, 0], [0, 1, 1]])}
    (part,) = unpadded([batch])
    assert part["input_ids"].tolist() == [[4, 5]] and part["attention_mask"].tolist() == [[1, 1]]


def test_a_mask_with_holes_is_a_sentence():
    with pytest.raises(UserError, match=matches("ptq.padding-inside", mask="attention_mask")):
        list(unpadded([{"input_ids": torch.ones(1, 3), "attention_mask": torch.tensor([[1, 0, 1]])}]))


# -- while training ---------------------------------------------------------------------------------------------------


def ranges(model):
    return {name: (layer.input_low.item(), layer.input_high.item()) for name, layer in quant_layers(model)}


def followed(model, data, run):
    for _, layer in quant_layers(model):
        layer.observing = True
    model.train()
    for batch in data:
        run(model, batch)
    return ranges(model)


def prepared(observer, model=None):
    model = model or llama()
    with torch.no_grad():
        model.model.embed_tokens.weight[0] *= 50
    found = torchqat.prepare(model, recipe(f"weight: {INT3}, input: {STATIC % observer}"))
    torchqat.calibrate(found, batches()[1][:2], lambda model, batch: model(**batch, use_cache=False))
    return found


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("observer", ["minmax", "moving_average"])
def test_observers_follow_text_alone_while_training(observer, side):
    padded, _ = batches(side, rows=1)
    cut = list(unpadded(padded))
    start = prepared(observer)
    before = ranges(start)
    found = followed(copy.deepcopy(start), padded, lambda model, batch: model(**batch, use_cache=False))
    wanted = followed(copy.deepcopy(start), cut, lambda model, batch: model(**batch, use_cache=False))
    for name, ends in wanted.items():
        assert found[name] == pytest.approx(ends, rel=1e-5, abs=1e-6), name
    assert found != before
    by_place = followed(
        copy.deepcopy(start), padded, lambda model, batch: model(batch["input_ids"], batch["attention_mask"])
    )
    assert by_place == found


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")  # what peft asks of transformers
def test_observers_follow_text_alone_under_adapters_and_a_trainer(tmp_path):
    """peft calls the forward of the model and not the model; the Trainer calls what it was given."""
    from transformers import Trainer, TrainingArguments

    padded, _ = batches(rows=1)
    model = torchqat.attach_adapters(
        peft.get_peft_model(prepared("minmax"), peft.LoraConfig(target_modules=["q_proj"]))
    )
    for _, layer in quant_layers(model):
        layer.observing = True
    arguments = TrainingArguments(
        str(tmp_path), max_steps=4, per_device_train_batch_size=2, report_to=[], use_cpu=True, save_strategy="no"
    )
    rows = [{name: tensor[0] for name, tensor in batch.items()} | {"labels": batch["input_ids"][0]} for batch in padded]
    Trainer(model, arguments, train_dataset=rows).train()
    assert max(high for _, high in ranges(model).values()) < 8


def test_padding_of_packed_rows_is_not_followed():
    from torchqat.data.conversations import Row, collated
    from torchqat.kinds import CausalLM

    _, bare = batches(rows=2, count=2)
    rows = [Row.of(batch["input_ids"][0]) for batch in bare]
    packed = [collated([Row.joined(rows[:2]), Row.joined(rows[2:])], packed_to=40)]
    found = followed(prepared("minmax"), packed, CausalLM().outputs)
    wanted = followed(prepared("minmax"), bare, CausalLM().outputs)
    for name, ends in wanted.items():
        assert found[name] == pytest.approx(ends, rel=2e-2, abs=1e-3), name


def test_nothing_watches_where_nothing_follows():
    model = torchqat.prepare(llama(), recipe(f"weight: {INT3}, input: {{dtype: int8}}"))
    hooks = [hook for module in model.modules() for hook in module._forward_pre_hooks.values()]
    assert not [hook for hook in hooks if hook.__module__ == "torchqat.layers.padding"]


def test_a_forward_that_fails_leaves_no_mask_behind():
    from torchqat.layers.padding import without_padding

    model, batch = prepared("minmax"), batches()[0][0]
    broken = model.model.layers[1].mlp.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model(**batch)
    broken.remove()
    x = torch.ones(4, 32, 3)
    assert without_padding(x) is x
