"""Caches of keys and values in NVFP4 and the MX types."""

import copy

import architectures
import pytest
import torch
import torchqat
from architectures import tokens
from conftest import RECIPE
from sentences import matches
from test_kv_cache import FORMS, forward, prepared, recipe
from torchqat.layers.kv_cache import caches


@pytest.fixture(scope="module")
def llama():
    return architectures.build("Llama")


def test_a_calibrated_outer_scale_is_that_of_what_was_seen(llama):
    quantized = prepared(llama, FORMS["nvfp4 calibrated"])
    for _, cache in caches(quantized):
        assert cache.k_scale.shape == (1,) and cache.k_scale > 0 and cache.v_scale > 0
    state = quantized.state_dict()
    again = torchqat.prepare(copy.deepcopy(llama), recipe(FORMS["nvfp4 calibrated"])).eval()
    again.load_state_dict(state)
    with torch.no_grad():
        assert torch.equal(forward(again, tokens()[0]).logits, forward(quantized, tokens()[0]).logits)


def test_gradients_pass_a_cache_in_4_bits(llama):
    quantized = prepared(llama, FORMS["nvfp4"]).train()
    forward(quantized, tokens()[0]).logits.square().mean().backward()
    layer = quantized.model.layers[0].self_attn.k_proj
    assert layer.weight.grad.isfinite().all() and layer.weight.grad.any()


@pytest.mark.parametrize("form", ["{dtype: nvfp4}", "{dtype: mxfp4, recent: 4}", "{dtype: mxfp8_e4m3}"])
def test_scales_that_are_found_in_each_call_need_no_place(form, tmp_path):
    llama = architectures.build("Llama", head_dim=32)
    quantized = prepared(llama, form)
    folder = torchqat.export(quantized, tmp_path / "out", "compressed-tensors")
    assert torchqat.verify(folder, quantized).ok
    with torch.no_grad():  # and the model is evaluated with its cache
        assert not torch.equal(forward(quantized, tokens()[0]).logits, forward(llama, tokens()[0]).logits)


def test_outer_scales_have_no_place_in_a_checkpoint(llama, begin, tmp_path):
    refusal = matches("export.no-place-for-outer-scales-of-the-cache", format="compressed-tensors")
    with pytest.raises(torchqat.UserError, match=refusal):
        torchqat.export(prepared(llama, FORMS["nvfp4 calibrated"]), tmp_path / "out", "compressed-tensors")
    with pytest.raises(torchqat.UserError, match=refusal):  # before anything is measured or trained
        begin(RECIPE + f"kv_cache: {FORMS['nvfp4 calibrated']}\n")
    assert not (tmp_path / "run").exists()


def test_blocks_that_do_not_divide_a_head_are_said_before_training(begin, tmp_path):
    with pytest.raises(torchqat.UserError, match=matches("recipe.cache-heads", group=32, size=16)):
        begin(RECIPE + "kv_cache: {dtype: mxfp4}\n")
    assert not (tmp_path / "run").exists()


def test_a_run_trains_with_a_cache_in_4_bits(begin):
    report = begin(RECIPE.replace("evaluate: {compare: [int8, int4]}\n", "") + "kv_cache: {dtype: nvfp4}\n")
    assert report.variants[-1].kl > 0
