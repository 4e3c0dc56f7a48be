"""Mixes of llama.cpp's types for a file of a given size."""

import pytest
import torchqat
from architectures import build, tokens
from command import call
from sentences import matches, said
from torchqat.checkpoints.readers.gguf import gguf_files
from torchqat.checkpoints.readers.gguf_types import Reader
from torchqat.evaluation.gguf_mix import GgufSize, types_of_gguf
from torchqat.evaluation.mixed_widths import mixed_recipe
from torchqat.evaluation.sensitivity import LayerSensitivity, sensitivity

SHAPE = {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 2, "head_dim": 64}
BLOCKS = "  - {match: blocks, weight: {mix: q4_k_m, scale: mse}}\n"
ENDS = "".join(
    f'  - {{match: "{name}", weight: {{mix: q4_k_m, scale: mse}}}}\n' for name in ("type:Embedding", "lm_head")
)


def text_of(ends=""):
    return f"version: 1\nlayers:\n{BLOCKS}{ends}export: [gguf]\n"


def made(model, ends=""):
    return torchqat.make_plan(model, torchqat.parse_recipe(text_of(ends)))


def in_file(folder):
    """Bits a weight of all tensors, as llama.cpp counts."""
    found = Reader(gguf_files(folder)[0]).tensors
    return 8 * sum(int(t.n_bytes) for t in found) / sum(int(t.n_elements) for t in found)


def pretended(plan, types):
    """As if each type lost a quarter of the one before it, and later layers more."""
    return [
        LayerSensitivity(
            layer.name,
            layer.weight,
            {one: (place + 1) * 4.0**-index for index, one in enumerate(types)},
            (layer.out_features, layer.in_features),
        )
        for place, layer in enumerate(plan.layers)
    ]


@pytest.mark.parametrize("ends, tied", (("", False), (ENDS, False), (ENDS, True)))
def test_the_file_is_as_large_as_was_said_and_no_larger(ends, tied, tmp_path):
    model = build("Llama", **SHAPE, tie_word_embeddings=tied)
    plan = made(model, ends)
    layers = pretended(plan, types_of_gguf(plan))
    sizes = GgufSize(model, plan, layers)
    own = sizes.of_plan()
    for asked in (own.size, own.size + 0.4, own.size - 0.6):
        found = sizes.chosen(asked)
        assert asked - 0.35 < found.size <= asked
        recipe = torchqat.parse_recipe(mixed_recipe(text_of(ends), layers, found.types, "float16"))
        prepared = torchqat.prepare(build("Llama", **SHAPE, tie_word_embeddings=tied), recipe)
        folder = torchqat.export(prepared, tmp_path / f"{asked:.3f}", "gguf")
        assert in_file(folder) == pytest.approx(found.size, abs=1e-9)
    written = torchqat.export(torchqat.prepare(model, torchqat.parse_recipe(text_of(ends))), tmp_path / "own", "gguf")
    assert in_file(written) == pytest.approx(own.size, abs=1e-9)


def test_the_mix_is_the_best_of_all():
    """By trying every one: three layers, three types."""
    from itertools import product

    model = build("Llama", **{**SHAPE, "num_hidden_layers": 1})
    plan = torchqat.make_plan(
        model,
        torchqat.parse_recipe('version: 1\nlayers:\n  - {match: "*.mlp.*", weight: {dtype: q4_k}}\nexport: [gguf]\n'),
    )
    types = ["q3_k", "q4_k", "q6_k"]
    layers = pretended(plan, types)
    sizes = GgufSize(model, plan, layers)
    tried = []
    for chosen in product(types, repeat=len(layers)):
        mix = sizes._mix({layer.name: one for layer, one in zip(layers, chosen, strict=True)})
        tried.append((mix.size, mix.kl))
    for asked in sorted({size for size, _ in tried}):
        assert sizes.chosen(asked).kl == pytest.approx(min(kl for size, kl in tried if size <= asked))


def test_layers_that_engines_fuse_may_differ_here():
    """llama.cpp multiplies with q, k and v one by one."""
    model = build("Llama", **SHAPE)
    plan = made(model)
    types = types_of_gguf(plan)
    layers = pretended(plan, types)
    chosen = GgufSize(model, plan, layers).chosen(GgufSize(model, plan, layers).of_plan().size)
    first = {chosen.types[f"model.layers.0.self_attn.{leaf}_proj"] for leaf in "qkv"}
    last = {chosen.types[f"model.layers.1.mlp.{leaf}_proj"] for leaf in ("gate", "up")}
    assert len(first | last) > 1


def test_what_is_impossible_is_refused():
    model = build("Llama", **SHAPE)
    plan = made(model)
    layers = pretended(plan, types_of_gguf(plan))
    with pytest.raises(torchqat.UserError, match=matches("evaluate.gguf-size-too-small", asked=2.0)):
        GgufSize(model, plan, layers).chosen(2.0)
    layers = pretended(plan, [3])  # integers whose scales are of bfloat16
    layers[0] = LayerSensitivity(layers[0].name, layers[0].spec, {"mxfp8_e4m3": 0.1}, layers[0].shape)
    with pytest.raises(torchqat.UserError, match=matches("evaluate.gguf-has-no-such-type", name=layers[0].name)):
        GgufSize(model, plan, layers).chosen(8.0)


def test_types_that_are_tried_fit_the_layers():
    plan = made(build("Llama", **SHAPE))
    assert types_of_gguf(plan) == ["q2_k", "q3_k", "q4_k", "q5_k", "q6_k"]
    plan = made(build("Llama", **{**SHAPE, "hidden_size": 192}))
    assert types_of_gguf(plan)[5:] == ["q4_0", "q5_0", "q5_1", "q8_0"]


def test_measured_kls_of_k_quants_fall_with_their_size():
    model = build("Llama", **SHAPE)
    plan = made(model)
    found = sensitivity(model, plan, tokens(2), ["q2_k", "q4_k", "q6_k"])
    assert len(found) == 14
    assert all(layer.kl["q2_k"] > layer.kl["q4_k"] > layer.kl["q6_k"] > 0 for layer in found)


def test_the_command_writes_a_recipe_and_says_what_the_preset_comes_to(
    data_folder, tokenizer, tmp_path, capsys, monkeypatch
):
    model = build("Llama", **{**SHAPE, "vocab_size": len(tokenizer)})
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    recipe, mixed = tmp_path / "recipe.yaml", tmp_path / "mixed.yaml"
    recipe.write_text(text_of(ENDS) + "data: {calibration: {samples: 2, sequence_length: 32}}\n")
    given = [recipe, "--model", tmp_path / "model", "--data", data_folder]
    code, out, err = call(capsys, "sensitivity", *given, "--gguf-size", "4.8", "--write", mixed)
    assert code == 0, err
    assert said(out, "evaluate.gguf-size", asked=4.8) and said(out, "evaluate.gguf-size-of-the-recipe")
    prepared = torchqat.prepare(model, torchqat.load_recipe(str(mixed)), method="rtn")
    assert in_file(torchqat.export(prepared, tmp_path / "out", "gguf")) <= 4.8
    monkeypatch.setattr("torchqat.evaluation.sensitivity.sensitivity", lambda *_: pytest.fail("it measured"))
    for types, size in (("q2_k,q4_k", "2"), ("q4_k,q6_k", "4.2")):
        code, _, err = call(capsys, "sensitivity", *given, "--bits", types, "--gguf-size", size)
        assert code == 2 and said(err, "evaluate.gguf-size-too-small", asked=float(size))
    code, _, err = call(capsys, "sensitivity", *given, "--gguf-size", "4.8", "--budget", "4")
    assert code == 2 and said(err, "evaluate.two-budgets")
