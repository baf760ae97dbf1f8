"""How right is a credit tensor? Small pure functions of a credit, the truth and an alive mask, one number an episode.

Shapes: credit `c` and `truth` [T,B,N], `alive` [T,B] bool; every score is [B] float64. Only alive steps count. A score
that is undefined (no variance, no culprit, one agent, one step, a credit that is not finite) is NaN; `average` counts
the others. Numbers closer than 1e-6 of an episode's largest are ties: rounding is not ranked.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
TIE = 1e-6
EPS = 0.05
"""A unit matters in an episode when its |truth| exceeds this part of the episode's largest."""


class Average(NamedTuple):
    """A mean over the episodes where a score is defined."""

    value: float  # NaN where none is
    defined: int  # episodes it rests on


class Split(NamedTuple):
    """How well the three parts of a credit follow the truth's, [B] each, in [-1, 1]."""

    who: Array  # alpha_i, over agents
    when: Array  # beta_t, over alive steps
    which: Array  # the rest: which agent's which action, beyond who and when


def average(score: ArrayLike) -> Average:
    """Mean of the defined episodes, with their number."""
    x = np.asarray(score, dtype=float)
    x = x[~np.isnan(x)]
    return Average(float(np.mean(x)) if x.size else float("nan"), int(x.size))


def pearson(c: ArrayLike, truth: ArrayLike, alive: ArrayLike) -> Array:
    """Linear correlation of c and truth over the alive units (t,i) of each episode."""
    mask, (x, y) = _flat(alive, c, truth)
    return _correlation(mask, x, y, _largest(mask, x), _largest(mask, y))


def spearman(c: ArrayLike, truth: ArrayLike, alive: ArrayLike) -> Array:
    """Rank correlation of c and truth over the alive units of each episode; ties share their average rank."""
    mask, (x, y) = _flat(alive, c, truth)
    p, q = _ranks(mask, x), _ranks(mask, y)
    return _correlation(mask, p, q, _largest(mask, p), _largest(mask, q))


def rmse(c: ArrayLike, truth: ArrayLike, alive: ArrayLike) -> Array:
    """sqrt mean (c - truth)^2 over the alive units, in units of return."""
    mask, (x, y) = _flat(alive, c, truth)
    return np.sqrt(_mean(mask, (x - y) ** 2))


def sign_accuracy(c: ArrayLike, truth: ArrayLike, alive: ArrayLike) -> Array:
    """Share of the units with |truth| > eps whose credit has the truth's sign (a credit of 0 has none)."""
    mask, (x, y) = _flat(alive, c, truth)
    return _mean(_matters(mask, y), np.sign(x) == np.sign(y))


def null_leakage(c: ArrayLike, truth: ArrayLike, alive: ArrayLike) -> Array:
    """sum |c| over units with |truth| <= eps, as a share of sum |c|: credit given to units that did nothing.

    NaN where no unit matters or nothing is credited.
    """
    mask, (x, y) = _flat(alive, c, truth)
    matters = _matters(mask, y)
    size = np.where(mask, np.abs(x), 0.0)
    share = _divide(np.sum(np.where(matters, 0.0, size), axis=1), np.sum(size, axis=1))
    return np.where(matters.any(axis=1), share, np.nan)


def unit_auc(c: ArrayLike, truth: ArrayLike, alive: ArrayLike) -> Array:
    """Area under the ROC curve of |c| as a detector of the units with |truth| > eps; .5 is chance."""
    mask, (x, y) = _flat(alive, c, truth)
    return _auc(mask, np.abs(x), _matters(mask, y))


def culprits(truth: ArrayLike, alive: ArrayLike, failed: ArrayLike | None = None) -> Mask:
    """[T,B,N] bool: alive units with truth < -eps, eps = .05 max |truth| of the episode.

    failed [B] bool: the episodes to look at; None: all. Give it where a truth is also negative for trifles (O6 of an
    episode in which nothing went wrong), for blame is scored on failed episodes only.
    """
    mask, (y,) = _flat(alive, truth)
    found = _matters(mask, y) & (y < 0)
    if failed is not None:
        found = found & np.asarray(failed, dtype=bool).reshape(-1, 1)
    t, b, n = np.shape(truth)
    return found.reshape(b, t, n).transpose(1, 0, 2)


def culprit_auc(c: ArrayLike, culprit: ArrayLike, alive: ArrayLike) -> Array:
    """Area under the ROC curve of -c as a detector of the culprits (bool [T,B,N]); .5 is chance, NaN without any."""
    mask, (x, guilty) = _flat(alive, c, culprit)
    return _auc(mask, -x, guilty > 0)


def top1_culprit(c: ArrayLike, culprit: ArrayLike, alive: ArrayLike) -> Array:
    """Chance that the most blamed unit (smallest c; ties drawn evenly) is a culprit; NaN without any culprit."""
    mask, (x, guilty) = _flat(alive, c, culprit)
    least = np.min(np.where(mask, x, np.inf), axis=1, initial=np.inf)
    first = mask & (x <= (least + TIE * _largest(mask, x))[:, None])
    return np.where(((guilty > 0) & mask).any(axis=1), _mean(first, guilty > 0), np.nan)


def blame_mass(c: ArrayLike, culprit: ArrayLike, alive: ArrayLike) -> Array:
    """Share of all blame max(0, -c) that falls on culprits; NaN without any culprit or any blame."""
    mask, (x, guilty) = _flat(alive, c, culprit)
    blame = np.where(mask, np.maximum(0.0, -x), 0.0)
    share = _divide(np.sum(blame * (guilty > 0), axis=1), np.sum(blame, axis=1))
    return np.where(((guilty > 0) & mask).any(axis=1), share, np.nan)


def split(c: ArrayLike, truth: ArrayLike, alive: ArrayLike) -> Split:
    """Two-way split c = mu + alpha_i + beta_t + rest of each episode, each part correlated (Pearson) with the truth's.

    mu is the mean over alive units, alpha_i an agent's mean less mu, beta_t a step's mean less mu. beta moves under a
    harmless baseline b(s_t), so `when` scores attribution, not learning. One agent: only `when`; one step: only `who`.
    """
    mask, _ = _flat(alive, c, truth)  # checks shapes; an episode that is not finite has an empty mask
    t, b, n = np.shape(c)
    living = mask.reshape(b, t, n)[..., 0]
    parts = [_parts(living, np.asarray(x, dtype=float).transpose(1, 0, 2)) for x in (c, truth)]
    masks = (np.repeat(np.any(living, axis=1, keepdims=True), n, axis=1), living, mask)
    scale_c, scale_truth = parts[0][3], parts[1][3]
    who, when, which = (
        _correlation(m, x, y, scale_c, scale_truth) for m, x, y in zip(masks, parts[0][:3], parts[1][:3], strict=True)
    )
    return Split(who, when, which)


def scores(c: ArrayLike, truth: ArrayLike, alive: ArrayLike, failed: ArrayLike | None = None) -> dict[str, Array]:
    """Every score of this page under the name that results use, [B] each. failed: as `culprits`."""
    guilty = culprits(truth, alive, failed)
    parts = split(c, truth, alive)
    return {
        "credit_pearson": pearson(c, truth, alive),
        "credit_spearman": spearman(c, truth, alive),
        "credit_rmse": rmse(c, truth, alive),
        "sign_accuracy": sign_accuracy(c, truth, alive),
        "null_leakage": null_leakage(c, truth, alive),
        "unit_auc": unit_auc(c, truth, alive),
        "culprit_auc": culprit_auc(c, guilty, alive),
        "top1_culprit": top1_culprit(c, guilty, alive),
        "blame_mass": blame_mass(c, guilty, alive),
        "split_who": parts.who,
        "split_when": parts.when,
        "split_which": parts.which,
    }


def _flat(alive: ArrayLike, *arrays: ArrayLike) -> tuple[Mask, list[Array]]:
    """The mask and the arrays as [B, T*N], dead entries 0; all masked where an alive entry is not finite."""
    living = np.asarray(alive, dtype=bool)
    tensors = [np.asarray(x, dtype=float) for x in arrays]
    shape = tensors[0].shape
    if len(shape) != 3 or living.shape != shape[:2] or any(x.shape != shape for x in tensors):
        raise ValueError(
            f"credit and truth must be [T,B,N] and alive [T,B], not {[x.shape for x in tensors]}, {living.shape}"
        )
    t, b, n = shape
    mask = np.repeat(living.T, n, axis=1)
    flat = [x.transpose(1, 0, 2).reshape(b, t * n) for x in tensors]
    for x in flat:
        mask = mask & np.all(np.isfinite(x) | ~mask, axis=1, keepdims=True)
    return mask, [np.where(mask, x, 0.0) for x in flat]


def _divide(a: ArrayLike, b: ArrayLike) -> Array:
    """a / b, NaN where b is 0."""
    top, bottom = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    return np.where(bottom == 0, np.nan, top / np.where(bottom == 0, 1.0, bottom))


def _mean(mask: Mask, x: ArrayLike) -> Array:
    return _divide(np.sum(np.where(mask, x, 0.0), axis=1), np.sum(mask, axis=1))


def _largest(mask: Mask, x: Array) -> Array:
    return np.max(np.where(mask, np.abs(x), 0.0), axis=1, initial=0.0)


def _matters(mask: Mask, truth: Array) -> Mask:
    """Units with |truth| > eps of the episode's largest."""
    return mask & (np.abs(truth) > EPS * _largest(mask, truth)[:, None])


def _correlation(mask: Mask, x: Array, y: Array, scale_x: Array, scale_y: Array) -> Array:
    """Pearson over masked entries of [B, M]; NaN where x or y spreads no wider than rounding of its scale [B]."""
    u = np.where(mask, x - _mean(mask, x)[:, None], 0.0)
    v = np.where(mask, y - _mean(mask, y)[:, None], 0.0)
    count = np.maximum(1, np.sum(mask, axis=1))
    spread_u, spread_v = np.sqrt(np.sum(u * u, axis=1)), np.sqrt(np.sum(v * v, axis=1))
    floor = TIE * np.sqrt(count)
    defined = (spread_u > floor * scale_x) & (spread_v > floor * scale_y)
    return np.clip(_divide(np.sum(u * v, axis=1), np.where(defined, spread_u * spread_v, 0.0)), -1.0, 1.0)


def _ranks(mask: Mask, x: Array) -> Array:
    """1-based ranks among the masked entries of each row of [B, M], ties averaged; 0 elsewhere."""
    b, m = x.shape
    unit = TIE * _largest(mask, x)[:, None]
    key = np.where(mask, np.round(x / np.where(unit == 0, 1.0, unit)), np.inf)
    order = np.argsort(key, axis=1, kind="stable")
    ordered = np.take_along_axis(key, order, axis=1)
    begins = np.concatenate([np.ones((b, 1), dtype=bool), ordered[:, 1:] != ordered[:, :-1]], axis=1)
    group = np.cumsum(begins.ravel()) - 1  # runs of equal keys, counted through all rows
    size = np.bincount(group)
    start = np.flatnonzero(begins.ravel())
    rank = (start % m + (size + 1) / 2)[group].reshape(b, m)
    out = np.empty((b, m))
    np.put_along_axis(out, order, rank, axis=1)
    return np.where(mask, out, 0.0)


def _auc(mask: Mask, score: Array, positive: Mask) -> Array:
    """P(score of a positive > score of a negative) + half the ties, from rank sums (Mann-Whitney)."""
    hit = mask & positive
    n1 = np.sum(hit, axis=1)
    n0 = np.sum(mask, axis=1) - n1
    won = np.sum(np.where(hit, _ranks(mask, score), 0.0), axis=1) - n1 * (n1 + 1) / 2
    return _divide(won, n1 * n0)


def _parts(living: Mask, x: Array) -> tuple[Array, Array, Array, Array]:
    """alpha [B,N], beta [B,T], rest [B,T*N] and the scale [B] of x [B,T,N]; living [B,T]."""
    x = np.where(living[..., None], x, 0.0)
    steps = np.maximum(1, np.sum(living, axis=1))[:, None]
    mu = np.sum(x, axis=(1, 2))[:, None] / (steps * x.shape[2])
    alpha = np.sum(x, axis=1) / steps - mu
    beta = np.where(living, np.mean(x, axis=2) - mu, 0.0)
    rest = np.where(living[..., None], x - (mu + alpha)[:, None, :] - beta[..., None], 0.0)
    return alpha, beta, rest.reshape(len(x), -1), np.max(np.abs(x), axis=(1, 2), initial=0.0)
