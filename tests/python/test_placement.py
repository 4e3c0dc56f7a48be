"""Models on a device for a while, whole or by blocks, tried on a GPU that is pretended (pretend_gpu.py)."""

import copy

import pytest
import torch
import torchqat
from conftest import Tiny, new_model
from pretend_gpu import PretendGpu
from sentences import matches
from torch import nn
from torchqat.device import CPU, device_of
from torchqat.model.placement import on_device

CUDA = torch.device("cuda:0")


class Deep(Tiny):
    layers = 6


@pytest.fixture
def gpu():
    with PretendGpu() as gpu:
        yield gpu


@pytest.fixture
def deep():
    return new_model(Deep, Tiny.vocabulary, seed=0).eval()


def ids(rows=2):
    return torch.randint(0, Tiny.vocabulary, (rows, 16))


def size(*modules):
    return sum(tensor.nbytes for module in modules for tensor in module.state_dict().values())


def places(model):
    return {tensor.device for tensor in [*model.parameters(), *model.buffers()]}


@torch.no_grad()
@pytest.mark.parametrize("by_blocks", [False, True])
def test_a_model_comes_back_as_it_was(by_blocks, deep, gpu):
    tokens, parameters = ids(), list(deep.parameters())
    memory = [parameter.data_ptr() for parameter in deep.model.layers.parameters()]
    wanted = deep(input_ids=tokens).logits
    with on_device(deep, CUDA, by_blocks) as placed:
        assert (placed.device, device_of(deep)) == (CUDA, CUDA)
        found = deep(input_ids=tokens.to(CUDA)).logits
        assert found.device == CUDA
    torch.testing.assert_close(found.cpu(), wanted, rtol=0, atol=1e-5)
    assert places(deep) == {CPU} and all(a is b for a, b in zip(deep.parameters(), parameters, strict=True))
    if by_blocks:  # what a forward only reads is not copied back
        assert [parameter.data_ptr() for parameter in deep.model.layers.parameters()] == memory
    assert torch.equal(deep(input_ids=tokens).logits, wanted)


@torch.no_grad()
def test_by_blocks_one_of_them_is_there_at_a_time(deep, gpu):
    block, rest = size(deep.model.layers[0]), size(deep) - size(deep.model.layers)
    with on_device(deep, CUDA, by_blocks=True) as placed:
        assert rest > gpu.bytes - 4096 and places(deep.model.layers[0]) == {CPU}
        deep(input_ids=ids().to(CUDA))
        assert gpu.most < size(deep) / 2
        before = gpu.bytes
        with placed.hold(deep.model.layers[2]), placed.hold(deep.model.layers[2]):
            assert places(deep.model.layers[2]) == {CUDA} and gpu.bytes == before + block
            deep(input_ids=ids().to(CUDA))
            assert places(deep.model.layers[2]) == {CUDA} and places(deep.model.layers[3]) == {CPU}
        assert places(deep.model.layers[2]) == {CPU}


@torch.no_grad()
def test_what_is_written_there_is_kept(deep, gpu):
    layers, norm = deep.model.layers, deep.model.norm

    def write(block, _args):
        block.mlp.up_proj.weight.mul_(3)

    handle = layers[1].register_forward_pre_hook(write)
    wanted = layers[0].mlp.up_proj.weight * 2, layers[1].mlp.up_proj.weight * 3, norm.weight + 1
    with on_device(deep, CUDA, by_blocks=True) as placed:
        with placed.hold(layers[0]):
            layers[0].mlp.up_proj.weight.data.mul_(2)
        deep(input_ids=ids().to(CUDA))
        norm.weight.add_(1)
    handle.remove()
    for found, expected in zip((layers[0].mlp.up_proj, layers[1].mlp.up_proj, norm), wanted, strict=True):
        assert torch.equal(found.weight, expected)


@torch.no_grad()
@pytest.mark.parametrize("by_blocks", [False, True])
def test_a_model_comes_back_from_an_error(by_blocks, deep, gpu):
    def fail(*_):
        raise KeyError("here")

    deep.model.layers[2].mlp.register_forward_hook(fail)
    with pytest.raises(KeyError), on_device(deep, CUDA, by_blocks):
        deep(input_ids=ids().to(CUDA))
    assert places(deep) == {CPU} and gpu.bytes == 0
    assert all(len(block._forward_hooks) == len(block._forward_pre_hooks) == 0 for block in deep.model.layers)


@torch.no_grad()
def test_copies_of_blocks_stay_where_they_are(deep, gpu):
    with on_device(deep, CUDA, by_blocks=True) as placed:
        with placed.hold(deep.model.layers[0]):
            twin = copy.deepcopy(deep.model.layers[0].mlp)
            whole = copy.deepcopy(deep.model.layers[0])
        twin(torch.ones(1, 2, Deep.hidden_size, device=CUDA))
        assert places(twin) == places(whole) == {CUDA} and places(deep.model.layers[0]) == {CPU}


def test_memory_decides(deep):
    for memory, whole in ((size(deep) * 2, True), (size(deep), False)):
        with PretendGpu(memory=memory), on_device(deep, CUDA):
            assert (places(deep.model.layers[3]) == {CUDA}) == whole


def test_blocks_that_share_with_the_rest_stay_with_it(gpu):
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(4, 4)
            self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(4, 4)) for _ in range(3))
            self.blocks[1][0].weight = self.first.weight
            self.blocks[2][0].weight = self.blocks[0][0].weight

        def forward(self, x):
            x = self.first(x)
            for block in self.blocks:
                x = block(x)
            return x

    model, x = Odd(), torch.randn(2, 4)
    wanted = model(x)
    with torch.no_grad(), on_device(model, CUDA, by_blocks=True):
        assert places(model.blocks[1]) == {CUDA} and places(model.blocks[0]) == {CPU}
        found = model(x.to(CUDA))
    torch.testing.assert_close(found.cpu(), wanted)
    assert places(model) == {CPU} and model.blocks[1][0].weight is model.first.weight
    assert model.blocks[2][0].weight is model.blocks[0][0].weight


def test_a_model_without_blocks_goes_whole(gpu):
    net = nn.Sequential(nn.Linear(4, 4))
    with on_device(net, CUDA, by_blocks=True):
        assert places(net) == {CUDA}
    with on_device(net) as placed, on_device(net, CPU):
        assert placed.device == CPU
    net.to(CUDA)
    with on_device(net, CPU):
        assert places(net) == {CPU}
    assert places(net) == {CUDA}


def test_a_model_on_several_devices_or_packed_is_not_moved(gpu):
    net = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32))
    recipe = torchqat.parse_recipe('version: 1\nlayers: [{match: "*", weight: {dtype: int4, group_size: 32}}]\n', "r")
    packed = torchqat.pack(torchqat.prepare(copy.deepcopy(net), recipe))
    with pytest.raises(torchqat.UserError, match=matches("device.packed", word=CUDA)), on_device(packed, CUDA):
        pass
    net[1].to(CUDA)
    several = matches("device.several", device="cpu", places="cpu and cuda:0")
    with pytest.raises(torchqat.UserError, match=several), on_device(net, CPU):
        pass
    with on_device(net) as placed:
        assert placed.device == CUDA


def test_the_pretended_gpu_refuses_what_a_gpu_refuses(gpu):
    there, here = torch.ones(3, 4, device=CUDA), torch.ones(3, 4)
    for mixed in (
        lambda: there + here,
        lambda: here.add_(there),
        lambda: torch.cat([there, here]),
        lambda: torch.equal(there, here),
        lambda: here[torch.zeros(1, dtype=torch.int64, device=CUDA)],
        lambda: nn.functional.embedding(torch.zeros(2, dtype=torch.int64), there),
        lambda: torchqat.ops.quantize(there, "minmax int4 full 1x4 float32", here[:, :1]),
    ):
        with pytest.raises(Exception, match="same device|device"):
            mixed()
    with pytest.raises(TypeError, match="numpy"):
        there.numpy()
    assert (there + torch.tensor(1.0)).device == there[torch.zeros(1, dtype=torch.int64)].device == CUDA
    here.copy_(there * 2)
    assert here.tolist() == (there * 2).tolist() == torch.full((3, 4), 2.0).tolist() and there.sum().item() == 12
