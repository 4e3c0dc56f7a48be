"""``verify`` has nothing to say against a good export, whatever the model keeps of a text and how it is asked."""

import pytest
import torch
import torchqat
import transformers
from sentences import matches
from torchqat.kinds import find_kind
from torchqat.verification.engines import TRANSFORMERS, Bench, Question
from torchqat.verification.engines.transformers import outputs_in_transformers

SIZES = {"hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 100}
HEADS = {**SIZES, "num_attention_heads": 4, "intermediate_size": 96}
T5 = {"d_model": 64, "d_kv": 16, "d_ff": 96, "num_layers": 2, "num_heads": 4, "vocab_size": 100}
BART = {
    "d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 96, "decoder_ffn_dim": 96, "vocab_size": 100,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "max_position_embeddings": 64,
}  # fmt: skip
GEMMA3 = {
    "text_config": {**HEADS, "vocab_size": 120, "num_key_value_heads": 2, "head_dim": 16},
    "vision_config": {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28,
        "patch_size": 14,
    },
    "mm_tokens_per_image": 4, "image_token_index": 110, "boi_token_index": 111, "eoi_token_index": 112,
}  # fmt: skip
CASES = {
    "Mamba": (lambda: transformers.MambaForCausalLM(transformers.MambaConfig(**SIZES, state_size=8)), "*in_proj"),
    "Mamba2": (
        lambda: transformers.Mamba2ForCausalLM(
            transformers.Mamba2Config(**SIZES, state_size=8, num_heads=8, head_dim=16, n_groups=1, chunk_size=8)
        ),
        "*in_proj",
    ),
    "RecurrentGemma": (
        lambda: transformers.RecurrentGemmaForCausalLM(
            transformers.RecurrentGemmaConfig(
                **{**HEADS, "num_hidden_layers": 3}, lru_width=64, attention_window_size=16, num_key_value_heads=1
            )
        ),
        "*mlp_block*",
    ),
    "T5": (
        lambda: transformers.T5ForConditionalGeneration(transformers.T5Config(**T5, decoder_start_token_id=0)),
        "*block.*",
    ),
    "Bart": (lambda: transformers.BartForConditionalGeneration(transformers.BartConfig(**BART)), "*layers.*"),
    "Gemma3": (
        lambda: transformers.Gemma3ForConditionalGeneration(transformers.Gemma3Config(**GEMMA3)),
        "*language_model.layers.*",
    ),
    "Llama": (lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**HEADS)), "*layers.*"),
}


def exported(model, match, folder):
    weight = "{dtype: int4, group_size: 16, grid: full, scale: mse}"
    text = f'version: 1\nlayers:\n  - match: "{match}"\n    weight: {weight}\n'
    prepared = torchqat.prepare(model.eval(), torchqat.parse_recipe(text, "recipe")).eval()
    return prepared, torchqat.export(prepared, folder)


@pytest.mark.parametrize("name", CASES)
def test_a_good_export_is_good(name, tmp_path):
    torch.manual_seed(0)
    build, match = CASES[name]
    prepared, folder = exported(build(), match, tmp_path / "out")
    checked = torchqat.verify(folder, prepared, engine="transformers")
    assert checked.ok, checked
    if name in ("T5", "Bart"):
        assert checked.agreement.difference <= checked.agreement.bound
    else:
        assert checked.agreement.same_text == checked.agreement.prompts == 4


@pytest.mark.parametrize("name", ["Mamba", "RecurrentGemma", "Llama"])
def test_what_is_timed_writes_the_same_as_the_whole_text_read_anew(name, tmp_path):
    from torchqat.verification.engines.workers import serving, transformers_worker

    torch.manual_seed(0)
    build, match = CASES[name]
    _, folder = exported(build(), match, tmp_path / "out")
    model = transformers_worker.Model(folder, {})
    prompt = list(range(5, 17))
    assert model.write(prompt, 6) == model.greedy(prompt, 6)
    assert serving.bench(model, prompt, 2, 1)["decode_tokens_per_second"] > 0


def test_an_engine_that_loads_a_checkpoint_but_cannot_run_it_says_so(tmp_path):
    torch.manual_seed(0)
    _, folder = exported(*[CASES["Llama"][0](), CASES["Llama"][1]], tmp_path / "out")
    with pytest.raises(torchqat.UserError, match=matches("verify.engine-failed", engine="transformers")):
        TRANSFORMERS.serve_here(Question(str(folder), [[1000]], bench=Bench([1])))
    (folder / "config.json").write_text("{}")
    with pytest.raises(torchqat.UserError, match=matches("verify.engine-cannot-load", engine="transformers")):
        TRANSFORMERS.serve_here(Question(str(folder), [[1]]))


CLASSIFIERS = {
    "Bloom": lambda: transformers.BloomConfig(hidden_size=64, n_layer=2, n_head=4, vocab_size=100, pad_token_id=0),
    "LayoutLM": lambda: transformers.LayoutLMConfig(**HEADS, pad_token_id=0, max_2d_position_embeddings=64),
    "Bert": lambda: transformers.BertConfig(**HEADS, pad_token_id=0),
}


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifiers_are_given_their_inputs_by_name(name, tmp_path):
    """Some take boxes or a cache between token ids and mask."""
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}ForSequenceClassification")(CLASSIFIERS[name]())
    prepared, folder = exported(model, "*layer*" if name != "Bloom" else "*.h.*", tmp_path / "out")
    ids = torch.randint(3, 100, (4, 12), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    kind = find_kind("classifier")
    example = kind.examples({"input_ids": ids, "attention_mask": mask, "labels": torch.zeros(4)})
    assert set(example) == {"input_ids", "attention_mask"}
    found = outputs_in_transformers(folder, prepared, example)
    assert found.ok, found
    with torch.no_grad():
        seen = kind.outputs(prepared, {**example, "labels": torch.zeros(4)})
        assert not torch.equal(seen, prepared(input_ids=ids).logits)  # the mask is one


def test_inputs_that_are_no_token_ids_must_be_given(tmp_path):
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48, image_size=16, patch_size=8
    )
    prepared, folder = exported(transformers.ViTForImageClassification(config), "*layer*", tmp_path / "out")
    with pytest.raises(torchqat.UserError, match=matches("export.no-example")):
        torchqat.verify(folder, prepared, engine="transformers")
    pixels = torch.randn(2, 3, 16, 16)
    assert torchqat.verify(folder, prepared, engine="transformers", example={"pixel_values": pixels}).ok
