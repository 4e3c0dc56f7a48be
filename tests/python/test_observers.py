"""Observers of inputs against twins in NumPy, alone and in layers."""

import copy

import numpy as np
import pytest
import torch
import torchqat
from sentences import matches
from small_net import Net, recipe_for
from torchqat import QuantSpec
from torchqat._library import Observer

KINDS = ("minmax", "moving_average", "percentile", "mse", "entropy")


def spec_of(observer, bits=8, grid="narrow", **settings):
    return QuantSpec(bits, grid=grid, granularity="tensor", scale_dtype="float32", observer=observer, **settings)


def batches(device="cpu"):
    """Batches with long tails, the last of them wider than the others."""
    generator = torch.Generator().manual_seed(3)
    student = torch.distributions.StudentT(4.0)
    torch.manual_seed(3)
    return [(student.sample((4, 64, 32)) * scale).to(device) for scale in (1.0, 0.7, 2.0)] + [
        torch.randn(100, generator=generator).to(device)
    ]


def observed(spec, parts):
    observer = Observer(spec)
    for part in parts:
        observer.observe(part)
    return observer


def scale_of(spec, parts):
    return observed(spec, parts).qparams(spec, spec.bits)[0].item()


def values(parts):
    return np.concatenate([part.cpu().double().numpy().ravel() for part in parts])


def test_minmax(device):
    x = values(batches())
    assert scale_of(spec_of("minmax"), batches(device)) == pytest.approx(np.abs(x).max() / 127, rel=1e-6)


def test_moving_average(device):
    low = high = None
    for part in batches():
        ends = part.min().item(), part.max().item()
        low, high = ends if low is None else (low + 0.1 * (ends[0] - low), high + 0.1 * (ends[1] - high))
    spec = spec_of("moving_average", averaging_constant=0.1)
    assert scale_of(spec, batches(device)) == pytest.approx(max(-low, high) / 127, rel=1e-5)


@pytest.mark.parametrize("kind", ["minmax", "moving_average"])
def test_a_range_that_is_restored_goes_on_to_the_same_bits(kind, device):
    """Of what a state keeps of it, which is float32."""
    whole, resumed = Observer(spec_of(kind)), Observer(spec_of(kind))
    for batch in batches(device):
        whole.observe(batch)
        resumed.observe(batch)
        low, high = (end.float() for end in resumed.range())
        resumed = Observer(spec_of(kind))
        resumed.restore(low, high)
        assert (resumed.low, resumed.high) == (whole.low, whole.high)


@pytest.mark.parametrize("percentile", [99.0, 99.9, 100.0])
def test_percentile(percentile, device):
    x = values(batches())
    expected = np.percentile(np.abs(x), percentile, method="inverted_cdf")
    width = observed(spec_of("minmax"), batches()).high / 1000
    found = scale_of(spec_of("percentile", percentile=percentile), batches(device)) * 127
    assert abs(found - expected) <= width
    spec = spec_of("percentile", grid="asymmetric", percentile=percentile)
    low, high = np.percentile(x, [100 - percentile, percentile], method="inverted_cdf")
    assert abs(scale_of(spec, batches(device)) * 255 - (high - low)) <= 2 * width


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("grid", ["narrow", "full", "asymmetric"])
def test_mse_is_near_the_least_squared_error(bits, grid, device):
    spec = spec_of("mse", bits, grid)
    scale, zero = observed(spec, batches(device)).qparams(spec, bits)
    x = torch.tensor(values(batches())).float()

    def error(scale, zero):
        ends = spec.quant_range(bits)
        return (torchqat.ops.fake_quantize(x, scale, zero, (-1, -1), *ends) - x).double().square().sum().item()

    exact = torchqat.ops.choose_qparams(x[None], (-1, -1), bits, grid, "mse", torch.float32)
    assert error(scale.cpu(), zero.cpu()) <= 1.02 * error(*exact)


def entropy_twin(x, bits):
    """TensorRT's calibration over the magnitudes, as its authors describe it, on our bins."""
    magnitudes = np.abs(x)
    # The bins of qat/solvers/histogram.h, folded into at most 2048.
    width = 2.0 ** np.ceil(np.log2((batches()[0].max() - batches()[0].min()).item() / 4096))
    while x.max() / width - np.floor(x.min() / width) > 8190:
        width *= 2
    share = max(1, int(np.ceil((np.floor(magnitudes.max() / width) + 1) / 2048)))
    width *= share
    counts = np.bincount(np.floor(magnitudes / width).astype(int)).astype(float)
    counts[0] = counts[1]
    levels = 2 ** (bits - 1)
    best, least = len(counts), np.inf
    for kept in range(levels, len(counts) + 1):
        p = counts[:kept].copy()
        q = np.zeros(kept)
        for level in range(levels):
            chunk = slice(level * kept // levels, (level + 1) * kept // levels)
            filled = p[chunk] > 0
            if filled.any():
                q[chunk][filled] = p[chunk].sum() / filled.sum()
        p[-1] += counts[kept:].sum()
        p, q = p / p.sum(), q / q.sum()
        used = p > 0
        kl = (p[used] * np.log(p[used] / np.maximum(q[used], 1e-12))).sum()
        if kl <= least:
            best, least = kept, kl
    return best * width


def test_entropy_equals_the_twin(device):
    expected = entropy_twin(values(batches()), 8)
    found = scale_of(spec_of("entropy"), batches(device)) * 127
    assert found == pytest.approx(expected, rel=1e-5)
    assert found < 0.9 * np.abs(values(batches())).max()


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_finite_is_ignored_and_counted(kind, device):
    clean = batches(device)
    dirty = [part.clone() for part in clean]
    for part in dirty:
        part.view(-1)[0] = float("nan")
        part.view(-1)[1] = float("-inf")
    kept = [part.flatten()[2:] for part in clean]
    spec = spec_of(kind)
    assert observed(spec, dirty).ignored == 2 * len(dirty)
    assert scale_of(spec, dirty) == scale_of(spec, kept)


@pytest.mark.parametrize("kind", KINDS)
def test_calibration_takes_the_observer_of_the_recipe(kind):
    net = torchqat.prepare(
        Net(), recipe_for("{dtype: int8}", f"{{dtype: int8, granularity: tensor, observer: {kind}}}")
    )
    x = [torch.randn(8, 64) * 2, torch.randn(8, 64)]
    torchqat.calibrate(net, x)
    spec = net.first.input_spec
    assert spec.observer == kind
    assert net.first.input_scale.item() == scale_of(spec, x)


def test_an_input_passes_as_it_is_until_it_is_calibrated():
    net = torchqat.prepare(Net(), recipe_for("{dtype: int8}", "{dtype: int8, granularity: tensor}"))
    assert not net.first.input_ready
    torchqat.calibrate(net, [torch.randn(4, 64)])
    assert net.first.input_ready
    again = torchqat.prepare(Net(), recipe_for("{dtype: int8}", "{dtype: int8, granularity: tensor}"))
    again.load_state_dict(copy.deepcopy(net.state_dict()))
    assert again.first.input_ready and again.first.input_scale == net.first.input_scale


def test_searched_ranges_do_not_follow_training():
    for kind, follows in (("minmax", True), ("moving_average", True), ("percentile", False), ("mse", False)):
        specs = f"{{dtype: int8, granularity: tensor, observer: {kind}}}"
        net = torchqat.prepare(Net(), recipe_for("{dtype: int8}", specs))
        torchqat.calibrate(net, [torch.randn(4, 64)])
        before = net.first.input_scale.item()
        net.first.observing = True
        net.train()(torch.randn(4, 64) * 100)
        assert (net.first.input_scale.item() != before) == follows


def test_calibrating_again_forgets_the_first_time():
    net = torchqat.prepare(Net(), recipe_for("{dtype: int8}", "{dtype: int8, granularity: tensor}"))
    torchqat.calibrate(net, [torch.full((2, 64), 100.0)])
    assert torchqat.calibrate(net, [torch.full((2, 64), 1.0)]).ranges["first"] == (1.0, 1.0)


OBSERVER = "layers[0].input.observer"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("{dtype: int8, observer: minmax}", matches("recipe.calibrated-input", key=OBSERVER)),
        (
            "{%s, observer: best}",
            matches("recipe.unknown-word", key=OBSERVER, known="minmax, moving_average, percentile, mse or entropy"),
        ),
        (
            "{dtype: fp8_e4m3, granularity: tensor, observer: mse}",
            matches("recipe.unknown-word", key=OBSERVER, known="minmax, moving_average or percentile"),
        ),
        (
            "{%s, percentile: 99}",
            matches("recipe.another-observer", key="layers[0].input.percentile", observer="minmax"),
        ),
        (
            "{%s, observer: percentile, percentile: 20}",
            matches("recipe.no-number", key="layers[0].input.percentile", least=50, greatest=100),
        ),
        (
            "{dtype: int4, granularity: tensor, observer: entropy}",
            matches("recipe.entropy-of-no-int8", key=OBSERVER),
        ),
        (
            "{%s, observer: percentile, scale: minmax}",
            matches("recipe.scale-of-observer", key="layers[0].input.scale", scale="minmax", observer="percentile"),
        ),
        (
            "{%s, observer: minmax, scale: mse}",
            matches("recipe.scale-of-observer", key="layers[0].input.scale", scale="mse", observer="minmax"),
        ),
    ],
)
def test_recipe_faults_have_their_sentence(settings, message):
    with pytest.raises(torchqat.RecipeError, match=message):
        recipe_for("{dtype: int8}", settings.replace("%s", "dtype: int8, granularity: tensor"))
