"""Intervals that mean what they say: agreement with scipy, coverage, strata, pairs, and undefined runs."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from scipy import stats

from marl import statistics


def test_iqm_is_scipys_trimmed_mean_and_leaves_nan_out() -> None:
    """Equal to trim_mean(.25) along any axis; a NaN run counts as absent, not as a low one."""
    x = np.random.default_rng(0).normal(size=(11, 7))
    for axis in (0, 1):
        np.testing.assert_allclose(statistics.iqm(x, axis=axis), stats.trim_mean(x, 0.25, axis=axis))
    assert statistics.iqm(x) == pytest.approx(stats.trim_mean(x.ravel(), 0.25))
    holed = np.vstack([x, np.full(7, np.nan)])
    np.testing.assert_allclose(statistics.iqm(holed, axis=0), statistics.iqm(x, axis=0))
    np.testing.assert_allclose(statistics.median(holed, axis=0), np.median(x, axis=0))
    assert np.isnan(statistics.iqm([np.nan])) and np.isnan(statistics.median([np.nan, np.nan]))
    assert statistics.iqm([0.0, 1.0, 1.0, 100.0]) == 1.0


def test_interval_equals_scipys_bootstrap() -> None:
    """One task: the percentile interval is scipy's, draw for draw."""
    x = np.random.default_rng(1).normal(size=20)
    ours = statistics.interval(x, np.mean, seed=3)
    rng = np.random.default_rng(3)
    theirs = stats.bootstrap((x,), np.mean, n_resamples=2000, method="percentile", random_state=rng).confidence_interval
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high))
    assert ours.value == pytest.approx(x.mean()) and ours.runs == 20


def test_interval_covers_the_truth_as_often_as_it_claims() -> None:
    """A 90% interval of 30 runs holds the true mean in about 90 of 100 experiments; a 50% one in half (the control)."""
    draws = np.random.default_rng(2).normal(size=(30, 400))
    for confidence, low, high in ((0.9, 0.85, 0.94), (0.5, 0.42, 0.57)):
        band = statistics.bands(draws, np.mean, confidence, resamples=500)
        assert low < np.mean((band.low < 0) & (band.high > 0)) < high


def test_seeds_are_drawn_within_tasks() -> None:
    """Tasks that differ widely do not widen the interval: only the spread between seeds of one task counts."""
    seeds = np.random.default_rng(3).normal(size=(10, 4))
    far = seeds + 1000 * np.arange(4)
    near, wide = statistics.interval(seeds, np.mean), statistics.interval(far, np.mean)
    assert wide.high - wide.low == pytest.approx(near.high - near.low)
    pooled = statistics.interval(far.ravel(), np.mean)
    assert pooled.high - pooled.low > 100 * (wide.high - wide.low)


def test_pairs_cancel_what_both_methods_share() -> None:
    """A difference of .1 under shared noise of size 1 is certain in pairs and invisible without."""
    rng = np.random.default_rng(4)
    shared = rng.normal(size=(10, 1))
    a, b = shared + 0.1 + 0.01 * rng.normal(size=(10, 1)), shared + 0.01 * rng.normal(size=(10, 1))
    paired = statistics.paired_difference(a, b)
    assert 0 < paired.low < 0.1 < paired.high < 0.2
    alone = statistics.interval(a)
    assert alone.high - alone.low > 0.5
    with pytest.raises(ValueError, match="one shape"):
        statistics.paired_difference(a, b[:5])


def test_probability_of_improvement() -> None:
    """0 and 1 when the runs are apart, 1/2 for equal runs, P(X>Y) + P(Y>X) = 1, and the mean over tasks."""
    x = np.random.default_rng(5).normal(size=(8, 2))
    assert statistics.probability_of_improvement(x + 100, x).value == 1.0
    assert statistics.probability_of_improvement(np.ones(5), np.ones(5)).value == 0.5
    y = np.random.default_rng(6).normal(size=(9, 2))
    p, q = statistics.probability_of_improvement(x, y), statistics.probability_of_improvement(y, x)
    assert p.value + q.value == pytest.approx(1.0)
    assert p.low < p.value < p.high
    tasks = [stats.mannwhitneyu(x[:, t], y[:, t]).statistic / 72 for t in range(2)]
    assert p.value == pytest.approx(np.mean(tasks)) and p.runs == 144


def test_profile_and_gap() -> None:
    """Both by hand, a NaN run left out."""
    scores = np.array([[0.0, 0.5], [1.0, np.nan]])
    np.testing.assert_allclose(statistics.performance_profile(scores, [-1, 0.2, 0.7, 1.0]), [1, 2 / 3, 1 / 3, 0])
    assert statistics.optimality_gap(scores) == pytest.approx(0.5)
    assert statistics.optimality_gap([1.5, 2.0]) == 0.0


def test_one_run_has_a_value_and_no_interval() -> None:
    """Nobody knows the spread of one run: NaN, without a crash or a warning; the same when nothing is defined."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for samples, value, runs in (([0.7], 0.7, 1), ([np.nan, np.nan], np.nan, 0), ([[0.5, 0.9]], 0.7, 2)):
            found = statistics.interval(samples)
            assert found.value == pytest.approx(value, nan_ok=True) and found.runs == runs
            assert np.isnan(found.low) and np.isnan(found.high)
        assert np.isnan(statistics.probability_of_improvement([1.0], [0.0]).low)
        assert np.isnan(statistics.probability_of_improvement([np.nan], [0.0]).value)
        band = statistics.bands([[1.0, np.nan]])
        assert band.value[0] == 1.0 and np.isnan([*band.low, *band.high, band.value[1]]).all()


def test_bands_are_the_intervals_of_their_columns() -> None:
    """A curve in one call equals its points one by one, holes included, and equal input gives equal output."""
    x = np.random.default_rng(7).normal(size=(6, 5))
    x[2, 3] = np.nan
    x[:, 4] = np.nan
    band = statistics.bands(x, resamples=200)
    for k in range(5):
        np.testing.assert_allclose([field[k] for field in band], statistics.interval(x[:, k], resamples=200))
    np.testing.assert_array_equal(band, statistics.bands(x, resamples=200))
    assert band.runs.tolist() == [6, 6, 6, 5, 0]


@pytest.mark.parametrize("wrong", [{"confidence": 1.5}, {"resamples": 0}])
def test_bad_settings_are_a_sentence(wrong: dict) -> None:
    """An impossible confidence or no draws at all is refused, not silently clipped."""
    with pytest.raises(ValueError, match="must"):
        statistics.interval([1.0, 2.0], **wrong)
    with pytest.raises(ValueError, match="seeds"):
        statistics.interval(np.zeros((2, 2, 2)))
