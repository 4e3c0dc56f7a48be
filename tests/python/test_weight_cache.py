"""``train.weight_cache``: quantize once per optimizer step, never too seldom, and always to the same bits."""

import copy
import pickle
from collections import Counter

import pytest
import torch
import torchqat
from loops import loop_for, settings
from sentences import matches
from small_net import Net, recipe_for
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torchqat import ops
from torchqat.training.recomputation import recompute_activations

POLICIES = ["none", "codes", "weights"]
WEIGHTS = [
    "{dtype: int4, group_size: 32}",
    "{dtype: int4, group_size: 32, grid: full, scale: learned}",
    "{dtype: int3, symmetric: false, scale: mse}",
]


def prepared(weight, policy, net=None):
    return torchqat.prepare(net or Net(), recipe_for(weight, rest=f"train: {{weight_cache: {policy}}}\n"))


class Calls(TorchDispatchMode):
    """Counts torchqat's operators."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "qat":
            self.counts[func._schema.name.split("::")[1]] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("weight", WEIGHTS)
def test_every_policy_trains_to_the_same_bits(weight, tiny_llama):
    states = []
    for policy in POLICIES:
        recipe = torchqat.parse_recipe(
            f'version: 1\nlayers: [{{match: "model.layers.*", weight: {weight}, '
            f"input: {{dtype: int8, granularity: token}}}}]\nschedule: [{{until: 40%, weight: int8}}, {{until: 100%}}]\n"
            f"train: {{weight_cache: {policy}, steps: 6, gradient_accumulation: 2}}\n"
        )
        torch.manual_seed(1)
        model = torchqat.prepare(copy.deepcopy(tiny_llama), recipe)
        section = settings(steps=6, gradient_accumulation=2, learning_rate=1e-2)
        loop = loop_for(model, section, schedule=lambda o, m=model, r=recipe: torchqat.Schedule(m, r, 6, o))
        states.append(loop.run().state_dict())
    for state in states[1:]:
        assert all(torch.equal(state[name], value) for name, value in states[0].items())


@pytest.mark.parametrize(("policy", "op"), [("codes", "encode"), ("weights", "fake_quantize")])
def test_a_weight_is_quantized_once_per_step(policy, op, tiny_llama):
    weight = "{dtype: int4, group_size: 32}"
    recipe = torchqat.parse_recipe(
        f'version: 1\nlayers: [{{match: "model.layers.*", weight: {weight}}}]\ntrain: {{weight_cache: {policy}}}\n'
    )
    model = torchqat.prepare(tiny_llama.train(), recipe)
    recompute_activations(model)
    layers = sum(isinstance(m, torchqat.QuantLinear) for m in model.modules())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    tokens = torch.randint(0, 400, (2, 16))
    for _ in range(2):
        calls = Calls()
        with calls:
            for _ in range(3):
                model(input_ids=tokens, labels=tokens).loss.backward()
        assert calls.counts[op] == layers
        optimizer.step()
        optimizer.zero_grad()


def test_codes_take_half_a_byte_and_scales():
    layer = prepared(WEIGHTS[0], "codes", nn.Sequential(nn.Linear(512, 256, bias=False)))[0]
    layer(torch.randn(2, 512))
    elements, groups = 512 * 256, 512 * 256 // 32
    assert layer._cache.bytes == elements // 2 + groups * (4 + 1)
    layer.forget_weight()
    assert layer._cache.bytes == 0


CHANGES = {
    "in place": lambda net: net.first.weight.mul_(1.5),
    "optimizer": lambda net: _sgd(net),
    "state_dict": lambda net: net.load_state_dict(
        {k: v * 1.5 if v.is_floating_point() else v for k, v in net.state_dict().items()}
    ),
    "width": lambda net: net.first.set_bits(6, 0),
    "replaced": lambda net: setattr(net.first, "weight", nn.Parameter(net.first.weight * 1.5)),
    "data": lambda net: (net.first.weight.data.copy_(net.first.weight * 1.5), net.first.forget_weight()),
}


def _sgd(net):
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    torch.optim.SGD(net.parameters(), lr=0.1).step()


@pytest.mark.parametrize("policy", ["codes", "weights"])
@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_never_missed(change, weight, policy):
    cached = prepared(weight, policy)
    x = torch.randn(3, 64)
    before = cached(x)
    with torch.no_grad():
        CHANGES[change](cached)
    fresh = prepared(weight, "none")
    fresh.load_state_dict(cached.state_dict())
    fresh.first.set_bits(cached.first.weight_bits, 0, derive=False)
    assert torch.equal(cached(x), fresh(x))
    assert not torch.equal(cached(x), before)


def test_a_schedule_clears_what_data_writes_hide():
    recipe = recipe_for(WEIGHTS[0], rest="train: {weight_cache: codes}\n")
    net = torchqat.prepare(Net(), recipe)
    schedule = torchqat.Schedule(net, recipe, 10)
    x = torch.randn(3, 64)
    before = net(x)
    net.first.weight.data.mul_(3.0)  # as optimizers that keep master weights elsewhere do
    schedule.step()
    assert not torch.equal(net(x), before)


@pytest.mark.parametrize("policy", ["codes", "weights"])
def test_fused_optimizers_move_no_version(policy):
    """Without a schedule, which would say that there was a step."""
    net = prepared(WEIGHTS[0], policy)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1, fused=True)
    x = torch.randn(3, 64)
    net(x).square().sum().backward()
    optimizer.step()
    fresh = prepared(WEIGHTS[0], "none")
    fresh.load_state_dict(net.state_dict())
    assert torch.equal(net(x), fresh(x))


def test_copies_and_pickles_begin_empty():
    net = prepared(WEIGHTS[1], "codes")
    x = torch.randn(3, 64)
    y = net(x)
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert twin.first._cache.policy == "codes" and twin.first._cache.bytes == 0
        assert torch.equal(twin(x), y)


def test_inference_mode_weights_are_not_kept():
    with torch.inference_mode():
        net = prepared(WEIGHTS[0], "codes")
        x = torch.randn(3, 64)
        assert torch.equal(net(x), net(x))
        assert net.first._cache.bytes == 0


def test_an_unknown_policy_is_one_sentence():
    word = {"known": "auto, none, codes or weights", "value": "all"}
    with pytest.raises(ValueError, match=matches("settings.unknown-word", setting="weight_cache", **word)):
        torchqat.prepare(Net(), recipe_for(WEIGHTS[0]), weight_cache="all")
    with pytest.raises(torchqat.RecipeError, match=matches("recipe.unknown-word", key="train.weight_cache", **word)):
        recipe_for(WEIGHTS[0], rest="train: {weight_cache: all}\n")


def test_kept_memory_is_used_again_and_given_back():
    ops.release_kept_memory()
    base = ops.kept_bytes()
    x = torch.randn(512, 512)
    first = ops.fake_quantize_dynamic(x, (1, 32), 4)[0]
    address, kept = first.data_ptr(), first.clone()
    second = ops.fake_quantize_dynamic(x * 2, (1, 32), 4)[0]
    assert second.data_ptr() != address and torch.equal(first, kept)  # a result that is in use stays
    del first
    assert ops.fake_quantize_dynamic(x, (1, 32), 4)[0].data_ptr() == address
    assert ops.kept_bytes() > base
    del second
    ops.release_kept_memory()
    assert ops.kept_bytes() == base


def exchange(net):
    """As averages of weights are put in the place of them by those who write through ``.data``."""
    for parameter in net.parameters():
        parameter.data.copy_(parameter.data * 1.5)


@pytest.mark.parametrize("policy", ["codes", "weights"])
def test_weights_that_were_exchanged_to_be_evaluated_are_those_that_are(policy):
    cached = prepared(WEIGHTS[0], policy)
    x = torch.randn(3, 64)
    before = cached(x)
    exchange(cached)
    cached.eval()
    fresh = prepared(WEIGHTS[0], "none")
    fresh.load_state_dict(cached.state_dict())
    assert torch.equal(cached(x), fresh(x)) and not torch.equal(cached(x), before)
    exchange(cached)
    fresh.load_state_dict(cached.state_dict())
    assert torch.equal(cached.train()(x), fresh(x))


def test_what_is_exported_is_what_the_model_computes_with(tmp_path):
    cached = prepared(WEIGHTS[0], "weights")
    cached(torch.randn(3, 64))
    exchange(cached)
    torchqat.export(cached, tmp_path / "out", "safetensors")
    for layer, stored in zip((cached.first, cached.second), torchqat.convert(cached), strict=True):
        assert torch.equal(layer(torch.eye(layer.in_features)).T, stored.dequantize() + _bias(layer))


def _bias(layer):
    return 0.0 if layer.bias is None else layer.bias[:, None]
