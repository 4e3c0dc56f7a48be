"""What a report says that training won back of what plain rounding lost."""

import math

import pytest
from sentences import sentence
from torchqat.reports.report import Report, Variant, recovered
from torchqat.reports.wording import sentences


def variant(perplexity, kl, low=None, high=None):
    found = Variant("int4", "INT4", 4.25, perplexity, kl, 0.9, 100)
    if low is not None:
        found.intervals["perplexity_ratio"] = [perplexity / 20, low, high]
    return found


def test_shares_of_what_plain_rounding_lost():
    trained = variant(20.5, 0.01)
    trained.recovered = recovered(20.0, variant(22.0, 0.04, 1.05, 1.15), trained)
    assert trained.recovered == {"perplexity": pytest.approx(0.75), "kl": pytest.approx(0.75)}
    said = " ".join(sentences(Report(variants=[trained])))
    assert "75% of the perplexity gap, 75% of the KL gap" in said


@pytest.mark.parametrize("interval", [(0.99, 1.03), (None, None)])
def test_a_gap_within_the_noise_has_no_share(interval):
    """Of 0.05 % of perplexity, within 0.2 % of noise, a share of -400 % says nothing."""
    assert recovered(20.0, variant(20.01, 0.04, *interval), variant(20.05, 0.01)) == {"kl": pytest.approx(0.75)}


def test_one_sequence_has_no_interval(begin):
    """Resampled, it is always itself: an interval without width would call any difference more than noise."""
    from conftest import PTQ

    found = begin(PTQ.replace("samples: 4, sequence_length: 32}, cal", "samples: 1, sequence_length: 32}, cal"))
    assert sentence("data.one-sequence") in found.notes
    assert all("perplexity_ratio" not in one.intervals and "kl" not in one.intervals for one in found.variants)
    assert all(math.isfinite(one.kl) for one in found.variants)
