"""``train.masters``: what 16-bit weights cannot keep, float32 masters do; float16, whose gradients need a scaled loss."""

import copy

import pytest
import torch
import torchqat
from conftest import RECIPE
from loops import loop_for, settings
from sentences import matches
from torchqat._library import OscillationSection
from torchqat.files import load_state
from torchqat.training.loop import TrainingLoop
from torchqat.training.masters import Masters
from torchqat.training.optimizers import rate_factor
from torchqat.training.oscillation import against_oscillation

RULE = 'version: 1\nlayers: [{match: "model.layers.*", weight: {dtype: int4, group_size: 16, scale: minmax}}]\n'
PROJECTION = "model.layers.0.mlp.up_proj.weight"


def prepared(model, dtype):
    return torchqat.prepare(copy.deepcopy(model).to(dtype), torchqat.parse_recipe(RULE))


def moved(model, before):
    return {n: (p.detach() != before[n]).float().mean().item() for n, p in model.named_parameters() if "norm" not in n}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_small_updates_are_lost_without_masters(dtype, tiny_llama):
    """Weights of at least 0.01, which bfloat16 has in steps of 6e-5, and 20 updates of 1e-5 at most."""
    shares = {}
    for masters in ("float32", "model") if dtype == torch.bfloat16 else ("float32",):
        model = prepared(tiny_llama, dtype)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(parameter.sign() * (parameter.abs() + 0.01))
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        rates = {"learning_rate": 1e-5, "learning_rate_decay": "constant"}
        loop = loop_for(model, settings(steps=20, masters=masters, **rates))
        loop.run()
        shares[masters] = moved(model, before)[PROJECTION]
        if masters == "float32":
            difference = (loop.moving.masters.state_dict()[PROJECTION] - before[PROJECTION].float()).abs()
            assert (difference > 1e-6).float().mean() > 0.5  # kept, and seen once they are enough
    assert shares["float32"] > 0.005
    assert shares.get("model", 0.0) == 0.0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("clip", [0.0, 0.01])
def test_training_is_that_of_float32_weights_rounded_for_each_forward(clip, dtype, tiny_llama):
    """Beside a loop of torch alone: its own masters, gradients taken from a rounded model, AdamW."""
    section = settings(steps=6, learning_rate=1e-3, gradient_clip=clip)
    model, twin = prepared(tiny_llama, dtype), prepared(tiny_llama, dtype)
    torch.manual_seed(4)
    loop = loop_for(model, section)
    torch.manual_seed(4)
    reference = loop_for(twin, section)
    loop.run()
    weights = list(twin.parameters())
    masters = [weight.detach().float().requires_grad_() for weight in weights]
    optimizer = torch.optim.AdamW(masters, lr=1.0, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)
    scale = 2.0**16 if dtype == torch.float16 else 1.0
    twin.train()
    for step in range(6):
        (reference.loss(reference.batches[step]) * scale).backward()
        for weight, master in zip(weights, masters, strict=True):
            master.grad, weight.grad = weight.grad.float() / scale, None
        if clip:
            torch.nn.utils.clip_grad_norm_(masters, clip)
        optimizer.param_groups[0]["lr"] = 1e-3 * rate_factor(section, step)
        optimizer.step()
        with torch.no_grad():
            for weight, master in zip(weights, masters, strict=True):
                weight.copy_(master)
    ours = dict(model.named_parameters())
    # Norms add their parts in another order.
    tolerance = {"rtol": 0, "atol": 0} if not clip else {"rtol": 2**-7, "atol": 1e-6}
    for name, weight in twin.named_parameters():
        torch.testing.assert_close(ours[name], weight, **tolerance)


def test_float32_models_have_none(tiny_llama):
    loop = loop_for(prepared(tiny_llama, torch.float32), settings(steps=1))
    loop.run()
    assert len(loop.moving.masters) == 0


def test_checkpoints_hold_masters(tiny_llama, tmp_path):
    model = prepared(tiny_llama, torch.bfloat16)
    loop = loop_for(model, settings(steps=2, learning_rate=1e-3), checkpoint=tmp_path / "train.pt")
    loop.run()
    kept = load_state(tmp_path / "train.pt")["masters"]
    assert all(torch.equal(kept[name], master) for name, master in loop.moving.masters.state_dict().items())
    assert all(torch.equal(kept[n].to(p.dtype), p) for n, p in model.named_parameters())
    assert any(not torch.equal(kept[n], p.float()) for n, p in model.named_parameters())


@pytest.mark.parametrize("method", ["freeze", "dampen"])
def test_what_is_done_about_oscillation_reaches_masters(method, tiny_llama):
    model = prepared(tiny_llama, torch.bfloat16)
    oscillation = OscillationSection()
    oscillation.method, oscillation.threshold, oscillation.dampening = method, 1e-4, 0.5
    section = settings(steps=12, learning_rate=1e-2, learning_rate_decay="constant")
    loop = loop_for(model, section, settles=against_oscillation(model, oscillation, 12))
    loop.run()
    for name, master in loop.moving.masters.state_dict().items():
        assert torch.equal(master.to(torch.bfloat16), model.get_parameter(name))


def test_a_master_follows_what_was_written_and_keeps_the_rest():
    net = torch.nn.Linear(4, 1, bias=False).bfloat16()
    masters = Masters(net)
    with torch.no_grad():
        masters.of(net.weight).add_(2**-12)
        kept = masters.of(net.weight).clone()
        masters.give()
        net.weight[0, 1] = 3.0
    masters.follow()
    assert torch.equal(masters.of(net.weight)[0, [0, 2, 3]], kept[0, [0, 2, 3]])
    assert masters.of(net.weight)[0, 1] == 3.0


# -- float16 -----------------------------------------------------------------------------------------------------------


def half_loop(steps, factor, folder=None, **values):
    """A product whose gradient is ``factor``: below what float16 holds, or above it once the loss is scaled."""
    torch.manual_seed(0)
    net = torch.nn.Linear(4, 4, bias=False).half()
    return net, TrainingLoop(
        net, lambda batch: net(batch).float().mean() * factor, [torch.ones(2, 4).half()] * steps,
        settings(steps=steps, gradient_clip=0.0, learning_rate=1e-2, **values), checkpoint=folder and folder / "t.pt",
    )  # fmt: skip


def test_small_gradients_of_float16_are_kept():
    net, loop = half_loop(1, 4e-8)  # a quarter of it is below the smallest number of float16, 6e-8
    before = net.weight.detach().clone()
    figures = []
    loop.on_step = lambda step, found: figures.append(found)
    loop.run()
    assert figures[0]["gradient_norm"] == pytest.approx(4 * 1e-8, rel=1e-2)
    assert (net.weight != before).all()


def test_a_loss_that_is_scaled_too_far_is_tried_again(tmp_path):
    net, loop = half_loop(3, 1e3, tmp_path)
    figures = []
    loop.on_step = lambda step, found: figures.append(found)
    loop.run()
    assert len(figures) == 3 and not any("skipped" in found for found in figures)
    assert figures[0]["gradient_norm"] == pytest.approx(1e3, rel=1e-3)
    factor = load_state(tmp_path / "t.pt")["loss_scale"]["factor"]
    assert 1.0 < factor < 2.0**16 and 250 * factor < 65504
    _, again = half_loop(3, 1e3, tmp_path)
    again.run()
    assert again.moving.loss_scale.factor == factor  # gone on with


def test_gradients_that_overflow_unscaled_stop_the_run():
    _, loop = half_loop(1, 1e6)
    with pytest.raises(torchqat.UserError, match="Gradients must stay finite, but are not,"):
        loop.run()


@pytest.mark.parametrize("rate", ["5.0e-4", "1.0e-6"])
def test_a_run_in_float16_trains(rate, begin):
    text = RECIPE.replace("version: 1\n", "version: 1\nmodel: {dtype: float16}\n").replace(
        "scale: learned", "scale: mse, scale_dtype: float16"
    )
    report = begin(text.replace("train: {", f"train: {{learning_rate: {rate}, "))
    assert report.variants[-1].kl < 1.0


def test_a_run_in_float16_without_masters_is_refused(begin, tmp_path):
    text = RECIPE.replace("version: 1\n", "version: 1\nmodel: {dtype: float16}\n")
    with pytest.raises(torchqat.UserError, match=matches("training.float16-without-masters")):
        begin(text.replace("train: {", "train: {masters: model, ").replace("scale: learned", "scale: mse"))
    assert not (tmp_path / "run").exists()
