"""Blocks of any architecture are calibrated on what the model gives them, whatever they take and return."""

import copy
from collections import UserDict

import architectures
import pytest
import torch
import torchqat
import transformers
from sentences import sentence
from torch import nn
from torchqat.layers.prepared import quant_layers
from torchqat.model.blocks import block_lists, find_blocks
from torchqat.ptq.block import in_floating_point, keeping_no_caches
from torchqat.ptq.blocks import cut_into_rows, open_blocks

WEIGHT = "{dtype: int4, granularity: channel, grid: full, scale: mse}"
TEXT = 'version: 1\nlayers:\n  - match: "{match}"\n    weight: {weight}\ninitialize: {initialize}\n'


def prepared(model, match="*", initialize="{method: gptq}"):
    text = TEXT.format(match=match, weight=WEIGHT, initialize=initialize)
    return torchqat.prepare(copy.deepcopy(model).eval(), torchqat.parse_recipe(text, "recipe"))


def forward(model, batch):
    return model(**batch) if isinstance(batch, dict) else model(batch)


def ids(count=3, rows=2, length=16, **others):
    generator = torch.Generator().manual_seed(0)
    found = [torch.randint(3, 100, (rows, length), generator=generator) for _ in range(count)]
    return [{"input_ids": batch, **{name: other(batch) for name, other in others.items()}} for batch in found]


def padded(batch):
    """A mask of each batch's own."""
    lengths = torch.tensor([batch.shape[1], 4 + int(batch[0, 0]) % 8])
    return (torch.arange(batch.shape[1]) < lengths[:, None]).long()


def images(batch):
    return torch.randn(len(batch), 3, 32, 32, generator=torch.Generator().manual_seed(int(batch[0, 0])))


SIZES = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "vocab_size": 100,
    "intermediate_size": 96,
}
T5 = {"d_model": 64, "d_kv": 16, "d_ff": 96, "num_layers": 3, "num_heads": 4, "vocab_size": 100}
STRANGERS = {
    "llama": (
        lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, num_key_value_heads=2)),
        ids(attention_mask=padded),
    ),
    "t5": (
        lambda: transformers.T5ForConditionalGeneration(transformers.T5Config(**T5, decoder_start_token_id=0)),
        ids(attention_mask=padded, decoder_input_ids=lambda batch: batch),
    ),
    "deberta": (
        lambda: transformers.DebertaV2ForSequenceClassification(
            transformers.DebertaV2Config(**SIZES, relative_attention=True, position_buckets=16, conv_kernel_size=3)
        ),
        ids(attention_mask=padded),
    ),
    "xlnet": (
        lambda: transformers.XLNetForSequenceClassification(
            transformers.XLNetConfig(d_model=64, n_layer=3, n_head=4, d_inner=96, vocab_size=100)
        ),
        ids(attention_mask=padded),
    ),
    "swin": (
        lambda: transformers.SwinForImageClassification(
            transformers.SwinConfig(
                image_size=32, patch_size=4, embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=4
            )
        ),
        [{"pixel_values": images(batch["input_ids"])} for batch in ids(3)],
    ),
    "rwkv": (
        lambda: transformers.RwkvForCausalLM(
            transformers.RwkvConfig(hidden_size=64, num_hidden_layers=3, vocab_size=100, attention_hidden_size=64)
        ),
        ids(),
    ),
    "xlm": (
        lambda: transformers.XLMForSequenceClassification(
            transformers.XLMConfig(emb_dim=64, n_layers=2, n_heads=4, n_words=100, vocab_size=100)
        ),
        ids(attention_mask=padded),
    ),
    "funnel": (
        lambda: transformers.FunnelForSequenceClassification(
            transformers.FunnelConfig(vocab_size=100, d_model=64, n_head=4, d_head=16, d_inner=96, block_sizes=[1, 2])
        ),
        ids(attention_mask=padded),
    ),
    "pvt": (
        lambda: transformers.PvtForImageClassification(
            transformers.PvtConfig(
                image_size=32, num_encoder_blocks=2, depths=[2, 1], hidden_sizes=[16, 32], num_attention_heads=[1, 2],
                sequence_reduction_ratios=[2, 1], patch_sizes=[4, 2], strides=[4, 2], mlp_ratios=[2, 2],
            )
        ),
        [{"pixel_values": images(batch["input_ids"])} for batch in ids(3)],
    ),
    "fsmt": (
        lambda: transformers.FSMTForConditionalGeneration(
            transformers.FSMTConfig(
                d_model=64, encoder_layers=2, decoder_layers=2, encoder_ffn_dim=96, decoder_ffn_dim=96, src_vocab_size=100,
                tgt_vocab_size=100, encoder_attention_heads=4, decoder_attention_heads=4, max_position_embeddings=64,
            )
        ),
        ids(attention_mask=padded, decoder_input_ids=lambda batch: batch),
    ),
    "albert": (
        lambda: transformers.AlbertForSequenceClassification(transformers.AlbertConfig(**SIZES, embedding_size=32)),
        ids(attention_mask=padded),
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def models():
    made = {}

    def build(name):
        if name not in made:
            torch.manual_seed(0)
            made[name] = STRANGERS[name][0]().eval()
        return made[name]

    return build


def main(output):
    while not isinstance(output, torch.Tensor):
        output = output[0] if isinstance(output, (tuple, list)) else next(iter(output.values()))
    return output


def given(model, blocks, batches, run=forward):
    """What each block gives in the model's own forwards, in order, without a cache."""
    found = {block.name: [] for block in blocks}
    handles = [
        block.module.register_forward_hook(lambda _m, _args, output, name=block.name: found[name].append(main(output)))
        for block in blocks
    ]
    with torch.no_grad():
        for batch in batches:
            run(model, batch)
    for handle in handles:
        handle.remove()
    return found


def assert_blocks_give_what_the_model_makes_them_give(model, batches):
    """Row after row, as ``calibrate`` goes through them, but that nothing is rounded."""
    ready = prepared(model)
    with in_floating_point(ready), keeping_no_caches(ready), torch.no_grad():
        found = cut_into_rows(ready, batches, forward)
        blocks = [block for row in found.rows for block in row.blocks]
        assert all(block.name for block in blocks)
        expected = given(ready, blocks, batches)
        for row in found.rows:
            entering = row.open(ready, batches, forward)
            for block in row.blocks:
                entering = [block.run(index, tokens) for index, tokens in enumerate(entering)]
                assert len(entering) == len(expected[block.name]) > 0
                for ours, theirs in zip(entering, expected[block.name], strict=True):
                    torch.testing.assert_close(main(ours), theirs, rtol=1e-5, atol=1e-5)
    return found


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


# -- modules of one's own ---------------------------------------------------------------------------------------------


class Part(nn.Module):
    def __init__(self, size=32):
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(size), nn.Linear(size, size)

    def forward(self, x):
        return x + self.linear(self.norm(x)).relu()


class Net(nn.Module):
    def __init__(self, count=3, part=Part):
        super().__init__()
        self.layers = nn.ModuleList(part() for _ in range(count))

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


class Unfinished(Net):
    """Its last block is for training alone."""

    def forward(self, x):
        for layer in self.layers[:2]:
            x = layer(x)
        return x


class Named(Net):
    def forward(self, x):
        for layer in self.layers:
            x = layer(x=x)
        return x


class Skips(Net):
    """Its last block is given what the first gave, besides."""

    def forward(self, x):
        first = self.layers[0](x)
        return self.layers[2](self.layers[1](first) + first)


class Loops(Net):
    def forward(self, x):
        for _ in range(2):
            x = super().forward(x)
        return x


class Carries(nn.Module):
    """Adds to what the blocks after it read, apart from the hidden states."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(32, 32)

    def forward(self, x, gate=None):
        x = x + self.linear(x).relu() * (1.0 if gate is None else gate)
        return {"gate": x.sigmoid(), "x": x, "note": "of no use"}


class Side(Net):
    def __init__(self):
        super().__init__(part=Carries)

    def forward(self, x):
        gate = None
        for layer in self.layers:
            found = layer(x, gate=gate)
            x, gate = found["x"], found["gate"]
        return x


class Counts(Part):
    """Gives another result each time."""

    count = 0

    def forward(self, x):
        self.count += 1
        return super().forward(x) * self.count


class Towers(nn.Module):
    """One of its lists of blocks runs only where a batch has an image."""

    def __init__(self):
        super().__init__()
        self.vision = nn.ModuleList(Part() for _ in range(2))
        self.layers = nn.ModuleList(Part() for _ in range(2))

    def forward(self, x, image=None):
        if image is not None:
            for layer in self.vision:
                image = layer(image)
            x = x + image
        for layer in self.layers:
            x = layer(x)
        return x


class Keeps(nn.Module):
    """The first leaves what it computed in a store that later ones read, as where layers share keys and values."""

    def __init__(self):
        super().__init__()
        self.linear, self.first = nn.Linear(32, 32), False

    def forward(self, x, store):
        given = self.linear(x)
        if self.first:
            store["given"] = given.sigmoid()
        return x + given * store["given"]


class Store(Net):
    def __init__(self):
        super().__init__(part=Keeps)
        self.layers[0].first = True

    def forward(self, x):
        store = UserDict()
        for layer in self.layers:
            x = layer(x, store=store)
        return x


VECTORS = [torch.randn(64, 32, generator=torch.Generator().manual_seed(seed)) for seed in range(4)]


@pytest.mark.parametrize("kind", [Net, Unfinished, Named, Skips, Loops, Side, Store])
def test_modules_of_ones_own(kind):
    torch.manual_seed(0)
    assert_blocks_give_what_the_model_makes_them_give(kind(), VECTORS)
    torchqat.calibrate(prepared(kind(), initialize="{method: awq+gptq}"), VECTORS)


def test_blocks_that_run_for_some_batches_are_calibrated_on_these():
    torch.manual_seed(0)
    model = Towers()
    batches = [{"x": x} for x in VECTORS[:2]] + [{"x": x, "image": x + 1.0} for x in VECTORS[2:]]
    assert_blocks_give_what_the_model_makes_them_give(model, batches)
    ready = prepared(model)
    found = torchqat.calibrate(ready, batches)
    assert not found.warnings
    assert found.tokens["vision.1.linear"] == 128 and found.tokens["layers.1.linear"] == 256


def test_what_blocks_leave_for_later_ones_is_not_the_float_models():
    """The float copies, which are run beside for the drift, leave theirs elsewhere."""
    torch.manual_seed(0)
    ready = prepared(Store())
    row = cut_into_rows(ready, VECTORS, forward).rows[0]
    row.open(ready, VECTORS, forward)
    block = row.blocks[0]
    ours, theirs = block.calls[0].arguments[1]["store"], block.twins[0].arguments[1]["store"]
    assert ours is not theirs
    assert ours is row.blocks[1].calls[0].arguments[1]["store"]
    assert theirs is row.blocks[1].twins[0].arguments[1]["store"]


def test_what_is_no_row_is_said_once():
    torch.manual_seed(0)
    assert torchqat.calibrate(prepared(Net()), VECTORS).warnings == []
    assert torchqat.calibrate(prepared(Skips()), VECTORS).warnings == [
        sentence("ptq.one-block-alone", block="layers.2"),
    ]
    assert torchqat.calibrate(prepared(Loops()), VECTORS).warnings == [
        sentence("ptq.blocks-alone", count=3, block="layers.0"),
    ]


def test_blocks_that_do_not_run_are_rounded_to_nearest_and_said():
    torch.manual_seed(0)
    ready = prepared(Unfinished())
    assert torchqat.calibrate(ready, VECTORS).warnings == [sentence("ptq.one-block-idle", block="layers.2")]
    last = ready.layers[2].linear
    scale, zero = torchqat.ops.choose_qparams(last.weight, (1, -1), 4, "full", "mse", last.weight_spec.scale_dtype)
    torch.testing.assert_close(last.weight_scale.flatten().float(), scale.flatten().float())
    more = Unfinished(4)
    assert torchqat.calibrate(prepared(more), VECTORS).warnings == [
        sentence("ptq.blocks-idle", count=2, block="layers.2")
    ]


def test_blocks_that_change_when_they_run_are_left_in_the_model():
    torch.manual_seed(0)
    found = torchqat.calibrate(prepared(Net(part=Counts)), VECTORS)
    assert found.warnings == [sentence("ptq.block-not-again", block="layers.0")] and len(found.losses) == 3


def test_an_input_after_a_skip_is_what_the_quantized_blocks_give():
    """The statistics of GPTQ, seen by what it makes of the last block: as if that alone were quantized after the others."""
    torch.manual_seed(0)
    model = Skips()
    ready = prepared(model, initialize="{method: gptq, correction: 0}")
    torchqat.calibrate(ready, VECTORS)
    alone = prepared(model, "layers.2.linear", "{method: gptq, correction: 0}")
    with torch.no_grad():
        inputs = [first + ready.layers[1](first) for first in map(ready.layers[0], VECTORS)]
    torchqat.calibrate(alone, inputs, lambda net, batch: net.layers[2](batch))
    assert torch.equal(ready.layers[2].linear.quantized_weight(), alone.layers[2].linear.quantized_weight())


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


def test_memory_between_two_blocks_is_the_hidden_states():
    """What is recorded holds no hidden states but those that enter the row."""
    ready = prepared(architectures.build("Llama"))
    batches = architectures.tokens()
    row = cut_into_rows(ready, batches, forward).rows[0]
    entering = row.open(ready, batches, forward)
    kept = {t.data_ptr() for block in row.blocks for call in block.calls for _, t in call.tensors()}
    assert not kept & {t.data_ptr() for t in entering}
    assert len(kept) <= 3 * len(batches)  # cosines, sines and positions, which all blocks share


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


def test_a_cache_that_the_caller_leaves_on_changes_nothing():
    model = architectures.build("Gemma2")
    weights = []
    for options in ({}, {"use_cache": False}):
        ready = torchqat.prepare(copy.deepcopy(model), architectures.recipe("{method: gptq}"))
        torchqat.calibrate(ready, architectures.tokens(), lambda m, batch, o=options: m(batch, **o))
        weights.append([layer.quantized_weight() for _, layer in quant_layers(ready)])
        assert ready.config.use_cache
    assert all(torch.equal(one, other) for one, other in zip(*weights, strict=True))
