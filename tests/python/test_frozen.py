"""Training of scales alone, the codes staying as they are."""

import copy

import architectures
import pytest
import torch
import torchqat
from architectures import tokens
from command import call
from sentences import matches
from torchqat import ops
from torchqat.kinds.losses import forward_kl
from torchqat.layers.prepared import quant_layers
from torchqat.training.parameters import freeze_codes

LEARNED = "{dtype: int2, group_size: 32, %s, scale: learned}"


def forward(model, batch):
    return model(input_ids=batch, use_cache=False)


@pytest.fixture(scope="module")
def llama():
    return architectures.build("Llama")


@pytest.fixture(params=["grid: full", "symmetric: false"])
def frozen(request, llama):
    settings = architectures.recipe("{method: gptq}", LEARNED % request.param)
    model = torchqat.prepare(copy.deepcopy(llama), settings)
    torchqat.calibrate(model, tokens(), forward)
    return freeze_codes(model)


def codes(model):
    return {weights.name: weights.codes for weights in torchqat.convert(model)}


def test_the_forward_stays_as_it_was(llama, frozen):
    settings = architectures.recipe("{method: gptq}", LEARNED % "grid: full")
    if not frozen.model.layers[0].mlp.up_proj.weight_spec.symmetric:
        settings = architectures.recipe("{method: gptq}", LEARNED % "symmetric: false")
    model = torchqat.prepare(copy.deepcopy(llama), settings)
    torchqat.calibrate(model, tokens(), forward)
    for (_, a), (_, b) in zip(quant_layers(model), quant_layers(frozen), strict=True):
        assert torch.equal(a.quantized_weight(), b.quantized_weight())
    with torch.no_grad():
        torch.testing.assert_close(forward(frozen, tokens()[0]).logits, forward(model, tokens()[0]).logits)


def test_scales_alone_train_and_codes_stay(llama, frozen):
    before = codes(copy.deepcopy(frozen))
    trained = {name for name, parameter in frozen.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, _ in frozen.named_parameters() if name.endswith("weight_scale")}
    optimizer = torch.optim.Adam([p for p in frozen.parameters() if p.requires_grad], lr=1e-3)
    losses = []
    for _ in range(15):
        loss = sum(forward_kl(forward(frozen, b).logits, forward(llama, b).logits.detach(), 1.0) for b in tokens())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    after = codes(frozen)
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_a_checkpoint_is_what_training_saw(frozen, tmp_path):
    with torch.no_grad():
        for _, layer in quant_layers(frozen):
            layer.weight_scale.mul_(1.0 + 0.2 * torch.rand_like(layer.weight_scale))
    assert torchqat.verify(torchqat.export(frozen, tmp_path / "out"), frozen).ok


@pytest.mark.parametrize("block", [(1, 8), (1, -1), (2, 4), (-1, -1), (3, 5)])
def test_the_gradient_is_that_of_the_product(block, device):
    generator = torch.Generator().manual_seed(0)
    q = torch.randint(-8, 8, (6, 16), generator=generator, dtype=torch.int8).to(device)
    rows, cols = (-(-n // (n if side == -1 else side)) for n, side in zip(q.shape, block, strict=True))
    scale = torch.rand(rows, cols, generator=generator).to(device).requires_grad_()
    zero = torch.randint(-3, 3, (rows, cols), generator=generator, dtype=torch.int8).to(device)
    weights = torch.randn(6, 16, generator=generator).to(device)
    (ops.dequantize(q, scale, zero, block) * weights).sum().backward()
    height, width = (n if side == -1 else side for n, side in zip(q.shape, block, strict=True))
    twin = scale.detach().double().requires_grad_()

    def expand(x):
        return x.repeat_interleave(height, 0)[:6].repeat_interleave(width, 1)[:, :16]

    ((q.double() - expand(zero.double())) * expand(twin) * weights.double()).sum().backward()
    torch.testing.assert_close(scale.grad.double(), twin.grad, rtol=1e-5, atol=1e-5)


def test_the_operator_is_registered_properly(device):
    q = torch.randint(-8, 8, (4, 16), dtype=torch.int8, device=device)
    scale = torch.rand(4, 2, device=device, requires_grad=True)
    torch.library.opcheck(torch.ops.qat.dequantize.default, (q, scale, None, [1, 8], torch.float32))


@pytest.mark.parametrize("shape", [(4, 8), (2, 16)])
def test_a_gradient_of_another_shape_is_refused(shape, device):
    q, scale = torch.zeros(4, 16, dtype=torch.int8, device=device), torch.ones(4, 2, device=device)
    with pytest.raises(ValueError, match=matches("ops.grad-of-codes", codes="[4, 16]", found=str(list(shape)))):
        torch.ops.qat._dequantize_backward(torch.ones(shape, device=device), q, scale, None, [1, 8])


def _penalised(weights, scale, mixing):
    """Gradients of a loss with the squared gradient of its scales, of which either depends on both."""
    loss = (weights(scale) * mixing).pow(3).sum()
    (slope,) = torch.autograd.grad(loss, scale, create_graph=True)
    return torch.autograd.grad(loss + 1e-3 * slope.square().sum(), (scale, mixing))


@pytest.mark.parametrize("shift", [None, torch.int8, torch.float32])
def test_second_derivatives_are_those_of_the_product(shift, device):
    q = torch.randint(0, 8, (4, 16), dtype=torch.int8, device=device)
    scale = torch.rand(4, 2, device=device, requires_grad=True)
    mixing = torch.randn(4, 16, device=device, requires_grad=True)
    zero = None if shift is None else torch.randint(-3, 3, (4, 2), device=device).to(shift)

    def product(s):
        of_codes = added = torch.zeros_like(s)
        if shift == torch.float32:
            added = zero.double()
        elif shift:
            of_codes = zero.double()
        spread = ((q.double().view(4, 2, 8) - of_codes[..., None]) * s[..., None]) + added[..., None]
        return spread.view(4, 16)

    found = _penalised(lambda s: ops.dequantize(q, s, zero, (1, 8)), scale, mixing)
    twins = (x.detach().double().requires_grad_() for x in (scale, mixing))
    for ours, theirs in zip(found, _penalised(product, *twins), strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=1e-4)


def test_weights_without_learned_scales_are_refused(llama):
    model = torchqat.prepare(copy.deepcopy(llama), architectures.recipe("{method: gptq}"))
    with pytest.raises(
        torchqat.UserError, match=matches("training.scale-not-learned", layer="model.layers.0.self_attn.q_proj")
    ):
        freeze_codes(model)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("scale: mse}\n", matches("recipe.scales-not-learned", key="train.parameters")),
        (
            "scale: learned}\nschedule: [{until: 50%, weight: int8}, {until: 100%}]\n",
            matches("recipe.scales-in-schedule", key="train.parameters"),
        ),
    ],
)
def test_recipes_that_do_not_fit_have_their_sentence(text, message):
    head = 'version: 1\nlayers:\n  - match: "*"\n    weight: {dtype: int4, '
    with pytest.raises(torchqat.RecipeError, match=message):
        torchqat.parse_recipe(head + text + "train: {parameters: scales}\n", "recipe")


def test_a_run_trains_scales_and_resumes(arguments, recipe_file, tmp_path, capsys):
    text = recipe_file.read_text().split("schedule:")[0]
    text += (
        "initialize: {method: gptq}\n"
        "train: {steps: 6, batch_size: 2, sequence_length: 32, checkpoint_every: 3, parameters: scales, validate_every: 3}\n"
    )
    recipe_file.write_text(text)
    assert call(capsys, "run", *arguments)[0] == 0
    assert call(capsys, "verify", tmp_path / "run" / "exports" / "compressed-tensors")[0] == 0


def test_weights_without_codes_do_not_vanish_behind_frozen_ones(llama, frozen):
    frozen.load_state_dict(frozen.state_dict())
    for state in (llama.state_dict(), {n: t for n, t in frozen.state_dict().items() if not n.endswith("frozen_codes")}):
        layer = "model.layers.0.self_attn.q_proj"
        with pytest.raises(RuntimeError, match=matches("load.frozen-codes", layer=layer)):
            frozen.load_state_dict(state)
    frozen.load_state_dict({n: t for n, t in frozen.state_dict().items() if n.endswith("scale")}, strict=False)
