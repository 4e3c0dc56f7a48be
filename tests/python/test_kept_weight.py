"""Weights that layers keep rounded: filled in one call after a step, on the streams of a GPU, and as ``auto`` decides."""

import copy
import pickle
import re

import pytest
import torch
import torchqat
from gpu import CUDA, Gpu
from sentences import matches
from small_net import Net, recipe_for
from test_weight_cache import WEIGHTS, Calls
from torch import nn
from torchqat.layers.cache_choice import settle
from torchqat.layers.kept_weight import Maker
from torchqat.layers.prepared import quant_layers

STAGES = "schedule: [{until: 40%, weight: int8}, {until: 100%}]\n"


def recipe(weight, policy, rest=""):
    return recipe_for(weight, rest=f"{rest}train: {{weight_cache: {policy}}}\n")


# -- one call ----------------------------------------------------------------------------------------------------------


def behind_torchs_back(net):
    """A step of an optimizer that writes through ``.data``."""
    for parameter in net.parameters():
        if parameter.grad is not None:
            parameter.data.sub_(0.1 * parameter.grad)


def in_place(net):
    torch.optim.SGD(net.parameters(), lr=0.1).step()


def trained(weight, policy, update, frozen, micro_batches):
    torch.manual_seed(0)
    plan = recipe(weight, policy, STAGES)
    net = torchqat.prepare(Net(), plan)
    net.first.weight.requires_grad_(not frozen)
    schedule = torchqat.Schedule(net, plan, 5)
    x, outputs = torch.randn(3, 64), []
    for _ in range(5):
        for batch in x.repeat(micro_batches, 1, 1):
            outputs.append(net(batch))
            outputs[-1].square().sum().backward()
        update(net)
        net.zero_grad()
        schedule.step()
    return [*outputs, *net.state_dict().values()]


@pytest.mark.parametrize("policy", ["codes", "weights"])
@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("update", [in_place, behind_torchs_back])
@pytest.mark.parametrize(("frozen", "micro_batches"), [(False, 1), (False, 2), (True, 1)])
def test_one_call_trains_to_the_bits_of_each_forward(policy, weight, update, frozen, micro_batches):
    expected = trained(weight, "none", update, frozen, micro_batches)
    found = trained(weight, policy, update, frozen, micro_batches)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize(("policy", "op"), [("codes", "encode"), ("weights", "fake_quantize")])
def test_no_forward_rounds_what_a_step_has_rounded(policy, op):
    plan = recipe(WEIGHTS[0], policy)
    net = torchqat.prepare(Net(), plan)
    schedule = torchqat.Schedule(net, plan, 5)
    x = torch.randn(3, 64)
    net(x)
    in_step, in_forward = Calls(), Calls()
    with in_step:
        schedule.step()
    with in_forward:
        net(x).sum().backward()
    assert in_step.counts[op] == len(quant_layers(net)) and in_forward.counts[op] == 0


def test_a_layer_that_moves_keeps_nothing():
    net = torchqat.prepare(Net(), recipe(WEIGHTS[0], "weights"))
    net(torch.randn(3, 64))
    assert net.first._cache.bytes > 0
    net.to(torch.float64).to(torch.float32)
    assert net.first._cache.bytes == 0


# -- streams -----------------------------------------------------------------------------------------------------------


class Stream:
    def __init__(self, name, news):
        self.name, self.news = name, news

    def record_event(self):
        self.news.append(f"recorded on {self.name}")
        return self.name

    def wait_event(self, event):
        self.news.append(f"{self.name} waits for {event}")


class Streams:
    """torch's functions about streams, of which a machine without a GPU has none."""

    def __init__(self, monkeypatch):
        self.news, self.capturing = [], False
        self.streams = {name: Stream(name, self.news) for name in ("first", "second")}
        self.current = "first"
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: self.capturing)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: self.streams[self.current])
        monkeypatch.setattr(
            torch.Tensor, "record_stream", lambda _, stream: self.news.append(f"kept for {stream.name}")
        )


@pytest.fixture
def gpu():
    with Gpu() as gpu:
        yield gpu


@pytest.fixture
def streams(monkeypatch):
    return Streams(monkeypatch)


def net_there(policy):
    net = nn.Sequential(nn.Linear(64, 96, device=CUDA), nn.Linear(96, 32, device=CUDA))
    plan = torchqat.parse_recipe(
        f'version: 1\nlayers: [{{match: "*", weight: {WEIGHTS[0]}}}]\ntrain: {{weight_cache: {policy}}}\n', "r.yaml"
    )
    return torchqat.prepare(net, plan), plan


def asked(net):
    return net[0]._kept_weight(torch.empty(3, 64, device=CUDA), *net[0]._weight_parameters())


def test_another_stream_waits_for_the_one_that_made_it(gpu, streams):
    net, _ = net_there("weights")
    assert asked(net)[0].device == CUDA and streams.news == ["recorded on first"]
    asked(net)
    assert streams.news == ["recorded on first"]
    streams.current = "second"
    tensors = asked(net)
    assert streams.news[1:] == ["second waits for first", *["kept for second"] * len(tensors)]
    with torch.no_grad():
        net[0].weight.mul_(2)
    asked(net)
    assert streams.news[-1] == "recorded on second"


def test_what_one_call_made_is_of_the_stream_of_that_call(gpu, streams):
    net, plan = net_there("weights")
    schedule = torchqat.Schedule(net, plan, 5)
    net(torch.empty(3, 64, device=CUDA))
    streams.news.clear()
    schedule.step()
    assert streams.news == ["recorded on first"]  # once for all layers
    streams.current = "second"
    asked(net)
    assert streams.news[1] == "second waits for first"


@pytest.mark.parametrize("policy", ["codes", "weights"])
def test_a_graph_that_is_captured_rounds_inside(policy, gpu, streams):
    net, plan = net_there(policy)
    assert asked(net)
    streams.capturing = True
    assert asked(net) == []
    made = net[0]._cache.version
    torchqat.Schedule(net, plan, 5).step()
    assert net[0]._cache.version == made
    streams.capturing = False
    assert asked(net)


def test_the_host_has_no_streams(monkeypatch):
    def refuse(*_):
        raise AssertionError("asked for a stream")

    for name in ("is_current_stream_capturing", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, refuse)
    plan = recipe(WEIGHTS[0], "weights")
    net = torchqat.prepare(Net(), plan)
    net(torch.randn(3, 64))
    torchqat.Schedule(net, plan, 5).step()
    net(torch.randn(3, 64))


def test_a_maker_is_not_copied():
    maker = Maker()
    maker._version = 7
    assert {twin._version for twin in (copy.deepcopy(maker), pickle.loads(pickle.dumps(maker)))} == {-1}


# -- auto --------------------------------------------------------------------------------------------------------------


def policies(net):
    return {layer._cache.policy for _, layer in quant_layers(net)}


def test_a_cpu_keeps_nothing():
    plan = recipe_for(WEIGHTS[0])
    notes, net = [], torchqat.prepare(Net(), plan)
    schedule = torchqat.Schedule(net, plan, 5, say=notes.append)
    assert policies(net) == {"auto"} and schedule.weight_cache is None
    net(torch.randn(3, 64))
    schedule.step()
    assert policies(net) == {"none"} and schedule.weight_cache.policy == "none" and not notes


def test_a_gpu_with_memory_keeps_the_weights_and_says_so(gpu, streams, monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2**34, 2**35))
    notes, (net, plan) = [], net_there("auto")
    schedule = torchqat.Schedule(net, plan, 5, say=notes.append)
    for _ in range(2):
        net(torch.empty(3, 64, device=CUDA))
        schedule.step()
    assert policies(net) == {"weights"} and schedule.weight_cache.policy == "weights"
    (note,) = notes
    assert re.match(matches("training.weights-kept", free="16.00 GiB", device="cuda:0"), note)


def ask(net, dtype):
    for layer in net:
        layer._cache.get(layer._weight_quantizer.text, layer.weight, None, None, dtype)


def test_the_copy_may_take_half_of_what_is_free(gpu, streams):
    elements = 64 * 96 + 96 * 32
    cases = [(torch.float32, 2, "weights"), (torch.float32, 1.9, "none"), (torch.float16, 1, "weights")]
    for dtype, share, policy in cases:
        net, _ = net_there("auto")
        ask(net, dtype)
        choice = settle(net, free=lambda device, share=share: int(share * 4 * elements))
        assert choice.policy == policy and policies(net) == {policy}
    net, _ = net_there("auto")
    ask(net, torch.float32)
    note = settle(net, free=lambda device: 0).sentence
    assert re.match(matches("training.weights-not-kept", device="cuda:0"), note)


def test_layers_that_no_forward_asks_are_not_counted(gpu, streams):
    net, _ = net_there("auto")
    assert settle(net, free=lambda device: 2**40).policy == "none"


def test_what_a_recipe_says_stays():
    net = torchqat.prepare(Net(), recipe(WEIGHTS[0], "codes"))
    assert settle([layer for _, layer in quant_layers(net)]) is None and policies(net) == {"codes"}
