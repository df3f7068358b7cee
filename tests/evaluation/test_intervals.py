"""Conformal intervals cover what they claim; the domain follows elements and distance."""

import math

import numpy as np
import pytest
import torch

from facetry.evaluation.intervals import (
    conformal_quantile,
    domain_statistics,
    elements_seen,
    in_domain,
    nearest_distance,
)


@pytest.mark.parametrize(
    ("n", "rank"), [(9, 9), (10, 10), (19, 18), (29, 27), (69, 63), (99, 90), (100, 91), (999, 900)]
)
def test_quantile_is_the_corrected_order_statistic(n, rank):
    errors = np.random.default_rng(n).permutation(np.arange(1, n + 1)).astype(float)
    assert conformal_quantile(errors) == rank


def test_too_few_errors_have_no_finite_interval():
    assert conformal_quantile(np.ones(8)) == math.inf
    assert conformal_quantile(np.array([])) == math.inf


def test_missing_labels_are_left_out_and_signs_are_checked():
    assert conformal_quantile(np.array([1.0, np.nan] * 20)) == 1.0
    with pytest.raises(ValueError, match="absolute"):
        conformal_quantile(np.array([-1.0, 2.0]))
    with pytest.raises(ValueError, match="between 0 and 1"):
        conformal_quantile(np.ones(10), level=1.0)


@pytest.mark.parametrize("n", [9, 20, 100, 500])
def test_mean_coverage_is_at_least_the_level_and_not_much_more(n):
    # Exact theory: the mean coverage is ceil((n + 1) level) / (n + 1) for continuous errors.
    rng = np.random.default_rng(n)
    calibration, new = rng.standard_cauchy((600, n)) ** 2, rng.standard_cauchy((600, 400)) ** 2
    cover = [np.mean(errors <= conformal_quantile(row)) for row, errors in zip(calibration, new, strict=True)]
    expected = math.ceil((n + 1) * 0.9 - 1e-9) / (n + 1)
    assert expected >= 0.9
    assert np.mean(cover) == pytest.approx(expected, abs=0.01)


def test_nearest_distance_equals_brute_force():
    torch.manual_seed(0)
    points, reference = torch.randn(50, 7, dtype=torch.float64), torch.randn(30, 7, dtype=torch.float64)
    brute = (points[:, None] - reference[None]).norm(dim=-1).min(dim=1).values
    torch.testing.assert_close(nearest_distance(points, reference), brute)
    assert nearest_distance(reference, reference).max() == 0
    assert nearest_distance(points[:0], reference).shape == (0,)


def test_domain_statistics_are_bounded_seeded_and_calibrated():
    generator = torch.Generator().manual_seed(1)
    train, val, new = (torch.randn(n, 6, generator=generator) for n in (3000, 800, 4000))
    reference, threshold = domain_statistics(train, val, seed=3)
    assert reference.shape == (1000, 6)
    again, same = domain_statistics(train, val, seed=3)
    assert torch.equal(reference, again)
    assert threshold == same
    inside = in_domain(np.ones(len(new), dtype=bool), new, reference, threshold)
    assert np.mean(inside) == pytest.approx(0.99, abs=0.012)
    far = in_domain(np.ones(5, dtype=bool), new[:5] + 50, reference, threshold)
    assert not far.any()


def test_small_sets_use_what_there_is():
    reference, threshold = domain_statistics(torch.zeros(3, 2), torch.tensor([[3.0, 4.0]]), seed=0)
    assert len(reference) == 3
    assert threshold == pytest.approx(5.0)
    with pytest.raises(ValueError, match="validation"):
        domain_statistics(torch.zeros(3, 2), torch.zeros(0, 2))


def test_unseen_elements_leave_the_domain():
    seen = elements_seen(np.array([1, 8, 26, 8, 92]), np.array([2, 2, 1]), [1, 8, 26])
    assert seen.tolist() == [True, True, False]
    points = torch.zeros(3, 4)
    assert in_domain(seen, points, points[:1], 0.0).tolist() == [True, True, False]
