"""Caches of which calibration saw nothing but zeros, or nothing at all: what has no range is told, and not exported."""

import copy

import architectures
import pytest
import torch
import torchqat
from architectures import tokens
from sentences import matches, said
from test_kv_cache import forward, recipe
from torchqat.layers.kv_cache import caches

INT8 = "{dtype: int8, symmetric: true, keys: head, values: tensor}"


@pytest.fixture(scope="module")
def llama():
    return architectures.build("Llama")


def test_a_cache_of_zeros_alone_has_no_range(llama, tmp_path):
    """Zeros fit under any scale: what came later was rounded to whole numbers."""
    model = copy.deepcopy(llama)
    torch.nn.init.zeros_(model.model.layers[0].self_attn.v_proj.weight)
    for cache, method in ((INT8, "rtn"), ("{dtype: fp8_e4m3}", "gptq")):
        quantized = torchqat.prepare(copy.deepcopy(model), recipe(cache, extra=f"initialize: {{method: {method}}}\n"))
        warnings = torchqat.calibrate(quantized, tokens(), forward).warnings
        told = [
            text for text in warnings if said(text, "kv-cache.zeros", name="model.layers.0.self_attn", what="values")
        ]
        assert len(told) == 1
        (_, first), (_, second) = caches(quantized)
        assert second.calibrated and not first.calibrated and not first.ready and first.k_scale.sum() == 0
    with pytest.raises(torchqat.UserError, match=matches("kv-cache.without-scales", name="model.layers.0.self_attn")):
        torchqat.export(quantized, tmp_path / "out")


def test_heads_that_are_given_zeros_alone_have_the_scale_of_the_others(llama):
    model = copy.deepcopy(llama)
    attention = model.model.layers[0].self_attn
    with torch.no_grad():
        attention.k_proj.weight[: attention.head_dim].zero_()
    quantized = torchqat.prepare(model, recipe(INT8))
    (told,) = torchqat.calibrate(quantized, tokens(), forward).warnings
    assert said(told, "kv-cache.zeros-of-heads", name="model.layers.0.self_attn", what="keys", few=1, count=2)
    scale = caches(quantized)[0][1].k_scale
    assert scale[0] == scale[1] != 1


def test_a_cache_that_was_not_calibrated_is_not_exported(llama, tmp_path):
    quantized = torchqat.prepare(copy.deepcopy(llama), recipe("{dtype: fp8_e4m3}"))
    with pytest.raises(torchqat.UserError, match=matches("kv-cache.without-scales", name="model.layers.0.self_attn")):
        torchqat.export(quantized, tmp_path / "out")
