"""Batches that functions are given: what are none is told in a sentence, before a model runs or a file is written."""

import copy

import pytest
import torch
import torchqat
import transformers
from sentences import matches
from small_net import Net, recipe_for
from torchqat.model.vocabulary import check_ids
from torchqat.sensitivity import sensitivity

IDS = torch.arange(32).view(2, 16)
LAYERS = "version: 1\nlayers: [{match: 'model.layers.*', weight: {dtype: int4, group_size: 32}}]\n"
TAKERS = ["calibrate", "calibrate rtn", "evaluate", "sensitivity", "imatrix", "quantize_folder"]


def recipe(extra):
    return torchqat.parse_recipe(LAYERS + extra, "recipe")


@pytest.fixture(params=TAKERS)
def take(request, tiny_llama, tmp_path):
    """A function of batches, each of those that there are in turn."""
    gptq = recipe("initialize: {method: gptq}\nexport: [compressed-tensors]\n")

    def quantize_folder(batches):
        tiny_llama.save_pretrained(tmp_path / "model")
        try:
            return torchqat.quantize_folder(tmp_path / "model", tmp_path / "out", gptq, batches)
        except torchqat.UserError:
            assert not (tmp_path / "out").exists()
            raise

    return {
        "calibrate": lambda batches: torchqat.calibrate(torchqat.prepare(copy.deepcopy(tiny_llama), gptq), batches),
        "calibrate rtn": lambda batches: torchqat.calibrate(
            torchqat.prepare(copy.deepcopy(tiny_llama), recipe("")), batches
        ),
        "evaluate": lambda batches: torchqat.evaluate(tiny_llama, batches, tiny_llama),
        "sensitivity": lambda b: sensitivity(tiny_llama, torchqat.make_plan(tiny_llama, gptq), b, [4]),
        "imatrix": lambda batches: torchqat.imatrix(tiny_llama, batches, tmp_path / "i.gguf"),
        "quantize_folder": quantize_folder,
    }[request.param]


def refuses(take, batches, sentence):
    with pytest.raises(torchqat.UserError, match=sentence):
        take(batches)


def test_what_is_one_batch_or_none(take):
    refuses(take, "text.txt", matches("given.text", given="'text.txt'"))
    refuses(take, {"input_ids": IDS}, matches("given.one-by-name", type="dict", names="input_ids"))
    refuses(take, IDS, matches("given.one-tensor", shape=[2, 16]))
    for given, what in ((None, "None"), (3, "3"), (torch.nn.Identity(), "a Identity")):
        refuses(take, given, matches("given.nothing-to-go-through", given=what))


def test_iterators_that_give_none(take):
    used = (IDS for _ in range(2))
    assert len(list(used)) == 2
    for given in (used, iter([]), (IDS for _ in [])):
        refuses(take, given, matches("given.none-left"))


def test_batches_without_tensors(take):
    for given, what in (("hello", "'hello'"), (None, "None"), ([5, 6], "a list of 2 elements without any")):
        refuses(take, [given], matches("given.no-tensor", what=what))
    refuses(take, [{"input_ids": [[1, 2]]}], matches("given.no-tensor-by-name", type="dict", names="input_ids"))
    refuses(take, [IDS.numpy()], matches("given.array"))
    refuses(take, [IDS[:0]], matches("given.empty-tensor", shape=[0, 16]))


def test_tokens_that_the_model_does_not_embed(take):
    for given in (IDS[0], IDS.float()):
        dtype = str(given.dtype).removeprefix("torch.")
        refuses(take, [given], matches("given.no-tokens", dtype=dtype, shape=list(given.shape)))
    for given, wrong in ((IDS + 400, 431), (IDS - 1, -1)):
        refuses(take, [given], matches("given.other-tokens", kind="LlamaForCausalLM", last=399, token=wrong))


def test_batches_that_are_such_are_taken_as_before(take):
    assert take(iter([IDS]))
    assert take([transformers.BatchEncoding({"input_ids": IDS, "attention_mask": IDS * 0 + 1, "labels": IDS})])


@pytest.mark.parametrize(
    "kind, given, found",
    [
        ("causal_lm", {"input_ids": IDS}, "without labels"),
        ("causal_lm", (IDS,), "1 by place"),
        ("classifier", IDS, "one tensor"),
        ("sentence_encoder", {"input_ids": IDS}, "without attention_mask"),
        ("seq2seq", {"input_ids": IDS, "labels": IDS}, "without decoder_input_ids"),
    ],
)
def test_what_a_kind_is_measured_on(tiny_llama, kind, given, found):
    for take in (
        lambda: torchqat.evaluate(tiny_llama, [given], kind=kind),
        lambda: sensitivity(tiny_llama, torchqat.make_plan(tiny_llama, recipe("")), [given], [4], kind),
    ):
        with pytest.raises(torchqat.UserError, match=matches("given.not-measured", kind=kind, found=found)):
            take()


def test_importance_matrices_count_ids(tiny_llama, tmp_path):
    with pytest.raises(torchqat.UserError, match=matches("given.no-ids", type="tuple")):
        torchqat.imatrix(tiny_llama, [(IDS,)], tmp_path / "i.gguf")


def test_a_forward_of_the_users_takes_what_it_likes_and_need_return_nothing():
    net = torchqat.prepare(Net(), recipe_for("{dtype: int8}", "{dtype: int8, granularity: tensor}"))

    def forward(model, batch):
        model(torch.full((1, 64), float(batch)))

    assert torchqat.calibrate(net, ["2", "3"], forward).ranges["first"] == (2.0, 3.0)
    assert torchqat.calibrate(net, torch.tensor([4.0, 5.0]), forward).ranges["first"] == (4.0, 5.0)
    with pytest.raises(torchqat.UserError, match=matches("given.text")):
        torchqat.calibrate(net, "23", forward)


def test_one_of_several_tensors_may_be_empty_and_embeddings_be_given_for_tokens(tiny_llama):
    embedded = {"inputs_embeds": tiny_llama.get_input_embeddings()(IDS).detach(), "labels": IDS}
    found = torchqat.evaluate(tiny_llama, [embedded])
    assert found.perplexity == pytest.approx(torchqat.evaluate(tiny_llama, [IDS]).perplexity)
    seen = []
    net = torchqat.prepare(Net(), recipe_for("{dtype: int8}", "{dtype: int8, granularity: tensor}"))
    net.register_forward_pre_hook(lambda _, args: (seen.append(args[1].shape), args[0])[1])
    torchqat.calibrate(net, [(torch.randn(2, 64), torch.zeros(0, 4))])
    assert seen and all(shape == (0, 4) for shape in seen)


def test_tokens_are_not_counted_by_what_stands_for_a_sharded_weight(tiny_llama):
    tiny_llama.get_input_embeddings().weight.data = torch.zeros(0)  # as DeepSpeed ZeRO-3 has it outside of a forward
    check_ids(tiny_llama, IDS)
