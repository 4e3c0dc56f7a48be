"""GPTQ against its float64 twin, its identities, and what goes wrong."""

import re

import pytest
import reference
import reference_ptq as twin
import torch
from sentences import matches, sentence
from torchqat import QuantSpec, ops
from torchqat._library import InputStatistics, gptq


def problem(rows=48, cols=192, tokens=2000, seed=0):
    """A weight, and correlated inputs of it with features of very different size."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(cols, cols, generator=generator) / cols**0.5
    x = torch.randn(tokens, cols, generator=generator) @ mix * torch.rand(cols, generator=generator).exp()
    return torch.randn(rows, cols, generator=generator), x


def statistics_of(x, original=None):
    statistics = InputStatistics(x.shape[1], original is not None)
    statistics.add(x, original)
    return statistics


def spec_of(bits, group=64, grid="full", **others):
    return QuantSpec(bits, granularity="group", group_size=group, grid=grid, **others)


def nearest(weight, spec, method="mse"):
    scale, zero = ops.choose_qparams(weight, spec.block, spec.bits, spec.grid, method, torch.bfloat16)
    return ops.fake_quantize(weight, scale, zero, spec.block, *spec.quant_range(spec.bits))


@pytest.mark.parametrize("search", ["minmax", "mse"])
@pytest.mark.parametrize(
    ("bits", "group", "grid"), [(4, 64, "full"), (3, 32, "narrow"), (2, 32, "asymmetric"), (4, 192, "signed")]
)
def test_equals_the_float64_twin(bits, group, grid, search):
    weight, x = problem()
    hessian = statistics_of(x).hessian
    found = gptq(weight, hessian, spec_of(bits, group, grid), bits, order="plain", scale_search=search, sweeps=0)
    codes, scale, zero = twin.gptq(weight, hessian, bits, group, grid, 0.01, search)
    # A code on the border may fall either way in float32, and takes what follows in its row with it.
    same = (found.codes == codes).all(1)
    assert same.float().mean() >= 0.85
    assert torch.equal(found.scale[same], scale[same]) and torch.equal(found.zero_point[same], zero[same])
    rounded = reference.fake_quantize(found.weight, scale, zero, (1, group), *reference.quant_range(bits, grid))
    assert twin.objective(weight - found.weight, hessian) == pytest.approx(
        twin.objective(weight - rounded, hessian), rel=0.02
    )


@pytest.mark.parametrize("order", ["plain", "group", "column"])
@pytest.mark.parametrize("block_size", [16, 128])
def test_the_loss_is_the_error_of_the_output(order, block_size):
    weight, x = problem()
    hessian = statistics_of(x).hessian
    found = gptq(weight, hessian, spec_of(3), 3, order=order, block_size=block_size)
    damped = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(len(hessian))
    assert found.loss == pytest.approx(twin.objective(weight - found.weight, damped), rel=1e-5)
    assert twin.output_error(weight, found.weight, x) == pytest.approx(
        twin.objective(weight - found.weight, hessian), rel=1e-4
    )


@pytest.mark.parametrize("order", ["plain", "group", "column"])
def test_without_correlation_it_is_rounding_to_nearest(order):
    weight, _ = problem()
    found = gptq(weight, torch.eye(192), spec_of(4), 4, order=order, scale_search="minmax")
    assert torch.equal(found.weight, nearest(weight, spec_of(4), "minmax"))


# At 2 bits in plain order clipping makes it worse on more than one row in a hundred.
@pytest.mark.parametrize(
    ("order", "bits"), [(o, b) for o in ("plain", "group", "column") for b in (2, 3, 4) if (o, b) != ("plain", 2)]
)
def test_rows_are_better_than_nearest(order, bits):
    weight, x = problem(rows=200)
    hessian = statistics_of(x).hessian
    found = gptq(weight, hessian, spec_of(bits), bits, order=order)

    def by_row(rounded):
        error = (weight - rounded).double()
        return ((error @ hessian.double()) * error).sum(1)

    assert (by_row(found.weight) <= by_row(nearest(weight, spec_of(bits)))).float().mean() >= 0.99


def test_block_size_changes_rounding_errors_alone():
    weight, x = problem()
    hessian = statistics_of(x).hessian
    losses = [gptq(weight, hessian, spec_of(3), 3, block_size=size).loss for size in (1, 8, 48, 128, 4096)]
    assert losses == pytest.approx([losses[0]] * 5, rel=0.02)


@pytest.mark.parametrize("granularity", ["channel", "tensor"])
@pytest.mark.parametrize("order", ["plain", "group", "column"])
def test_other_granularities(granularity, order):
    weight, x = problem()
    spec = QuantSpec(4, granularity=granularity, grid="full")
    found = gptq(weight, statistics_of(x).hessian, spec, 4, order=order)
    rows = 48 if granularity == "channel" else 1
    assert found.scale.shape == (rows, 1)
    assert twin.output_error(weight, found.weight, x) < twin.output_error(weight, nearest(weight, spec), x)


def test_blocks_of_rows_share_scales():
    weight, x = problem()
    spec = QuantSpec(4, granularity="block", block=(16, 64), grid="full")
    found = gptq(weight, statistics_of(x).hessian, spec, 4)
    assert found.scale.shape == (3, 3)
    assert torch.equal(ops.fake_quantize(found.weight, found.scale, None, (16, 64), -8, 7), found.weight)
    assert twin.output_error(weight, found.weight, x) < twin.output_error(weight, nearest(weight, spec), x)


def test_a_short_last_group_stays_last():
    weight, x = problem(cols=200)
    found = gptq(weight, statistics_of(x).hessian, spec_of(4), 4)
    assert found.scale.shape == (48, 4)
    assert torch.equal(ops.fake_quantize(found.weight, found.scale, None, (1, 64), -8, 7), found.weight)


@pytest.mark.parametrize("grid", ["narrow", "full", "signed", "asymmetric"])
def test_the_target_has_the_same_codes(grid):
    weight, x = problem()
    spec = spec_of(2, 32, grid)
    found = gptq(weight, statistics_of(x).hessian, spec, 2)
    ends = spec.quant_range(2)
    assert torch.equal(ops.quantize(found.target, found.scale, found.zero_point, (1, 32), *ends), found.codes)
    assert torch.equal(ops.quantize(found.weight, found.scale, found.zero_point, (1, 32), *ends), found.codes)
    steps = found.scale.abs().repeat_interleave(32, 1)
    assert ((found.target - found.weight).abs() <= 0.5 * steps).all()
    assert (found.target != found.weight).float().mean() > 0.9


def test_the_correction_brings_the_output_nearer_to_the_float_models():
    weight, original = problem(tokens=4000)
    generator = torch.Generator().manual_seed(1)
    x = original + 0.2 * torch.randn(4000, 192, generator=generator) @ torch.randn(192, 192, generator=generator) * 0.1
    statistics = statistics_of(x, original)
    errors = [
        twin.output_error(
            weight,
            gptq(weight, statistics.hessian, spec_of(4), 4, correction=share, drift=statistics.drift).weight,
            x,
            original,
        )
        for share in (0.0, 0.5, 1.0)
    ]
    assert errors[2] < errors[1] < errors[0]


def test_a_column_that_no_input_reaches_is_rounded_to_nearest():
    weight, x = problem()
    x[:, 5] = 0.0
    spec = QuantSpec(8, granularity="channel")
    found = gptq(weight, statistics_of(x).hessian, spec, 8, order="plain", scale_search="minmax")
    assert torch.equal(found.weight[:, 5], nearest(weight, spec, "minmax")[:, 5])
    assert found.warning == ""


def test_too_few_tokens_are_damped():
    weight, x = problem(tokens=20)
    found = gptq(weight, statistics_of(x).hessian, spec_of(4), 4)
    assert found.weight.isfinite().all()


def test_a_hessian_that_is_not_positive_definite():
    weight, _ = problem()
    indefinite = torch.eye(192)
    indefinite[0, 1] = indefinite[1, 0] = 1.5
    raised = gptq(weight, indefinite, spec_of(4), 4)
    assert re.match(matches("ptq.hessian-damped"), raised.warning)
    indefinite[0, 1] = indefinite[1, 0] = 1e6
    given_up = gptq(weight, indefinite, spec_of(4), 4, scale_search="minmax")
    assert given_up.warning == sentence("ptq.hessian-given-up")
    assert torch.equal(given_up.weight, nearest(weight, spec_of(4), "minmax"))


def test_a_hessian_that_is_not_finite():
    weight, _ = problem()
    found = gptq(weight, torch.full((192, 192), float("inf")), spec_of(4), 4, scale_search="minmax", order="plain")
    assert found.warning == sentence("ptq.hessian-not-finite")
    assert torch.equal(found.weight, nearest(weight, spec_of(4), "minmax"))


def test_what_is_not_finite_corrects_nothing():
    """Inputs near 1e20, whose squares float32 cannot hold, made NaN of the weight, said to be rounded to nearest."""
    weight, x = problem()
    hessian = statistics_of(x).hessian
    infinite, chosen = torch.full((192, 192), float("inf")), {"scale_search": "minmax", "order": "plain"}
    found = gptq(weight, infinite, spec_of(4), 4, drift=infinite - infinite, correction=0.25, **chosen)
    assert found.warning == sentence("ptq.hessian-not-finite")
    assert torch.equal(found.weight, nearest(weight, spec_of(4), "minmax"))
    found = gptq(weight, hessian, spec_of(4), 4, drift=infinite, correction=0.25, **chosen)
    assert found.warning == sentence("ptq.drift-not-finite")
    assert torch.equal(found.weight, gptq(weight, hessian, spec_of(4), 4, **chosen).weight)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hessian": torch.eye(3)}, matches("ptq.gptq-shapes")),
        ({"weight": torch.full((4, 8), float("nan"))}, matches("ptq.gptq-weight")),
        ({"damping": -1.0}, matches("ptq.gptq-damping")),
        ({"block_size": 0}, matches("ptq.gptq-damping")),
        ({"correction": 1.0}, matches("ptq.gptq-drift")),
        (
            {"order": "best"},
            matches("settings.unknown-word", setting="order", known="plain, group or column", value="best"),
        ),
    ],
)
def test_bad_input_has_its_sentence(change, message):
    arguments = {"weight": torch.randn(4, 8), "hessian": torch.eye(8), "spec": spec_of(4, 8), "bits": 4}
    with pytest.raises(ValueError, match=message):
        gptq(**{**arguments, **change})


def test_statistics_are_those_of_all_finite_tokens():
    x = torch.randn(40, 6)
    x[3, 2], x[9, 0] = float("nan"), float("inf")
    statistics = InputStatistics(6)
    statistics.add(x[:20].view(2, 10, 6))
    statistics.add(x[20:].to(torch.bfloat16))
    kept = torch.cat([x[:20], x[20:].to(torch.bfloat16).float()])
    kept = kept[kept.isfinite().all(1)].double()
    assert (statistics.tokens, statistics.ignored) == (38, 2)
    torch.testing.assert_close(statistics.hessian.double(), kept.T @ kept / 38, rtol=1e-5, atol=1e-6)
    assert torch.equal(statistics.hessian, statistics.hessian.T)
    torch.testing.assert_close(statistics.mean_magnitude.double(), kept.abs().mean(0), rtol=1e-5, atol=0)
    assert torch.equal(statistics.max_magnitude.double(), kept.abs().amax(0))


def test_statistics_of_the_drift():
    x, original = torch.randn(30, 4), torch.randn(30, 4)
    statistics = statistics_of(x, original)
    expected = (original - x).double().T @ x.double() / 30
    torch.testing.assert_close(statistics.drift.double(), expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match=matches("ptq.drift")):
        statistics.add(x)
    with pytest.raises(ValueError, match=matches("ptq.input-features", features=4, found=5)):
        InputStatistics(4).add(torch.ones(2, 5))
