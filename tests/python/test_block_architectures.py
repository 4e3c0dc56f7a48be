"""Blocks of other architectures are calibrated on what the models give them, whatever they take and return."""

import pytest
import torch
import torchqat
from block_models import STRANGERS, assert_blocks_give_what_the_model_makes_them_give, forward, main, prepared
from sentences import sentence
from torchqat.layers.prepared import quant_layers
from torchqat.model.blocks import block_lists, find_blocks
from torchqat.ptq.block import in_floating_point
from torchqat.ptq.blocks import cut_into_rows, open_blocks


@pytest.fixture(scope="module")
def models():
    made = {}

    def build(name):
        if name not in made:
            torch.manual_seed(0)
            made[name] = STRANGERS[name][0]().eval()
        return made[name]

    return build


@pytest.mark.parametrize("name", STRANGERS)
def test_each_block_gives_what_it_gives_in_the_model(name, models):
    found = assert_blocks_give_what_the_model_makes_them_give(models(name), STRANGERS[name][1])
    rows = [[block.name for block in row.blocks] for row in found.rows]
    if name in ("llama", "rwkv", "swin", "xlnet"):
        assert len(rows) == 1 and not found.warnings
    if name in ("t5", "fsmt"):
        assert len(rows) == 2 and len(rows[0]) == len(rows[1]) and not found.warnings
    if name == "deberta":  # a convolution comes between its first blocks
        assert [len(row) for row in rows] == [1, 2] and found.alone == ["deberta.encoder.layer.1"]
    if name == "albert":
        assert found.rows[0].blocks[0].looped and len(rows) == 1 and found.alone


@pytest.mark.parametrize("name", STRANGERS)
@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_every_layer_of_a_block_is_reached(name, method, models):
    ready = prepared(models(name), initialize=f"{{method: {method}}}")
    found = torchqat.calibrate(ready, STRANGERS[name][1])
    names = {layer for layer, _ in quant_layers(ready)}
    inside = {layer for block, module in find_blocks(ready) for layer in names if layer.startswith(block + ".")}
    unreached = [warning for warning in found.warnings if "never reached" in warning]
    assert inside and not unreached, unreached
    assert all(found.tokens[layer] > 0 for layer in inside if layer in found.losses)
    with torch.no_grad():
        assert all(torch.isfinite(main(forward(ready, batch))).all() for batch in STRANGERS[name][1])


def test_a_decoder_is_calibrated_on_what_the_quantized_encoder_gives(models):
    batches = STRANGERS["t5"][1]
    ready = prepared(models("t5"), "*block*")
    seen = []
    decoder = ready.decoder.block[0].layer[1].EncDecAttention.k
    torchqat.calibrate(ready, batches)
    handle = decoder.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    with torch.no_grad():
        forward(ready, batches[0])
        with in_floating_point(ready.encoder):
            forward(ready, batches[0])
    handle.remove()
    row = cut_into_rows(ready, batches, forward).rows[1]
    row.open(ready, batches, forward)
    recorded = next(t for _, t in row.blocks[0].calls[0].tensors() if t.shape == seen[0].shape)
    assert torch.equal(recorded, seen[0]) and not torch.equal(seen[0], seen[1])


# -- lists of blocks --------------------------------------------------------------------------------------------------


def test_lists_of_blocks_are_the_outermost(models):
    def lists(name):
        return [[block for block, _ in blocks] for blocks in block_lists(prepared(models(name)))]

    assert lists("llama") == [[f"model.layers.{i}" for i in range(3)]]
    assert lists("t5") == [[f"{side}.block.{i}" for i in range(3)] for side in ("encoder", "decoder")]
    assert lists("swin") == [["swin.encoder.layers.0", "swin.encoder.layers.1"]]
    assert ["funnel.encoder.blocks.1.0", "funnel.encoder.blocks.1.1"] in lists("funnel")
    assert ["pvt.encoder.block.0.0", "pvt.encoder.block.0.1"] in lists("pvt")


def test_a_decoder_only_model_is_one_row(models):
    blocks, entering = open_blocks(prepared(models("llama")), STRANGERS["llama"][1], forward)
    assert [block.name for block in blocks] == [f"model.layers.{i}" for i in range(3)] and len(entering) == 3
    whole, batches = open_blocks(prepared(models("t5")), STRANGERS["t5"][1], forward)
    assert [block.name for block in whole] == [""] and batches == STRANGERS["t5"][1]


# -- masks and training of blocks -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "t5", "deberta", "swin"])
def test_blocks_are_trained_under_the_masks_of_their_batches(name, models):
    from torchqat.ptq.sequences import join_sequences

    ready = prepared(models(name))
    batches = STRANGERS[name][1]
    with in_floating_point(ready), torch.no_grad():
        row = cut_into_rows(ready, batches, forward).rows[-1]
        entering = row.open(ready, batches, forward)
        block = row.blocks[0]
        joined = join_sequences(block, entering)
        assert len(joined) == 6
        expected = torch.cat([main(block.run(index, tokens)) for index, tokens in enumerate(entering)])
        order = torch.tensor([5, 0, 3])
        torch.testing.assert_close(main(block.make(joined.of(order))), expected[order], rtol=1e-4, atol=1e-5)


def test_blocks_whose_sequences_cannot_be_taken_apart_are_said(models):
    ready = prepared(
        models("xlnet"), "*layer*", "{method: gptq, block_training: {steps: 2}}"
    )  # [tokens, sequences, size]
    found = torchqat.calibrate(ready, STRANGERS["xlnet"][1])
    assert sentence("ptq.block-not-trained", block="transformer.layer.0") in found.warnings
