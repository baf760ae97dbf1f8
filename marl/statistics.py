"""How sure we are: interquartile means, stratified bootstrap intervals and paired comparisons over training seeds.

After Agarwal et al. 2021, "Deep reinforcement learning at the edge of the statistical precipice". Undefined runs (NaN)
are left out and the number of defined ones is always returned beside the estimate. Equal input gives equal output.

A percentile interval of few runs is too narrow. Ours is the expanded percentile interval (Hesterberg 2015, "What
teachers should know about the bootstrap"): with n runs of k tasks together the tail alpha/2 on either side becomes

    Phi(-sqrt(n / (n - k)) t),    t the upper alpha/2 quantile of Student's t with n - k degrees of freedom,

which makes up for a spread that is estimated, and estimated by dividing by n. Both come from `scipy.stats.bootstrap`.
Measured: how many of 1,000 simulated experiments had the known IQM inside a 95% interval, the least and the most over
normal, uniform, beta(.5, .5), lognormal, exponential and bimodal runs:

    tasks x seeds    percentile      expanded
      1 x 5          .83 to .92     .88 to .95      the bimodal runs are the .88
      4 x 5          .90 to .91     .94 to .96
      1 x 10         .93 to .94     .96 to .97
      4 x 10         .93 to .94     .94 to .95
      1 x 30         .93 to .96     .95 to .97
      4 x 30         .94 to .96     .95 to .96

With fewer than 10 seeds of a single task an interval is too narrow whatever one does (BCa: .82 to .92 with 5 seeds).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
_NUMBERS_AT_ONCE = 2e7  # resampled numbers held in memory at a time (160 MB)


class Statistic(Protocol):
    """A summary of many numbers along one axis, e.g. `iqm`, `median`, `np.mean`."""

    def __call__(self, values: Array, /, *, axis: int) -> Array: ...


class Estimate(NamedTuple):
    """A statistic with its interval; numbers, or arrays [K] from `bands`."""

    value: Array
    low: Array  # NaN where an interval is undefined (fewer than two defined runs)
    high: Array
    runs: NDArray[np.int64]  # how many defined runs it rests on


def iqm(values: ArrayLike, *, axis: int | None = None) -> Array:
    """Interquartile mean: the mean after floor(n/4) values are cut off at either end (scipy's `trim_mean(.25)`).

    NaN values are left out first; NaN where nothing is left. axis None: over all values.
    """
    x = np.asarray(values, dtype=float)
    x = np.sort(x.ravel() if axis is None else np.moveaxis(x, axis, -1), axis=-1)  # NaN sorts last
    count = np.sum(~np.isnan(x), axis=-1, keepdims=True)
    cut = count // 4
    place = np.arange(x.shape[-1])
    kept = (place >= cut) & (place < count - cut)
    total = np.sum(np.where(kept, x, 0.0), axis=-1)
    return _divide(total, np.sum(kept, axis=-1))


def median(values: ArrayLike, *, axis: int | None = None) -> Array:
    """The median of the defined values; NaN where there is none."""
    x = np.asarray(values, dtype=float)
    x = np.sort(x.ravel() if axis is None else np.moveaxis(x, axis, -1), axis=-1)
    count = np.sum(~np.isnan(x), axis=-1, keepdims=True)
    low, high = np.maximum((count - 1) // 2, 0), np.minimum(count // 2, x.shape[-1] - 1)
    return np.mean(np.take_along_axis(x, np.concatenate([low, high], axis=-1), axis=-1), axis=-1)


def optimality_gap(scores: ArrayLike, *, axis: int | None = None) -> Array:
    """mean max(0, 1 - score) over the defined scores: how far below the best reachable play, 0 for a perfect method."""
    x = np.asarray(scores, dtype=float)
    known = ~np.isnan(x)
    gap = np.where(known, np.maximum(0.0, 1.0 - x), 0.0)
    return _divide(np.sum(gap, axis=axis), np.sum(known, axis=axis))


def interval(
    samples: ArrayLike,
    statistic: Statistic = iqm,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
    expand: bool = True,
) -> Estimate:
    """A statistic of all runs, with the interval of a bootstrap that draws seeds within each task.

    Args:
        samples: [seeds], or [seeds, tasks]: tasks are the strata. NaN runs are left out.
        statistic: of the runs of all tasks together.
        confidence: of the interval, in (0, 1).
        resamples: bootstrap draws.
        seed: of the draws.
        expand: widen the percentile interval as few runs require (see above); False: as it is, like rliable's.
    Returns:
        Estimate of numbers. The interval is NaN when some task has a single run: nobody knows its spread.
    Raises:
        ValueError: samples are neither [seeds] nor [seeds, tasks], or confidence or resamples is out of range.
    """
    strata = _strata(samples)
    runs = np.concatenate([np.empty(0), *strata])
    value = np.asarray(statistic(runs, axis=-1)) if runs.size else np.asarray(np.nan)

    def together(*resampled: Array, axis: int = -1) -> Array:
        return statistic(np.concatenate(resampled, axis=axis), axis=axis)

    low, high = _bootstrap(strata, together, confidence, resamples, seed, expand)
    return Estimate(value, low, high, np.asarray(runs.size))


def bands(
    samples: ArrayLike,
    statistic: Statistic = iqm,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
    expand: bool = True,
) -> Estimate:
    """`interval` of each column on its own: samples [seeds, K] (K points of a curve) -> Estimate of arrays [K]."""
    x = np.asarray(samples, dtype=float)
    if x.ndim != 2:
        raise ValueError(f"samples {x.shape} must be [seeds, K]")
    whole = ~np.isnan(x).any(axis=0)
    out = np.full((3, x.shape[1]), np.nan)
    if whole.any():
        columns = x[:, whole].T  # one call resamples the same seeds at every point
        out[0, whole] = statistic(columns, axis=-1)
        out[1:, whole] = _bootstrap([columns], statistic, confidence, resamples, seed, expand)
    for k in np.flatnonzero(~whole):
        out[:, k] = interval(x[:, k], statistic, confidence, resamples, seed, expand)[:3]
    return Estimate(out[0], out[1], out[2], np.sum(~np.isnan(x), axis=0))


def paired_difference(
    a: ArrayLike,
    b: ArrayLike,
    statistic: Statistic = iqm,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
    expand: bool = True,
) -> Estimate:
    """`interval` of a - b, seed by seed: both methods met the same noise, so the pair is what is drawn again.

    a, b: [seeds] or [seeds, tasks], rows of equal seeds; a pair with a NaN is left out. Unequal shapes: ValueError.
    """
    x, y = _pairs(a, b)
    return interval(x - y, statistic, confidence, resamples, seed, expand)


def probability_of_improvement(
    a: ArrayLike, b: ArrayLike, confidence: float = 0.95, resamples: int = 2000, seed: int = 0, expand: bool = True
) -> Estimate:
    """P(X > Y) + P(X = Y)/2 for a random run X of `a` and Y of `b` on one task, averaged over tasks (Mann-Whitney).

    a, b: [seeds] or [seeds, tasks], the same tasks; a task where either has no defined run is left out. The interval
    draws the runs of both methods again within each task, and has no width where all of X beat all of Y; `runs` counts
    the pairs compared. For runs in pairs see `paired_improvement`.
    """
    x, y = (np.asarray(v, dtype=float) for v in (a, b))
    x, y = (v[:, None] if v.ndim == 1 else v for v in (x, y))
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise ValueError(f"samples {x.shape} and {y.shape} must have the same tasks")
    both = [t for t in range(x.shape[1]) if not (np.isnan(x[:, t]).all() or np.isnan(y[:, t]).all())]
    strata = [s for t in both for s in (*_strata(x[:, t]), *_strata(y[:, t]))]

    def better(*resampled: Array, axis: int = -1) -> Array:
        wins = [
            np.mean((p[..., :, None] > q[..., None, :]) + 0.5 * (p[..., :, None] == q[..., None, :]), axis=(-2, -1))
            for p, q in zip(resampled[::2], resampled[1::2], strict=True)
        ]
        return np.mean(wins, axis=0)

    value = np.asarray(better(*strata)) if strata else np.asarray(np.nan)
    pairs = sum(p.size * q.size for p, q in zip(strata[::2], strata[1::2], strict=True))
    weight = max((s.size for s in strata), default=1)
    low, high = _bootstrap(strata, better, confidence, resamples, seed, expand, weight)
    return Estimate(value, low, high, np.asarray(pairs))


def paired_improvement(a: ArrayLike, b: ArrayLike, confidence: float = 0.95) -> Estimate:
    """The share of pairs in which a > b, ties counted half: how often the first method is better on the same seed.

    Wilson's interval of a share of n pairs, which has a width at 0 and 1 too. Several tasks and ties vary less than n
    draws of one coin, so it then covers more than it claims.

    a, b: [seeds] or [seeds, tasks], rows of equal seeds; a pair with a NaN is left out. Unequal shapes: ValueError.
    """
    x, y = _pairs(a, b)
    known = ~(np.isnan(x) | np.isnan(y))
    n = int(np.sum(known))
    share = _divide(np.sum((x > y)[known]) + 0.5 * np.sum((x == y)[known]), n)
    _check(confidence)
    if n == 0:
        return Estimate(share, share, share, np.asarray(0))
    from scipy.stats import norm

    z2 = norm.ppf(0.5 + confidence / 2) ** 2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = np.sqrt(z2 * (share * (1 - share) + z2 / (4 * n)) / n) / (1 + z2 / n)
    return Estimate(share, np.asarray(centre - half), np.asarray(centre + half), np.asarray(n))


def performance_profile(scores: ArrayLike, thresholds: Sequence[float]) -> Array:
    """[len(thresholds)]: the fraction of defined runs (over all seeds and tasks) that score above each threshold."""
    x = np.asarray(scores, dtype=float).ravel()
    x = x[~np.isnan(x)]
    above = np.sum(x > np.asarray(thresholds, dtype=float)[:, None], axis=-1)
    return _divide(above, np.full(len(thresholds), x.size))


def profile_bands(
    scores: ArrayLike,
    thresholds: Sequence[float],
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
    expand: bool = True,
) -> Estimate:
    """`performance_profile` with a pointwise interval: Estimate of arrays [len(thresholds)].

    scores: [seeds] or [seeds, tasks]; seeds are drawn again within each task. No width where all lie above, or none.
    """
    strata = _strata(scores)
    at = np.asarray(thresholds, dtype=float)
    above = [(runs > at[:, None]).astype(float) for runs in strata]  # [K, runs] each

    def share(*resampled: Array, axis: int = -1) -> Array:
        return np.mean(np.concatenate(resampled, axis=axis), axis=axis)

    low, high, _ = np.broadcast_arrays(*_bootstrap(above, share, confidence, resamples, seed, expand), at)
    runs = np.full(len(at), sum(r.size for r in strata))
    return Estimate(performance_profile(scores, thresholds), low, high, runs)


def side_by_side(tasks: Sequence[ArrayLike]) -> Array:
    """Tasks with unequally many runs as [seeds, tasks]: NaN where a task has no such run."""
    columns = [np.ravel(np.asarray(runs, dtype=float)) for runs in tasks]
    out = np.full((max((len(c) for c in columns), default=0), len(columns)), np.nan)
    for k, column in enumerate(columns):
        out[: len(column), k] = column
    return out


def aligned(
    steps: Sequence[ArrayLike], values: Sequence[ArrayLike], points: ArrayLike | None = None
) -> tuple[Array, Array]:
    """Curves that were measured at different points, or for different lengths, on common points.

    Between two evaluation points a curve is a straight line. Before its first and after its last point it is NaN: a
    run that stopped early is absent there, its last value is not carried on.

    Args:
        steps: of each run, [K_r] strictly increasing evaluation points.
        values: of each run, [K_r].
        points: [K] where the curves are wanted; None: wherever any run was measured.
    Returns:
        points [K] and curves [runs, K], for `bands`.
    Raises:
        ValueError: a run's steps and values differ in number, or its steps do not increase.
    """
    if len(steps) != len(values):
        raise ValueError(f"{len(steps)} runs of steps and {len(values)} of values must be equally many")
    at = [_increasing(s) for s in steps]
    heights = [np.asarray(v, dtype=float) for v in values]
    for s, v in zip(at, heights, strict=True):
        if s.shape != v.shape:
            raise ValueError(f"a run's steps {s.shape} and values {v.shape} must be equally many")
    wanted = np.unique(np.concatenate([np.empty(0), *at])) if points is None else np.asarray(points, dtype=float)
    out = np.full((len(at), len(wanted)), np.nan)
    for row, s, v in zip(out, at, heights, strict=True):
        if len(s):
            row[:] = np.interp(wanted, s, v, left=np.nan, right=np.nan)
    return wanted, out


def area_under_curve(steps: ArrayLike, values: ArrayLike, until: float | None = None) -> Array:
    """Mean height of a curve from its first point to `until`: its trapezoid area over that length.

    Runs of unequal length are comparable up to the end of the shortest: give that as `until`.

    Args:
        steps: [K] strictly increasing evaluation points.
        values: [..., K]; a NaN within the range makes the area NaN.
        until: in steps; None: the last point. NaN where the curve ends earlier.
    Returns:
        [...], in units of the values.
    Raises:
        ValueError: steps do not increase, differ in number from the values, or `until` is not beyond the first.
    """
    x, y = _increasing(steps), np.asarray(values, dtype=float)
    if y.shape[-1:] != x.shape or len(x) < 2:
        raise ValueError(f"steps {x.shape} and values {y.shape} must be [K] and [..., K] with K of 2 or more")
    end = x[-1] if until is None else float(until)
    if not end > x[0]:
        raise ValueError(f"until={until!r} must lie beyond the first step {x[0]:g}")
    if end > x[-1]:
        return np.full(y.shape[:-1], np.nan)
    k = int(np.searchsorted(x, end))  # x[k-1] < end <= x[k]
    part = (end - x[k - 1]) / (x[k] - x[k - 1])
    last = y[..., k] if part == 1 else (1 - part) * y[..., k - 1] + part * y[..., k]
    height = np.concatenate([y[..., :k], last[..., None]], axis=-1)
    width = np.diff(np.append(x[:k], end))
    return np.sum((height[..., 1:] + height[..., :-1]) / 2 * width, axis=-1) / (end - x[0])


def _divide(a: ArrayLike, b: ArrayLike) -> Array:
    """a / b, NaN where b is 0."""
    top, bottom = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    return np.where(bottom == 0, np.nan, top / np.where(bottom == 0, 1.0, bottom))


def _increasing(steps: ArrayLike) -> Array:
    """[K] evaluation points, or ValueError."""
    x = np.asarray(steps, dtype=float)
    if x.ndim != 1 or not np.all(np.diff(x) > 0):
        raise ValueError(f"steps {x.tolist()} must be a list of numbers that increase")
    return x


def _pairs(a: ArrayLike, b: ArrayLike) -> tuple[Array, Array]:
    x, y = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if x.shape != y.shape:
        raise ValueError(f"paired samples must have one shape, not {x.shape} and {y.shape}")
    return x, y


def _strata(samples: ArrayLike) -> list[Array]:
    """The defined runs of each task; tasks without any are dropped."""
    x = np.asarray(samples, dtype=float)
    if x.ndim not in (1, 2):
        raise ValueError(f"samples {x.shape} must be [seeds] or [seeds, tasks]")
    columns = x.reshape(len(x), -1).T
    return [column[~np.isnan(column)] for column in columns if not np.isnan(column).all()]


def _check(confidence: float, resamples: int = 1) -> None:
    if not 0 < confidence < 1 or resamples < 1:
        raise ValueError(f"confidence={confidence!r} must lie in (0, 1) and resamples={resamples!r} be 1 or more")


def _expanded(confidence: float, runs: int, tasks: int) -> float:
    """The confidence to ask a percentile interval of `runs` runs in all for, so that it covers what it should."""
    from scipy.stats import norm, t

    free = runs - tasks
    return float(1 - 2 * norm.sf(np.sqrt(runs / free) * t.isf((1 - confidence) / 2, free)))


def _bootstrap(
    strata: Sequence[Array],
    statistic: Statistic,
    confidence: float,
    resamples: int,
    seed: int,
    expand: bool,
    weight: int = 1,
) -> tuple[Array, Array]:
    """Percentile interval; each stratum [..., n] is resampled along its last axis on its own.

    weight: numbers that the statistic holds for each one that is resampled.
    """
    _check(confidence, resamples)
    if not strata or min(s.shape[-1] for s in strata) < 2:
        undefined = np.full(strata[0].shape[:-1] if strata else (), np.nan)
        return undefined, undefined
    from scipy.stats import bootstrap

    runs = sum(s.shape[-1] for s in strata)
    size = weight * sum(s.size for s in strata)
    result = bootstrap(
        tuple(strata),
        statistic,
        n_resamples=resamples,
        confidence_level=_expanded(confidence, runs, len(strata)) if expand else confidence,
        method="percentile",
        vectorized=True,
        axis=-1,
        batch=max(1, min(resamples, int(_NUMBERS_AT_ONCE // size))),
        random_state=np.random.default_rng(seed),
    )
    return np.asarray(result.confidence_interval.low), np.asarray(result.confidence_interval.high)
