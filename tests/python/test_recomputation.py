"""Activations computed again in the backward: the same bits, of whatever has blocks, and inputs are observed once."""

import copy

import pytest
import torch
import torchqat
import transformers
from sentences import matches
from small_net import recipe_for
from torch import nn
from torchqat.training.recomputation import check_recomputes, recompute_activations
from torchqat.training.spread import compile_blocks

SIZES = {
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}


class Block(nn.Module):
    """Gives a tensor and something beside it, and takes a keyword."""

    runs = 0

    def __init__(self):
        super().__init__()
        self.inner, self.dropout = nn.Linear(32, 32), nn.Dropout(0.5)

    def forward(self, x, *, scale):
        self.runs += 1
        return x + self.dropout(torch.tanh(self.inner(x))) * scale, len(x)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(3))

    def forward(self, x):
        for block in self.blocks:
            x, _ = block(x, scale=0.5)
        return x


def albert():
    config = transformers.AlbertConfig(**SIZES, embedding_size=16, num_labels=3)
    return transformers.AlbertForSequenceClassification(config)


def run(model, input, steps=3):
    """Losses, and weights and ranges after some steps along a schedule."""
    recipe = recipe_for("{dtype: int8, group_size: 16}", input)
    model = torchqat.prepare(model, recipe)
    torch.manual_seed(1)
    batches = [torch.randint(100, (4, 8)) if hasattr(model, "config") else torch.randn(4, 32) for _ in range(steps)]
    torchqat.calibrate(model, batches[:1])
    return model.train(), recipe, batches


def trained(model, recipe, batches):
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    schedule = torchqat.Schedule(model, recipe, len(batches), optimizer)
    torch.manual_seed(2)
    losses = []
    for batch in batches:
        output = model(batch)
        loss = (output if torch.is_tensor(output) else output.logits).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        losses.append(loss.item())
    return losses, model.state_dict()


def assert_same(plain, other):
    assert plain[0] == other[0]
    for name, tensor in plain[1].items():
        assert torch.equal(tensor, other[1][name]), name


INPUTS = ["", *(f"{{dtype: int8, granularity: tensor, observer: {kind}}}" for kind in ("minmax", "moving_average"))]


@pytest.mark.parametrize("input", INPUTS, ids=["float", "minmax", "moving_average"])
@pytest.mark.parametrize("build", [Net, albert])
def test_any_module_with_blocks_recomputes_to_the_same_bits(build, input):
    torch.manual_seed(0)
    model = build()
    plain = trained(*run(copy.deepcopy(model), input))
    again = run(copy.deepcopy(model), input)
    check_recomputes(again[0])
    recompute_activations(again[0])
    assert_same(plain, trained(*again))


def test_blocks_run_twice_a_step_and_once_where_nothing_trains():
    model = Net().train()
    recompute_activations(model)
    model = copy.deepcopy(model)
    model(torch.randn(4, 32)).sum().backward()
    assert [block.runs for block in model.blocks] == [2, 2, 2]
    model.eval()(torch.randn(4, 32)).sum().backward()
    with torch.no_grad():
        model.train()(torch.randn(4, 32))
    assert [block.runs for block in model.blocks] == [4, 4, 4]
    assert isinstance(model.blocks[0], Block)


def test_compiled_blocks_recompute():
    """To what they are compiled to without, but for the order of sums."""

    def made():
        torch.manual_seed(0)
        model = Net()
        for block in model.blocks:
            block.dropout.p = 0.0  # a compiled graph draws numbers of its own
        return run(model, "")

    plain, again = made(), made()
    compile_blocks(plain[0])
    recompute_activations(again[0])
    compile_blocks(again[0])
    (losses, state), (others, after) = trained(*plain), trained(*again)
    torch.testing.assert_close(losses, others, rtol=1e-6, atol=0.0)
    torch.testing.assert_close(state, after, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("observer", ["minmax", "moving_average"])
def test_a_forward_that_is_run_again_observes_nothing(observer, reentrant, tiny_llama):
    """As a trainer switches it on; a moving average would move twice a step."""

    def trained_llama(recomputes):
        model = torchqat.prepare(
            copy.deepcopy(tiny_llama),
            recipe := recipe_for(
                "{dtype: int8, granularity: channel, grid: full, scale: learned}",
                f"{{dtype: int8, granularity: tensor, symmetric: false, observer: {observer}}}",
            ),
        )
        torch.manual_seed(1)
        batches = [torch.randint(100, (2, 24)) for _ in range(4)]
        torchqat.calibrate(model, batches[:2])
        if recomputes:
            model.activation_checkpointing_enable({"use_reentrant": reentrant})
            model.enable_input_require_grads()
        return trained(model.train(), recipe, batches)

    assert_same(trained_llama(False), trained_llama(True))


@pytest.mark.parametrize("symmetric", ["true", "false"])
def test_several_forwards_before_a_backward_each_keep_their_range(symmetric):
    """Pairs of texts go through an encoder one after the other."""

    def gradients(together):
        torch.manual_seed(0)
        spec = f"{{dtype: int8, granularity: tensor, symmetric: {symmetric}, observer: moving_average}}"
        model, recipe, (one, other, _) = run(nn.Sequential(nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 8)), spec)
        schedule = torchqat.Schedule(model, recipe, 3)
        assert all(layer.observing for layer in (model[0], model[2])) and schedule.current_step == 0
        if together:
            (model(one).square().sum() + model(3 * other).square().sum()).backward()
        else:
            model(one).square().sum().backward()
            model(3 * other).square().sum().backward()
        return [parameter.grad for parameter in model.parameters()]

    for apart, together in zip(gradients(False), gradients(True), strict=True):
        torch.testing.assert_close(apart, together, rtol=1e-6, atol=1e-6)


def test_models_without_blocks_say_so_before_they_train():
    model = nn.Sequential(nn.Linear(4, 4))
    for asked in (check_recomputes, recompute_activations):
        with pytest.raises(torchqat.UserError, match=matches("training.recomputes-nothing", type="Sequential")):
            asked(model)


def test_whether_a_model_recomputes_is_tried_and_taken_back(tiny_llama):
    def recomputes():
        names = ("gradient_checkpointing", "activation_checkpointing")
        return any(getattr(module, name, False) for module in tiny_llama.modules() for name in names)

    check_recomputes(tiny_llama)
    assert not recomputes()
    recompute_activations(tiny_llama)
    assert recomputes()
    net = Net()
    check_recomputes(net)
    assert type(net.blocks[0]) is Block
