"""The quantized cache of keys and values: attention in transformers' models, and checkpoints."""

import copy
import dataclasses
import re

import architectures
import pytest
import torch
import torchqat
import transformers
from architectures import tokens
from sentences import matches
from torchqat.layers.kv_cache import attach, caches, without_quantization
from torchqat.ptq.blocks import in_floating_point
from transformers import DynamicCache

FORMS = {
    "fp8": "{dtype: fp8_e4m3}",
    "fp8 per head": "{dtype: fp8_e5m2, keys: head, values: head}",
    "fp8 per token": "{dtype: fp8_e4m3, keys: token, values: token}",
    "int8": "{dtype: int8, keys: token}",
    "int4": "{dtype: int4, group_size: 8}",
    "int4, recent and first": "{dtype: int4, group_size: 8, recent: 5, first: 3}",
    "nvfp4": "{dtype: nvfp4}",
    "nvfp4 calibrated": "{dtype: nvfp4, calibrated: true}",
    "int8 blocks": "{dtype: int8, keys: group, values: group, group_size: 8, symmetric: true}",
}
WEIGHT = "{dtype: int8}"


def recipe(cache, weight=WEIGHT, extra=""):
    rule = f'version: 1\nlayers:\n  - match: "model.layers.*"\n    weight: {weight}\n'
    return torchqat.parse_recipe(f"{rule}kv_cache: {cache}\n{extra}", "recipe")


def prepared(model, cache, **settings):
    model = torchqat.prepare(copy.deepcopy(model), recipe(cache, **settings)).eval()
    torchqat.calibrate(model, tokens(), forward)
    return model


def forward(model, batch):
    return model(input_ids=batch, use_cache=False)


@pytest.fixture(scope="module")
def llama():
    return architectures.build("Llama")


# -- attention -------------------------------------------------------------------------------------------------------


def assert_rounded_a_little(quantized):
    """The cache changes what the model says, and not beyond recognition."""
    with torch.no_grad():
        changed = forward(quantized, tokens()[0]).logits
        with without_quantization(quantized):
            plain = forward(quantized, tokens()[0]).logits
    assert not torch.equal(changed, plain)
    assert (changed - plain).square().sum() < 0.25 * plain.square().sum()


@pytest.mark.parametrize("name", architectures.NAMES)
@pytest.mark.parametrize("form", ["fp8", "int4, recent and first"])
def test_every_architecture_reads_the_quantized_cache(name, form):
    model = architectures.build(name)
    quantized = prepared(model, FORMS[form])
    assert len(caches(quantized)) == 2
    assert_rounded_a_little(quantized)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("form", FORMS)
def test_a_sequence_gives_what_a_growing_cache_gives(form, attention):
    """Training sees the whole sequence at once; serving, one token after the other. No token may look ahead."""
    model = prepared(architectures.build("Llama", attn_implementation=attention), FORMS[form])
    batch = tokens(1, 30)[0]
    with torch.no_grad():
        at_once = forward(model, batch).logits
        cache, steps = DynamicCache(), []
        for position in range(batch.shape[1]):
            # Mask and positions are its own; the name of the fourth changes with transformers.
            output = model(batch[:, position : position + 1], None, None, cache, use_cache=True)
            steps.append(output.logits)
    torch.testing.assert_close(torch.cat(steps, 1), at_once, rtol=1e-3, atol=1e-3 * at_once.abs().max().item())


@pytest.mark.filterwarnings("ignore:_compile flag:DeprecationWarning")
@pytest.mark.parametrize("attention", ["eager", "flex_attention"])
@torch.no_grad()
def test_another_attention_that_is_chosen_later_reads_the_quantized_cache(attention, llama):
    quantized = prepared(llama, FORMS["fp8"])
    before = forward(quantized, tokens()[0]).logits
    quantized.set_attn_implementation(attention)
    torch.testing.assert_close(forward(quantized, tokens()[0]).logits, before)
    torchqat.calibrate(quantized, tokens(), forward)
    assert_rounded_a_little(quantized)


def test_attention_in_pages_is_refused(llama):
    quantized = prepared(llama, FORMS["fp8"])
    quantized.set_attn_implementation("paged|eager")
    with pytest.raises(torchqat.UserError, match=matches("kv-cache.in-pages", attention="paged|eager")):
        forward(quantized, tokens()[0])


def test_scales_are_those_of_the_keys_after_the_rotary_embedding(llama):
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    model = copy.deepcopy(llama)
    seen = []

    def record(module, query, key, value, mask, **kwargs):
        seen.append((key.abs().max(), value.abs().max()))
        return ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, value, mask, **kwargs)

    ALL_ATTENTION_FUNCTIONS.register("recording", record)
    model.config._attn_implementation = "recording"
    with torch.no_grad():
        for batch in tokens():
            forward(model, batch)
    quantized = torchqat.prepare(copy.deepcopy(llama), recipe(FORMS["fp8"]))
    with in_floating_point(quantized):
        found = torchqat.calibrate(quantized, tokens(), forward)
    assert list(found.cache_scales) == ["model.layers.0.self_attn", "model.layers.1.self_attn"]
    for layer, (_, cache) in enumerate(caches(quantized)):
        keys, values = zip(*seen[layer::2], strict=True)
        torch.testing.assert_close(cache.k_scale, (max(keys) / 448).reshape(1), rtol=1e-5, atol=0)
        torch.testing.assert_close(cache.v_scale, (max(values) / 448).reshape(1), rtol=1e-5, atol=0)


def test_fewer_bits_are_further_away(llama):
    def error(form):
        quantized = prepared(llama, form)
        with torch.no_grad():
            return sum(
                (forward(quantized, b).logits - forward(llama, b).logits).square().mean().item() for b in tokens()
            )

    errors = [error(f"{{dtype: int{bits}, group_size: 8}}") for bits in (8, 4, 2)]
    assert errors == sorted(errors)
    assert error("{dtype: int2, group_size: 8, recent: 8}") < errors[2]


STRANGERS = {
    "OPT": ({"ffn_dim": 96, "word_embed_proj_dim": 64}, "*.layers.*", (4, 16)),
    "GPTJ": ({"n_embd": 64, "n_layer": 2, "n_head": 4, "rotary_dim": 8, "n_positions": 64}, "*.h.*", (4, 16)),
    "Phi3": ({"num_key_value_heads": 2, "pad_token_id": 0}, "*.layers.*", (2, 16)),
    "GPTNeoX": ({}, "*.layers.*", (4, 16)),
    "BioGpt": ({}, "*.layers.*", (4, 16)),
    "Bart": (
        {"d_model": 64, "decoder_layers": 2, "decoder_ffn_dim": 96, "decoder_attention_heads": 4},
        "*.self_attn.*",
        (4, 16),
    ),
}
SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 100,
}


def stranger(name):
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(max_position_embeddings=64, **{**SIZES, **STRANGERS[name][0]})
    return transformers.AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize("name", STRANGERS)
@pytest.mark.parametrize("form", ["fp8 per head", "int4"])
def test_heads_are_those_that_attention_keeps(name, form):
    model = stranger(name)
    text = recipe(FORMS[form]).text.replace("model.layers.*", STRANGERS[name][1])
    quantized = torchqat.prepare(copy.deepcopy(model), torchqat.parse_recipe(text, "recipe")).eval()
    torchqat.calibrate(quantized, tokens(), forward)
    assert {(cache.heads, cache.head_size) for _, cache in caches(quantized)} == {STRANGERS[name][2]}
    assert len(caches(quantized)) == 2
    assert_rounded_a_little(quantized)


def test_a_latent_cache_is_refused():
    config = transformers.DeepseekV3Config(
        **SIZES, num_key_value_heads=4, moe_intermediate_size=32, n_routed_experts=4, num_experts_per_tok=2, n_group=1,
        topk_group=1, q_lora_rank=16, kv_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=8,
        first_k_dense_replace=2,
    )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_config(config)
    refused = matches("kv-cache.no-heads", layer="model.layers.0.self_attn", type="DeepseekV3Attention")
    with pytest.raises(torchqat.UserError, match=refused):
        torchqat.prepare(model, recipe(FORMS["int8"]))


def test_keys_that_are_not_as_the_layer_says_are_refused(llama):
    quantized = torchqat.prepare(copy.deepcopy(llama), recipe(FORMS["int8"]))
    cache = caches(quantized)[0][1]
    cache.shape = dataclasses.replace(cache.shape, heads=3)
    with pytest.raises(torchqat.UserError, match=matches("kv-cache.no-heads", type="LlamaAttention")):
        forward(quantized, tokens()[0])


def test_a_model_that_is_not_calibrated_rounds_nothing(llama):
    quantized = torchqat.prepare(copy.deepcopy(llama), recipe(FORMS["fp8"])).eval()
    with torch.no_grad():
        before = forward(quantized, tokens()[0]).logits
        with without_quantization(quantized):
            assert torch.equal(forward(quantized, tokens()[0]).logits, before)


def test_the_state_brings_the_scales(llama):
    first = prepared(llama, FORMS["fp8"])
    second = torchqat.prepare(copy.deepcopy(llama), recipe(FORMS["fp8"])).eval()
    second.load_state_dict(copy.deepcopy(first).state_dict())
    with torch.no_grad():
        assert torch.equal(forward(first, tokens()[0]).logits, forward(second, tokens()[0]).logits)


def test_a_float_checkpoint_loads_into_a_prepared_model(llama):
    quantized = torchqat.prepare(copy.deepcopy(llama), recipe(FORMS["fp8"]))
    quantized.load_state_dict(llama.state_dict())
    assert not any(cache.calibrated for _, cache in caches(quantized))


def test_what_is_not_finite_is_ignored_and_said(llama):
    quantized = torchqat.prepare(copy.deepcopy(llama), recipe(FORMS["fp8"])).eval()
    with torch.no_grad():
        quantized.model.layers[1].self_attn.v_proj.weight[0, 0] = float("inf")
    found = torchqat.calibrate(quantized, tokens(), forward)
    ignored = matches("kv-cache.elements-ignored", cache="model.layers.1.self_attn")
    assert any(re.search(ignored, warning) for warning in found.warnings)
    assert all(cache.v_scale.isfinite().all() for _, cache in caches(quantized))


def test_training_sees_it(llama):
    quantized = prepared(llama, FORMS["int4"])
    forward(quantized.train(), tokens()[0]).logits.square().mean().backward()
    gradients = {n: p.grad for n, p in quantized.named_parameters()}
    assert all(gradients[f"model.layers.0.self_attn.{leaf}.weight"].abs().sum() > 0 for leaf in ("k_proj", "v_proj"))
    with without_quantization(quantized):
        plain = copy.deepcopy(quantized)
        plain.zero_grad()
        forward(plain, tokens()[0]).logits.square().mean().backward()
    name = "model.layers.0.self_attn.v_proj.weight"
    assert not torch.equal(gradients[name], plain.get_parameter(name).grad)


def test_gptq_calibrates_on_what_the_cache_gives_back(llama):
    weight = "{dtype: int4, group_size: 32, scale: mse}"
    extra = "initialize: {method: gptq, correction: 0}\n"
    plain = torchqat.prepare(copy.deepcopy(llama), architectures.recipe("{method: gptq, correction: 0}", weight))
    quantized = torchqat.prepare(copy.deepcopy(llama), recipe("{dtype: int2, keys: token}", weight, extra))
    one, two = (torchqat.calibrate(model, tokens(), forward).losses for model in (plain, quantized))
    assert one["model.layers.0.self_attn.q_proj"] == two["model.layers.0.self_attn.q_proj"]
    assert one["model.layers.0.self_attn.o_proj"] != two["model.layers.0.self_attn.o_proj"]


def test_an_encoder_has_no_cache():
    import transformers

    config = transformers.BertConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, vocab_size=50
    )
    with pytest.raises(torchqat.UserError, match=matches("kv-cache.no-attention", type="BertModel")):
        attach(transformers.BertModel(config), recipe(FORMS["int8"]).kv_cache)


def test_a_group_that_does_not_divide_the_head_is_refused(llama):
    with pytest.raises(torchqat.UserError, match=matches("kv-cache.group-does-not-divide", size=16, group_size=32)):
        torchqat.prepare(copy.deepcopy(llama), recipe("{dtype: int8, keys: group, symmetric: true}"))
