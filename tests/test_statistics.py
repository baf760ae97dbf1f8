"""Intervals that mean what they say: agreement with scipy, coverage, strata, pairs, and undefined runs."""

from __future__ import annotations

import json
import os
import subprocess
import warnings
from typing import Any

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
    """One task: the percentile interval is scipy's, draw for draw; the expanded one is scipy's at another level."""
    x = np.random.default_rng(1).normal(size=20)
    level = 2 * stats.norm.cdf(np.sqrt(20 / 19) * stats.t.ppf(0.975, 19)) - 1  # Hesterberg 2015, by hand
    for expand, confidence in ((False, 0.95), (True, level)):
        ours = statistics.interval(x, np.mean, seed=3, expand=expand)
        how = {"n_resamples": 2000, "method": "percentile", "confidence_level": confidence}
        theirs = stats.bootstrap((x,), np.mean, random_state=np.random.default_rng(3), **how).confidence_interval
        assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high))
        assert ours.value == pytest.approx(x.mean()) and ours.runs == 20


def test_expanded_interval_of_a_mean_is_students() -> None:
    """Of normal runs it is about mean +- t s / sqrt(n), whose coverage is a theorem; the percentile interval is not."""
    x = np.random.default_rng(12).normal(size=10)
    ours = statistics.interval(x, np.mean, resamples=50_000)
    half = stats.t.ppf(0.975, 9) * stats.sem(x)
    assert (ours.high - ours.low) / 2 == pytest.approx(half, rel=0.05)
    plain = statistics.interval(x, np.mean, resamples=50_000, expand=False)
    assert (plain.high - plain.low) / 2 < 0.9 * half


DRAWN = {
    "normal": lambda rng, shape: rng.normal(size=shape),
    "lognormal": lambda rng, shape: rng.lognormal(0, 0.5, shape),
    "bimodal": lambda rng, shape: np.where(rng.random(shape) < 0.7, rng.normal(0.9, 0.05, shape), 0.2),
}


@pytest.mark.parametrize("runs", DRAWN)
@pytest.mark.parametrize("seeds", [10, 30])
def test_95_percent_intervals_cover_the_known_iqm(runs: str, seeds: int) -> None:
    """In 92% to 98% of 1,000 experiments, at the numbers of seeds that we use; a 50% interval in half (the control)."""
    rng = np.random.default_rng(seeds)
    truth = statistics.iqm(DRAWN[runs](rng, 1_000_000))
    draws = DRAWN[runs](rng, (seeds, 1000))
    shares = []
    for confidence in (0.95, 0.5):
        band = statistics.bands(draws, statistics.iqm, confidence, resamples=600)
        shares.append(np.mean((band.low <= truth) & (truth <= band.high)))
    assert 0.92 <= shares[0] <= 0.98 and 0.42 < shares[1] < 0.62


@pytest.mark.slow
@pytest.mark.parametrize("runs", DRAWN)
@pytest.mark.parametrize("seeds", [10, 30])
def test_stratified_intervals_cover_the_known_iqm(runs: str, seeds: int) -> None:
    """The same for 4 tasks that differ: the IQM of all runs together, seeds drawn within tasks, one call each."""
    rng, tasks = np.random.default_rng(seeds), 0.3 * np.arange(4)
    truth = statistics.iqm(DRAWN[runs](rng, (1_000_000, 4)) + tasks)
    covered = 0
    for _ in range(1000):
        found = statistics.interval(DRAWN[runs](rng, (seeds, 4)) + tasks, resamples=1000)
        covered += bool(found.low <= truth <= found.high)
    assert 920 <= covered <= 980


def test_percentile_intervals_of_few_seeds_are_too_narrow() -> None:
    """Why the expanded interval is the default: 5 runs, 1,000 experiments."""
    draws = np.random.default_rng(5).normal(size=(5, 1000))
    plain, ours = (statistics.bands(draws, np.mean, resamples=600, expand=e) for e in (False, True))
    covers = [np.mean((b.low <= 0) & (b.high >= 0)) for b in (plain, ours)]
    assert covers[0] < 0.88 and covers[1] > covers[0] + 0.05


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
def test_bad_settings_are_a_sentence(wrong: dict[str, Any]) -> None:
    """An impossible confidence or no draws at all is refused, not silently clipped."""
    with pytest.raises(ValueError, match="must"):
        statistics.interval([1.0, 2.0], **wrong)
    with pytest.raises(ValueError, match="seeds"):
        statistics.interval(np.zeros((2, 2, 2)))


def test_iqm_median_and_gap_by_hand() -> None:
    """Eight numbers: the middle four, the middle two, and what is missing to 1."""
    scores = [0.9, 0.1, 0.5, 1.2, 0.3, 0.7, -4.0, 0.6]  # sorted: -4 .1 | .3 .5 .6 .7 | .9 1.2
    assert statistics.iqm(scores) == pytest.approx((0.3 + 0.5 + 0.6 + 0.7) / 4)
    assert statistics.median(scores) == pytest.approx(0.55)
    assert statistics.optimality_gap(scores) == pytest.approx((5 + 0.9 + 0.7 + 0.5 + 0.4 + 0.3 + 0.1 + 0) / 8)


def test_profile_bands() -> None:
    """Value: the profile. Interval: that of the share above each threshold, one by one; none where all runs agree."""
    scores = np.random.default_rng(8).random((12, 3))
    scores[4, 1] = np.nan
    thresholds = [-1.0, 0.3, 0.6, 2.0]
    band = statistics.profile_bands(scores, thresholds, resamples=300)
    np.testing.assert_array_equal(band.value, statistics.performance_profile(scores, thresholds))
    for k, threshold in enumerate(thresholds):
        above = np.where(np.isnan(scores), np.nan, scores > threshold)
        np.testing.assert_allclose([f[k] for f in band], statistics.interval(above, np.mean, resamples=300), rtol=1e-12)
    assert band.value[[0, -1]].tolist() == band.low[[0, -1]].tolist() == band.high[[0, -1]].tolist() == [1, 0]
    empty = statistics.profile_bands([np.nan], thresholds)
    assert np.isnan([*empty.value, *empty.low]).all() and empty.low.shape == (4,)


def test_paired_improvement_is_wilsons_share() -> None:
    """Share and interval are scipy's `binomtest` where there are no ties; pairs see what unpaired runs do not."""
    rng = np.random.default_rng(9)
    a, b = rng.normal(size=(2, 15, 2))
    ours = statistics.paired_improvement(a, b)
    theirs = stats.binomtest(int(np.sum(a > b)), 30).proportion_ci(method="wilson")
    assert (ours.value, ours.low, ours.high) == pytest.approx((np.mean(a > b), theirs.low, theirs.high))
    shared = 100 * rng.normal(size=20)
    paired = statistics.paired_improvement(shared + 1, shared)
    assert paired.value == 1 and 0.8 < paired.low < 1 and paired.runs == 20
    assert statistics.probability_of_improvement(shared + 1, shared).value < 0.6
    a[3], b[4] = np.nan, a[4]
    tied = statistics.paired_improvement(a, b)
    assert tied.runs == 28 and tied.value == pytest.approx((np.sum(a > b) + 1) / 28)
    assert statistics.paired_improvement([np.nan], [1.0]).runs == 0
    with pytest.raises(ValueError, match="one shape"):
        statistics.paired_improvement(a, b[:5])


def test_tasks_with_unequally_many_runs() -> None:
    """Side by side with holes; a task with more runs weighs more in the pooled statistic, as it does by hand."""
    tasks = [[1.0, 2.0, 3.0], [5.0]]
    samples = statistics.side_by_side(tasks)
    np.testing.assert_array_equal(samples, [[1, 5], [2, np.nan], [3, np.nan]])
    assert statistics.interval(samples, np.mean).value == pytest.approx(11 / 4)
    longer = statistics.interval(statistics.side_by_side([np.arange(9.0), np.arange(4.0)]))
    assert longer.runs == 13 and longer.low < longer.value < longer.high


def test_curves_of_unequal_length_meet_on_common_points() -> None:
    """Straight lines between points, exact at them; a run that stopped is absent afterwards, not carried on."""
    steps, values = [[0, 10, 20], [0, 15]], [[0.0, 1.0, 0.0], [3.0, 0.0]]
    points, curves = statistics.aligned(steps, values)
    assert points.tolist() == [0, 10, 15, 20]
    np.testing.assert_allclose(curves, [[0, 1, 0.5, 0], [3, 1, 0, np.nan]])
    assert statistics.bands(curves).runs.tolist() == [2, 2, 2, 1]
    holed = statistics.aligned([[0, 1, 2, 3]], [[1.0, np.nan, 2.0, 4.0]], [-1, 0, 0.5, 2, 2.5])[1]
    np.testing.assert_array_equal(holed, [[np.nan, 1, np.nan, 2, 3]])
    for wrong, words in (
        (([[0, 0]], [[1, 2]]), "increase"),
        (([[0, 1]], [[1]]), "equally many"),
        (([], [[1]]), "equally"),
    ):
        with pytest.raises(ValueError, match=words):
            statistics.aligned(*wrong)


def test_area_under_a_curve() -> None:
    """numpy's trapezoids over the length; up to the end of the shortest run, long and short ones are comparable."""
    x, y = np.array([0.0, 1.0, 3.0, 7.0]), np.random.default_rng(10).normal(size=(5, 4))
    by_hand = ((y[:, 1:] + y[:, :-1]) / 2 * np.diff(x)).sum(1) / 7
    np.testing.assert_allclose(statistics.area_under_curve(x, y), by_hand)
    assert statistics.area_under_curve(x, 2 * x + 1, until=5.0) == pytest.approx(6.0)  # a line: its middle
    assert statistics.area_under_curve([0, 5], [1.0, 11.0]) == statistics.area_under_curve(x, 2 * x + 1, until=5.0)
    np.testing.assert_allclose(
        statistics.area_under_curve(x, y, until=3.0), statistics.area_under_curve(x[:3], y[:, :3])
    )
    assert np.isnan(statistics.area_under_curve(x, y, until=8.0)).all()
    y[0, 3] = np.nan
    assert np.isnan(statistics.area_under_curve(x, y)).tolist() == [True] + [False] * 4
    assert not np.isnan(statistics.area_under_curve(x, y, until=3.0)).any()
    for wrong in (([0], [1.0]), ([0, 1], [1.0]), ([1, 0], [1.0, 1.0])):
        with pytest.raises(ValueError, match="steps"):
            statistics.area_under_curve(*wrong)
    with pytest.raises(ValueError, match="until"):
        statistics.area_under_curve(x, y, until=0)


RLIABLE = """
import json, sys
import numpy as np
from rliable import library, metrics

x, y, taus = (np.array(v) for v in json.load(sys.stdin))
both = lambda f: library.get_interval_estimates({"x": x}, lambda s: np.array([f(s)]), reps=20000)
out = {}
for name, f in (("iqm", metrics.aggregate_iqm), ("gap", metrics.aggregate_optimality_gap)):
    point, limits = both(f)
    out[name] = [float(point["x"][0]), *limits["x"][:, 0].tolist()]
better = lambda a, b: metrics.probability_of_improvement(a, b)
point, limits = library.get_interval_estimates({"p": (x, y)}, better, reps=20000)
out["better"] = [float(point["p"]), *np.ravel(limits["p"]).tolist()]
point, limits = library.create_performance_profile({"x": x}, taus, reps=4000)
out["profile"] = [point["x"].tolist(), *limits["x"].tolist()]
print(json.dumps(out))
"""


RLIABLE_SAID: dict[str, list[Any]] = {
    "iqm": [0.786454968, 0.573168854, 0.968231595],
    "gap": [0.325515206, 0.221552767, 0.435190013],
    "better": [0.61875, 0.48125, 0.75],
    "profile": [[0.95, 0.65, 0.5, 0.3], [0.875, 0.5, 0.35, 0.175], [1.0, 0.8, 0.65, 0.425625]],
}
"""What it printed (rliable 1.2.0 with arch 7.2.0, pandas 2.3.3, numpy 2.4.6)."""


def test_numbers_are_those_of_rliable() -> None:
    """Equal values, and percentile intervals that differ by the luck of the draws alone.

    rliable does not import beside pandas 3, so what it said is stored. To ask it again, in an interpreter of its own:

        python -m venv elsewhere
        elsewhere/bin/pip install rliable==1.2.0 arch==7.2.0 "pandas<3"
        RLIABLE_PYTHON=elsewhere/bin/python pytest tests/test_statistics.py -k rliable
    """
    x = 1.2 * np.abs(np.sin(np.arange(40.0) ** 2)).reshape(10, 4)
    y = np.abs(np.cos(1.5 * np.arange(32.0) ** 2)).reshape(8, 4)
    taus, theirs = [0.1, 0.5, 0.8, 1.1], RLIABLE_SAID
    if python := os.environ.get("RLIABLE_PYTHON"):
        sent = json.dumps([x.tolist(), y.tolist(), taus])
        done = subprocess.run([python, "-c", RLIABLE], input=sent, text=True, capture_output=True, check=True)
        theirs = json.loads(done.stdout)
    ours = {
        "iqm": statistics.interval(x, statistics.iqm, resamples=20000, expand=False),
        "gap": statistics.interval(x, statistics.optimality_gap, resamples=20000, expand=False),
        "better": statistics.probability_of_improvement(x, y, resamples=20000, expand=False),
        "profile": statistics.profile_bands(x, taus, resamples=4000, expand=False),
    }
    assert set(theirs) == set(ours)
    for name, (value, low, high) in theirs.items():
        found = ours[name]
        np.testing.assert_allclose(found.value, value, rtol=1e-6)
        # A share of 40 runs moves in steps of 1/40.
        luck = 0.026 if name == "profile" else 0.04 * (high - low)
        np.testing.assert_allclose([found.low, found.high], [low, high], atol=luck)
