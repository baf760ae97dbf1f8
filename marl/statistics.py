"""How sure we are: interquartile means, stratified bootstrap intervals and paired comparisons over training seeds.

After Agarwal et al. 2021, "Deep reinforcement learning at the edge of the statistical precipice". Undefined runs (NaN)
are left out and the number of defined ones is always returned beside the estimate. Equal input gives equal output.
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
) -> Estimate:
    """A statistic of all runs, with the percentile interval of a bootstrap that draws seeds within each task.

    Args:
        samples: [seeds], or [seeds, tasks]: tasks are the strata. NaN runs are left out.
        statistic: of the runs of all tasks together.
        confidence: of the interval, in (0, 1).
        resamples: bootstrap draws.
        seed: of the draws.
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

    low, high = _bootstrap(strata, together, confidence, resamples, seed)
    return Estimate(value, low, high, np.asarray(runs.size))


def bands(
    samples: ArrayLike,
    statistic: Statistic = iqm,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
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
        out[1:, whole] = _bootstrap([columns], statistic, confidence, resamples, seed)
    for k in np.flatnonzero(~whole):
        out[:, k] = interval(x[:, k], statistic, confidence, resamples, seed)[:3]
    return Estimate(out[0], out[1], out[2], np.sum(~np.isnan(x), axis=0))


def paired_difference(
    a: ArrayLike,
    b: ArrayLike,
    statistic: Statistic = iqm,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Estimate:
    """`interval` of a - b, seed by seed: both methods met the same noise, so the pair is what is drawn again.

    a, b: [seeds] or [seeds, tasks], rows of equal seeds; a pair with a NaN is left out. Unequal shapes: ValueError.
    """
    x, y = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if x.shape != y.shape:
        raise ValueError(f"paired samples must have one shape, not {x.shape} and {y.shape}")
    return interval(x - y, statistic, confidence, resamples, seed)


def probability_of_improvement(
    a: ArrayLike, b: ArrayLike, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Estimate:
    """P(X > Y) + P(X = Y)/2 for a random run X of `a` and Y of `b` on one task, averaged over tasks (Mann-Whitney).

    a, b: [seeds] or [seeds, tasks], the same tasks; a task where either has no defined run is left out. The interval
    draws the runs of both methods again within each task; `runs` counts the pairs compared.
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
    low, high = _bootstrap(strata, better, confidence, resamples, seed, weight=max((s.size for s in strata), default=1))
    return Estimate(value, low, high, np.asarray(pairs))


def performance_profile(scores: ArrayLike, thresholds: Sequence[float]) -> Array:
    """[len(thresholds)]: the fraction of defined runs (over all seeds and tasks) that score above each threshold."""
    x = np.asarray(scores, dtype=float).ravel()
    x = x[~np.isnan(x)]
    above = np.sum(x > np.asarray(thresholds, dtype=float)[:, None], axis=-1)
    return _divide(above, np.full(len(thresholds), x.size))


def _divide(a: ArrayLike, b: ArrayLike) -> Array:
    """a / b, NaN where b is 0."""
    top, bottom = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    return np.where(bottom == 0, np.nan, top / np.where(bottom == 0, 1.0, bottom))


def _strata(samples: ArrayLike) -> list[Array]:
    """The defined runs of each task; tasks without any are dropped."""
    x = np.asarray(samples, dtype=float)
    if x.ndim not in (1, 2):
        raise ValueError(f"samples {x.shape} must be [seeds] or [seeds, tasks]")
    columns = x.reshape(len(x), -1).T
    return [column[~np.isnan(column)] for column in columns if not np.isnan(column).all()]


def _bootstrap(
    strata: Sequence[Array], statistic: Statistic, confidence: float, resamples: int, seed: int, weight: int = 1
) -> tuple[Array, Array]:
    """Percentile interval; each stratum [..., n] is resampled along its last axis on its own.

    weight: numbers that the statistic holds for each one that is resampled.
    """
    if not 0 < confidence < 1 or resamples < 1:
        raise ValueError(f"confidence={confidence!r} must lie in (0, 1) and resamples={resamples!r} be 1 or more")
    if not strata or min(s.shape[-1] for s in strata) < 2:
        undefined = np.full(strata[0].shape[:-1] if strata else (), np.nan)
        return undefined, undefined
    from scipy.stats import bootstrap

    size = weight * sum(s.size for s in strata)
    result = bootstrap(
        tuple(strata),
        statistic,
        n_resamples=resamples,
        confidence_level=confidence,
        method="percentile",
        vectorized=True,
        axis=-1,
        batch=max(1, min(resamples, int(_NUMBERS_AT_ONCE // size))),
        random_state=np.random.default_rng(seed),
    )
    return np.asarray(result.confidence_interval.low), np.asarray(result.confidence_interval.high)
