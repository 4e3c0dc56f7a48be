"""Models whose blocks take and give all kinds of things, and what they give in the models' own forwards."""

import copy

import torch
import torchqat
import transformers
from torchqat.ptq.block import in_floating_point, keeping_no_caches
from torchqat.ptq.blocks import cut_into_rows

WEIGHT = "{dtype: int4, granularity: channel, grid: full, scale: mse}"
TEXT = """version: 1
layers:
  - {{match: "{match}", weight: {weight}, allow_float: true}}
{left}initialize: {initialize}
"""
# Weights that a model reads past the layer, which stay in floating point.
LEFT = {"RwkvForCausalLM": ("*.attention.output", "*.feed_forward.value")}


def prepared(model, match="*", initialize="{method: gptq}"):
    left = "".join(f'  - {{match: "{name}", weight: float}}\n' for name in LEFT.get(type(model).__name__, ()))
    text = TEXT.format(match=match, weight=WEIGHT, left=left, initialize=initialize)
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
