"""Weights that were frozen while the model trained: those that are others since are told, and those alone."""

import pytest
import torch
import torchqat
from sentences import said
from test_lora import by_peft, prepared, train
from torch.profiler import ProfilerActivity, profile
from torchqat.layers.frozen_weight import _sums
from torchqat.model.noted import changed_note


def test_adapters_that_trained_beside_and_were_merged_are_told_by_exports(tmp_path):
    model, heard = prepared(), []
    merged = train(by_peft(model)).merge_and_unload()
    torchqat.export(merged, tmp_path / "out", "safetensors", say=heard.append)
    assert len(heard) == 1 and said(heard[0], "noted.frozen-changed", layers="0 and 1 more")


def test_adapters_that_trained_through_the_rounding_are_not_told(tmp_path):
    model, heard = prepared("mse"), []
    adapted = by_peft(model)
    adapted.train()(torch.randn(2, 64)).sum().backward()  # a look before they are attached
    merged = train(torchqat.attach_adapters(adapted)).merge_and_unload()
    torchqat.export(merged, tmp_path / "out", "safetensors", say=heard.append)
    assert heard == []


def test_frozen_weights_that_stay_or_are_given_anew_are_not_told(tmp_path):
    model, heard = prepared("mse"), []
    model.requires_grad_(False)
    model[2].weight.requires_grad_(True)
    train(model)
    torchqat.export(model, tmp_path / "out", "safetensors", say=heard.append)
    model.load_state_dict(prepared("mse").state_dict())
    torchqat.export(model.half(), tmp_path / "out", "safetensors", say=heard.append)
    model.float().requires_grad_(True)
    train(model)  # a second phase
    torchqat.export(model, tmp_path / "out", "safetensors", say=heard.append)
    assert heard == []
    model.requires_grad_(False)
    model(torch.randn(2, 64))
    model[0].weight.data[3] *= 1.001
    torchqat.export(model, tmp_path / "out", "safetensors", say=heard.append)
    assert said(heard[0], "noted.frozen-changed", layers="0")


def test_a_look_at_a_frozen_weight_makes_no_copy_of_it_in_float64():
    weight = torch.randn(3000, 4096)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        found = _sums(weight)
    assert max(event.cpu_memory_usage for event in seen.events()) <= 8 * (1 << 22)
    assert torch.allclose(found, torch.stack([weight.double().sum(), weight.double().abs().sum()]), rtol=1e-9)
    assert torch.equal(_sums(torch.zeros(0, 3)), torch.zeros(2, dtype=torch.float64))


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_frozen_weights_that_were_in_a_half_dtype_for_a_while_are_not_told(half):
    model = prepared("mse").requires_grad_(False)
    model(torch.randn(2, 64))
    assert changed_note(model.to(half).float()) == ""
    model[0].weight.data[3] *= 1.001
    assert said(changed_note(model), "noted.frozen-changed", layers="0")


def test_weights_that_trained_in_a_compiled_graph_after_they_were_frozen_are_not_told():
    model = prepared("mse").requires_grad_(False)
    model(torch.randn(2, 64))
    model.requires_grad_(True)
    train(torch.compile(model, backend="eager"))
    assert changed_note(model) == ""
