"""How right is a credit tensor? Small pure functions of a credit, the truth and an alive mask, one number an episode.

Shapes: credit `c` and `truth` [T,B,N], `alive` [T,B] bool; every score is [B] float64. Only alive steps count. A score
that is undefined (no variance, no culprit, one agent, one step, a credit that is not finite) is NaN; `average` counts
the others. Numbers closer than 1e-6 of an episode's largest are ties: rounding is not ranked. Scores that need many
episodes (`centred_rmse`, `gradient`) or pairs of situations (`factoredness`, `learnability`) say their own shapes.
"""

from __future__ import annotations

from collections.abc import Sequence
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


class Centred(NamedTuple):
    """A centred error, and how much of the credit it could be measured on; [S] each."""

    value: Array  # NaN where no group has two distinct actions
    coverage: Array  # share of the alive units (t,i) that lie in such groups


class GradientScore(NamedTuple):
    """How well samples of a gradient follow the true one, [...] each; lengths in units of the true gradient's."""

    cosine: Array  # of the mean sample with the truth
    relative_error: Array  # |mean - truth| / |truth|; holds the noise of the mean as well
    bias: Array  # |E g - truth| / |truth|, the noise of the mean taken out
    variance: Array  # tr Cov(g) / |truth|^2, of one sample
    snr: Array  # signal-to-noise of one sample, (|mean|^2 - tr Cov / n) / tr Cov


class Factored(NamedTuple):
    """How often an agent's own change moves its credit the way it moves the team's reward, [...] each."""

    value: Array  # share of pairs with equal signs; both unmoved counts as equal
    strict: Array  # share of pairs in which both move, and the same way (a tie counts against it)
    ties: Array  # share of pairs in which the credit, the team's reward or both do not move


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


def state_keys(state: Sequence[ArrayLike]) -> NDArray[np.int64]:
    """[T,B] a number for each state, equal for equal ones: what `centred_rmse` groups by.

    state: the fields of a state, [T,B,...] each (a game's NamedTuple as recorded).
    """
    fields = [np.asarray(x) for x in state]
    t, b = fields[0].shape[:2]
    table = np.concatenate([x.reshape(t * b, -1).astype(float) for x in fields], axis=1)
    return np.unique(table, axis=0, return_inverse=True)[1].reshape(t, b).astype(np.int64)


def centred_rmse(
    c: ArrayLike, truth: ArrayLike, alive: ArrayLike, action: ArrayLike, state: ArrayLike, n_seeds: int = 1
) -> Centred:
    """sqrt mean (d - mean of d in its group)^2, d = c - truth: the error that no baseline b(t, s, i) can explain.

    A group is the alive units of one (seed, t, state, agent). Only groups with two distinct actions count: in the
    others a credit has nothing to tell apart, and any is perfect.

    Args:
        action: [T,B,N] integers. state: [T,B] integers, equal for equal states (see `state_keys`).
        n_seeds: B = S * E rows, seed-major; groups never cross seeds, for credit is a function of the policy.
    """
    mask, (x, y, taken) = _flat(alive, c, truth, action)
    t, b, n = np.shape(c)
    if np.shape(state) != (t, b) or n_seeds < 1 or b % n_seeds:
        raise ValueError(
            f"state {np.shape(state)} must be [T,B] = {(t, b)}, and n_seeds={n_seeds} a divisor of B, 1 or more"
        )
    seed = np.repeat(np.arange(n_seeds), b // n_seeds)[:, None, None]
    where = np.asarray(state).T[:, :, None]
    unit = np.broadcast_arrays(seed, np.arange(t)[None, :, None], where, np.arange(n)[None, None])
    # Rows of a table with the state as it is: a product of ranges could overflow where states are hashes.
    table = np.stack([u.reshape(b, t * n)[mask] for u in unit], axis=1)
    group = np.unique(table, axis=0, return_inverse=True)[1].ravel() if len(table) else np.empty(0, dtype=int)
    size = np.bincount(group)
    low, high = np.full(len(size), np.inf), np.full(len(size), -np.inf)
    np.minimum.at(low, group, taken[mask])
    np.maximum.at(high, group, taken[mask])
    told = (high > low)[group]
    gap = (x - y)[mask]
    rest = gap - (np.bincount(group, gap) / np.maximum(size, 1))[group]
    of = table[:, 0].astype(int)
    covered = np.bincount(of, told, n_seeds)
    error = np.bincount(of, np.where(told, rest**2, 0.0), n_seeds)
    return Centred(np.sqrt(_divide(error, covered)), _divide(covered, np.bincount(of, minlength=n_seeds)))


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


def conservation_gap(c: ArrayLike, total: ArrayLike, alive: ArrayLike, discount: float = 1.0) -> Array:
    """sum_{t,i} discount^t c_it - total: what the agents were given beyond what there was to share, in return.

    total [B]: what a ledger has to explain, G_0 - V(s_0) - sum_t discount^t luck_t for credit of actions, or the
    episode's return for redistributions of it. NaN where credit or total is not finite, or nothing is alive.
    """
    mask, (x,) = _flat(alive, c)
    t, b, n = np.shape(c)
    whole = np.asarray(total, dtype=float)
    if whole.shape != (b,):
        raise ValueError(f"total {whole.shape} must be [B] = {(b,)}")
    weight = np.repeat(discount ** np.arange(t, dtype=float), n)
    gap = np.sum(x * weight, axis=1) - whole
    return np.where(mask.any(axis=1) & np.isfinite(whole), gap, np.nan)


def gradient(samples: ArrayLike, truth: ArrayLike) -> GradientScore:
    """Samples g [..., n, P] of a gradient (one a batch of episodes) against the true one [..., P].

    With m their mean and Cov their unbiased covariance, E|m - truth|^2 = |E g - truth|^2 + tr Cov / n, so that
        bias^2 = (|m - truth|^2 - tr Cov / n) / |truth|^2  (0 where noise makes it negative),
        bias^2 + variance = mean_k |g_k - truth|^2 / |truth|^2, exactly, where it is not cut off at 0.
    snr can be negative where there is no signal. NaN: fewer than two samples (but for cosine and relative_error), a
    true gradient of 0 (but for snr), no variance (snr), or a number that is not finite.
    """
    g, g0 = np.asarray(samples, dtype=float), np.asarray(truth, dtype=float)
    if g.ndim < 2 or g.shape[-1:] != g0.shape[-1:] or g.shape[:-2] != g0.shape[:-1]:
        raise ValueError(f"samples must be [..., n, P] and the truth [..., P], not {g.shape} and {g0.shape}")
    n = g.shape[-2]
    finite = np.isfinite(g).all(axis=(-2, -1)) & np.isfinite(g0).all(axis=-1) & (n > 0)
    g, g0 = np.where(finite[..., None, None], g, 0.0), np.where(finite[..., None], g0, 0.0)
    mean = np.sum(g, axis=-2) / max(1, n)
    spread = np.sum((g - mean[..., None, :]) ** 2, axis=(-2, -1))
    noise = spread / (n - 1) if n > 1 else np.full_like(spread, np.nan)
    signal, size = np.sum(mean**2, axis=-1), np.sum(g0**2, axis=-1)
    apart = np.sum((mean - g0) ** 2, axis=-1)
    found = (
        _divide(np.sum(mean * g0, axis=-1), np.sqrt(signal * size)),
        np.sqrt(_divide(apart, size)),
        np.sqrt(np.maximum(0.0, _divide(apart - noise / max(1, n), size))),
        _divide(noise, size),
        _divide(signal - noise / max(1, n), noise),
    )
    return GradientScore(*(np.where(finite, x, np.nan) for x in found))


def factoredness(
    credit: ArrayLike, credit_changed: ArrayLike, team: ArrayLike, team_changed: ArrayLike, valid: ArrayLike = True
) -> Factored:
    """Share of pairs (z, z') with sign(g_i(z) - g_i(z')) = sign(G(z) - G(z')) (Agogino & Tumer 2008).

    z and z' differ in agent i's action alone. What is good for i is then good for the team. Agogino & Tumer count
    u[(g - g')(G - G')], u the unit step, in which ties count for nothing: that is `strict`.

    Args:
        credit, credit_changed: g_i at z and at z', [K, ...], K pairs each (e.g. [K,N] for every agent at once).
        team, team_changed: G at z and at z', the same shape. valid: [K, ...] bool, the pairs to look at.
    Returns: [...] each; NaN where no pair is valid.
    """
    g, g1, team_, team1 = (np.asarray(x, dtype=float) for x in (credit, credit_changed, team, team_changed))
    if not (g.ndim and g.shape == g1.shape == team_.shape == team1.shape):
        raise ValueError(f"the four must be [K, ...] of one shape, not {[x.shape for x in (g, g1, team_, team1)]}")
    own, whole = _moves(g, g1), _moves(team_, team1)
    counts = np.broadcast_to(np.asarray(valid, dtype=bool), g.shape) & np.isfinite(own) & np.isfinite(whole)
    pairs = np.sum(counts, axis=0)
    equal, strict, ties = own == whole, own * whole > 0, own * whole == 0
    return Factored(*(_divide(np.sum(x & counts, axis=0), pairs) for x in (equal, strict, ties)))


def learnability(
    credit: ArrayLike, own_changed: ArrayLike, others_changed: ArrayLike, valid: ArrayLike = True
) -> Array:
    """E|g_i(z) - g_i(z_-i, z'_i)| / E|g_i(z) - g_i(z'_-i, z_i)| (Agogino & Tumer 2008): signal to noise of a credit.

    Args:
        credit, own_changed, others_changed: g_i at z, with agent i's action replaced, and with the others' replaced,
            [K, ...]. valid: [K, ...] bool.
    Returns: [...]; infinite where the others do not move it at all, NaN where nothing does or no sample is valid.
    """
    g, mine, theirs = (np.asarray(x, dtype=float) for x in (credit, own_changed, others_changed))
    if not (g.ndim and g.shape == mine.shape == theirs.shape):
        raise ValueError(f"the three must be [K, ...] of one shape, not {[x.shape for x in (g, mine, theirs)]}")
    counts = np.broadcast_to(np.asarray(valid, dtype=bool), g.shape)
    counts = counts & np.isfinite(g) & np.isfinite(mine) & np.isfinite(theirs)
    top, bottom = (np.sum(np.abs(_gap(g, x)), axis=0, where=counts) for x in (mine, theirs))
    return np.where((bottom == 0) & (top > 0), np.inf, _divide(top, bottom))


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


def _gap(before: Array, after: Array) -> Array:
    """before - after [K, ...], 0 where they differ by rounding of the largest of the K."""
    sizes = [np.max(np.where(np.isfinite(x), np.abs(x), 0.0), axis=0, initial=0.0) for x in (before, after)]
    with np.errstate(invalid="ignore"):  # infinity less itself is NaN, and is left out by the caller
        gap = before - after
    return np.where(np.abs(gap) <= TIE * np.maximum(*sizes), 0.0, gap)


def _moves(before: Array, after: Array) -> Array:
    return np.sign(_gap(before, after))


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
