"""Bootstrap intervals against what theory says of them."""

import math

import pytest
import torch
from sentences import matches
from torchqat.evaluation.bootstrap import bootstrap


def test_the_interval_is_that_of_the_mean():
    """For many values of a normal distribution, the mean and 1.96 standard errors on either side."""
    torch.manual_seed(0)
    values = (torch.randn(2000, dtype=torch.float64) * 3 + 5).tolist()
    found = bootstrap(values)
    error = torch.tensor(values).std().item() / math.sqrt(2000)
    assert found.value == pytest.approx(sum(values) / 2000)
    assert found.low == pytest.approx(found.value - 1.96 * error, abs=0.1 * error)
    assert found.high == pytest.approx(found.value + 1.96 * error, abs=0.1 * error)


def test_it_covers_the_truth_as_often_as_it_says():
    generator = torch.Generator().manual_seed(2)
    inside = sum(
        bootstrap(torch.randn(80, generator=generator, dtype=torch.float64).tolist()).contains(0.0) for _ in range(200)
    )
    assert 0.90 <= inside / 200 <= 0.985


def test_pairs_take_away_what_both_find_hard():
    """Differences of a thousandth between scores that differ by one from example to example."""
    torch.manual_seed(3)
    hard = torch.randn(64, dtype=torch.float64)
    first, second = hard + 0.001 + 1e-5 * torch.randn(64), hard
    assert bootstrap((first - second).tolist()).low > 0
    assert bootstrap(first.tolist()).contains(second.mean().item())


def test_a_transform_goes_over_estimate_and_ends():
    values = [0.1, 0.2, 0.15, 0.12]
    plain, ratio = bootstrap(values), bootstrap(values, torch.exp)
    assert ratio.value == pytest.approx(math.exp(plain.value)) and ratio.low == pytest.approx(math.exp(plain.low))


def test_equal_values_have_no_noise_and_it_is_the_same_every_time():
    found = bootstrap([0.5] * 10)
    assert (found.value, found.low, found.high) == (0.5, 0.5, 0.5)
    values = torch.rand(30).tolist()
    assert bootstrap(values) == bootstrap(values)


def test_nothing_to_resample():
    with pytest.raises(ValueError, match=matches("evaluate.nothing-to-resample")):
        bootstrap([])
