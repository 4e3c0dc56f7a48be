"""Importance matrices: what the gguf package reads is what each matrix was multiplied with, by a float64 reference."""

import gguf
import numpy as np
import pytest
import torch
import torchqat
from command import call
from gguf_models import build
from sentences import matches, said
from torchqat.layers.linear import QuantLinear

TOKENS = [torch.randint(5, 320, (2, 24), generator=torch.Generator().manual_seed(seed)) for seed in (1, 2)]


def read(path):
    reader = gguf.GGUFReader(path)
    values = {field.name: field.contents() for field in reader.fields.values()}
    return values, {tensor.name: tensor for tensor in reader.tensors}


def inputs_of(module, model, batches):
    """Every token that ``module`` is called with, float64."""
    seen = []
    handle = module.register_forward_pre_hook(
        lambda _module, args: seen.append(args[0].detach().double().flatten(0, -2))
    )
    with torch.no_grad():
        for batch in batches:
            model(input_ids=batch)
    handle.remove()
    return torch.cat(seen)


def test_sums_are_those_of_the_inputs_of_linear_layers(tmp_path):
    model = build("llama")
    names = torchqat.imatrix(model, TOKENS, tmp_path / "imatrix.gguf", ["some text"])
    values, found = read(tmp_path / "imatrix.gguf")
    assert values["general.type"] == "imatrix" and values["imatrix.datasets"] == ["some text"]
    assert values["imatrix.chunk_count"] == 4 and values["imatrix.chunk_size"] == 24
    assert len(names) == 7 * 3 and "blk.1.ffn_down.weight" in names and "output.weight" not in names
    given = inputs_of(model.model.layers[1].mlp.down_proj, model, TOKENS)
    sums, counts = found["blk.1.ffn_down.weight.in_sum2"], found["blk.1.ffn_down.weight.counts"]
    assert list(sums.shape) == [192, 1] and list(counts.shape) == [1, 1] and sums.tensor_type.name == "F32"
    assert counts.data.item() == len(given) == 96
    assert np.allclose(sums.data[0], given.square().sum(0).numpy(), rtol=1e-6)
    assert set(found) == {f"{name}.{leaf}" for name in names for leaf in ("in_sum2", "counts")}


@pytest.mark.parametrize("name", ["qwen2_moe", "mixtral", "gpt_oss"])
def test_experts_count_the_tokens_that_are_sent_to_them(name, tmp_path):
    """By a forward of our own through the router and each expert in float64."""
    model = build(name)
    torchqat.imatrix(model, TOKENS, tmp_path / "imatrix.gguf")
    _, found = read(tmp_path / "imatrix.gguf")
    experts, calls = model.model.layers[1].mlp.experts, []
    handle = experts.register_forward_pre_hook(lambda _module, args: calls.append([arg.detach() for arg in args[:2]]))
    with torch.no_grad():
        for batch in TOKENS:
            model(input_ids=batch)
    handle.remove()
    given = torch.cat([call[0].flatten(0, -2) for call in calls]).double()
    sent = torch.cat([call[1].flatten(0, -2) for call in calls])
    for expert in range(4):
        rows = given[(sent == expert).any(-1)]
        for part in ("gate", "up"):
            assert np.allclose(
                found[f"blk.1.ffn_{part}_exps.weight.in_sum2"].data[expert], rows.square().sum(0), rtol=1e-5
            )
        assert found["blk.1.ffn_up_exps.weight.counts"].data[expert].item() == len(rows)
        last = found["blk.1.ffn_down_exps.weight.in_sum2"].data[expert]
        assert np.allclose(last, between(experts, expert, rows).square().sum(0), rtol=1e-4)
    assert found["blk.1.ffn_down_exps.weight.counts"].data.sum() == 2 * 96


def between(experts, expert, rows):
    """What expert ``expert`` makes of ``rows`` before its last matrix, in float64."""
    first = experts.gate_up_proj[expert].detach().double()
    if getattr(experts, "alpha", None) is not None:  # gpt-oss
        made = rows @ first + experts.gate_up_proj_bias[expert].detach().double()
        gate, up = made[:, ::2].clamp(max=7.0), made[:, 1::2].clamp(-7.0, 7.0)
        return (up + 1) * gate * torch.sigmoid(1.702 * gate)
    gate, up = (rows @ first.t()).chunk(2, dim=-1)
    return torch.nn.functional.silu(gate) * up


def test_padding_counts_nothing_and_prepared_models_are_seen_before_rounding(tmp_path):
    model = build("llama")
    torchqat.imatrix(model, TOKENS[:1], tmp_path / "a.gguf")
    padded = torch.cat([TOKENS[0], torch.zeros(2, 5, dtype=torch.long)], dim=1)
    mask = torch.ones_like(padded)
    mask[:, 24:] = 0
    spec = "{dtype: int8, group_size: 32, scale_dtype: float16}"
    recipe = torchqat.parse_recipe(f"version: 1\nlayers: [{{match: 'model.layers.0.*', weight: {spec}}}]\n", "r.yaml")
    prepared = torchqat.prepare(model, recipe)
    assert isinstance(prepared.model.layers[0].mlp.up_proj, QuantLinear)
    torchqat.imatrix(prepared, [{"input_ids": padded, "attention_mask": mask}], tmp_path / "b.gguf")
    (_, one), (_, other) = read(tmp_path / "a.gguf"), read(tmp_path / "b.gguf")
    name = "blk.0.attn_q.weight"
    assert other[f"{name}.counts"].data.item() == 48
    assert np.allclose(one[f"{name}.in_sum2"].data, other[f"{name}.in_sum2"].data, rtol=1e-5)


def test_what_has_no_importance_matrix_is_refused(tmp_path):
    model = build("llama")
    with pytest.raises(torchqat.UserError, match=matches("imatrix.no-batch")):
        torchqat.imatrix(model, [], tmp_path / "a.gguf")
    with pytest.raises(torchqat.UserError, match=matches("imatrix.ending", path=tmp_path / "a.dat")):
        torchqat.imatrix(model, TOKENS, tmp_path / "a.dat")
    assert not list(tmp_path.iterdir())


def test_the_command_takes_the_data_that_ptq_calibrates_on(arguments, recipe_file, tmp_path, capsys):
    from conftest import PTQ

    recipe_file.write_text(PTQ)
    given = [str(one) for one in arguments]
    place = given.index("--output")
    file = tmp_path / "imatrix.gguf"
    code, out, err = call(capsys, "imatrix", *given[:place], *given[place + 2 :], "--output", file)
    assert code == 0, err
    values, found = read(file)
    assert said(out, "imatrix.written", file=file, count=len(found) // 2) and values["general.type"] == "imatrix"
    assert not (tmp_path / "run").exists()
