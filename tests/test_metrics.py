"""Credit scores: hand-computed cases, independent implementations, symmetries, and what must stay undefined."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from marl import metrics

T, B, N = 12, 6, 4
UNIT_SCORES = (metrics.pearson, metrics.spearman, metrics.sign_accuracy, metrics.null_leakage, metrics.unit_auc)
CULPRIT_SCORES = (metrics.culprit_auc, metrics.top1_culprit, metrics.blame_mass)


@pytest.fixture
def data() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Random credit (with ties), truth and alive masks of different lengths; dead steps hold rubbish."""
    rng = np.random.default_rng(0)
    alive = np.arange(T)[:, None] < np.array([12, 11, 9, 7, 5, 3])
    credit = np.where(alive[..., None], np.round(rng.normal(size=(T, B, N)), 1), np.nan)
    truth = np.where(alive[..., None], np.round(rng.normal(size=(T, B, N)), 1), 1e9)
    return credit, truth, alive


def slow_auc(score: np.ndarray, positive: np.ndarray) -> float:
    wins = [float(p > n) + 0.5 * float(p == n) for p in score[positive] for n in score[~positive]]
    return float(np.mean(wins)) if wins else float("nan")


def test_correlations_equal_scipy_on_every_episode(data: tuple[np.ndarray, ...]) -> None:
    """Vectorising over episodes and masking dead steps changes nothing; ties get average ranks as in scipy."""
    c, truth, alive = data
    for b in range(B):
        x, y = c[alive[:, b], b].ravel(), truth[alive[:, b], b].ravel()
        assert metrics.pearson(*data)[b] == pytest.approx(stats.pearsonr(x, y)[0], abs=1e-12)
        assert metrics.spearman(*data)[b] == pytest.approx(stats.spearmanr(x, y)[0], abs=1e-12)
        assert metrics.rmse(*data)[b] == pytest.approx(np.sqrt(np.mean((x - y) ** 2)), abs=1e-12)


def test_aucs_equal_counting_all_pairs(data: tuple[np.ndarray, ...]) -> None:
    """The rank-sum formula is the definition: the share of (positive, negative) pairs in the right order."""
    c, truth, alive = data
    guilty = metrics.culprits(truth, alive)
    for b in range(B):
        x, y = c[alive[:, b], b].ravel(), truth[alive[:, b], b].ravel()
        large = np.abs(y) > 0.05 * np.abs(y).max()
        assert metrics.unit_auc(*data)[b] == pytest.approx(slow_auc(np.abs(x), large), nan_ok=True)
        assert metrics.culprit_auc(c, guilty, alive)[b] == pytest.approx(slow_auc(-x, guilty[alive[:, b], b].ravel()))


def test_by_hand() -> None:
    """One failed walk of two agents, three steps: agent 1 at step 1 did it, the method blames it half."""
    truth = np.array([[0.0, 0.02], [0.0, -1.0], [0.2, 0.0]])[:, None]
    c = np.array([[0.5, 0.0], [0.0, -0.5], [-0.25, -0.25]])[:, None]
    alive = np.ones((3, 1), dtype=bool)
    guilty = metrics.culprits(truth, alive)
    assert guilty[:, 0].tolist() == [[False, False], [False, True], [False, False]]
    assert metrics.sign_accuracy(c, truth, alive)[0] == 0.5  # -1 has the right sign, .2 the wrong one
    assert metrics.null_leakage(c, truth, alive)[0] == pytest.approx(0.75 / 1.5)
    assert metrics.culprit_auc(c, guilty, alive)[0] == 1.0
    assert metrics.top1_culprit(c, guilty, alive)[0] == 1.0
    assert metrics.blame_mass(c, guilty, alive)[0] == pytest.approx(0.5)
    tied = np.where(c == -0.25, -0.5, c)
    assert metrics.top1_culprit(tied, guilty, alive)[0] == pytest.approx(1 / 3)  # three units share the first place
    assert metrics.culprit_auc(tied, guilty, alive)[0] == pytest.approx((3 + 2 * 0.5) / 5)


def test_perfect_credit_is_perfect_and_its_negative_is_the_opposite(data: tuple[np.ndarray, ...]) -> None:
    """The truth scores 1 against itself; negation flips correlations to -1 and every culprit AUC to 1 - AUC."""
    c, truth, alive = data
    guilty = metrics.culprits(truth, alive)
    for function in (metrics.pearson, metrics.spearman, metrics.sign_accuracy, *metrics_of_split()):
        np.testing.assert_allclose(function(truth, truth, alive), 1.0, atol=1e-12)
    for score in (metrics.culprit_auc, metrics.top1_culprit):
        np.testing.assert_allclose(score(truth, guilty, alive), 1.0)
    np.testing.assert_allclose(metrics.rmse(truth, truth, alive), 0.0)
    np.testing.assert_allclose(metrics.spearman(-c, truth, alive), -metrics.spearman(c, truth, alive))
    flipped = metrics.culprit_auc(-np.asarray(c), guilty, alive)
    np.testing.assert_allclose(flipped, 1 - metrics.culprit_auc(c, guilty, alive))


def metrics_of_split() -> list:
    return [lambda c, o, a, k=k: metrics.split(c, o, a)[k] for k in range(3)]


def test_permuting_agents_steps_or_episodes_and_scaling_change_nothing(data: tuple[np.ndarray, ...]) -> None:
    """Scores are about units, not their order; correlations, signs, AUCs and shares ignore a positive factor."""
    c, truth, alive = data
    base = metrics.scores(c, truth, alive)
    rng = np.random.default_rng(1)
    agents, steps, episodes = (rng.permutation(k) for k in (N, T, B))
    mixed = metrics.scores(
        c[steps][:, episodes][..., agents], truth[steps][:, episodes][..., agents], alive[steps][:, episodes]
    )
    scaled = metrics.scores(3.5 * c, truth, alive)
    for name, value in base.items():
        np.testing.assert_allclose(mixed[name], value[episodes], atol=1e-12, err_msg=name)
        if name != "credit_rmse":
            np.testing.assert_allclose(scaled[name], value, atol=1e-9, err_msg=name)


def test_split_separates_who_when_and_which(data: tuple[np.ndarray, ...]) -> None:
    """A credit made of one part of the truth follows that part exactly and has no other part."""
    _, truth, _ = data
    alive = np.ones((T, B), dtype=bool)
    truth = np.random.default_rng(2).normal(size=truth.shape)
    who = np.broadcast_to(truth.mean(0), truth.shape)
    when = np.broadcast_to(truth.mean(2, keepdims=True), truth.shape)
    which = truth - who - when
    for k, part in enumerate((who, when, which)):
        found = metrics.split(part + 0.7, truth, alive)
        np.testing.assert_allclose(found[k], 1.0, atol=1e-9)
        for other in set(range(3)) - {k}:
            assert np.isnan(found[other]).all()
    shifted = metrics.split(truth + when * 5, truth, alive)
    np.testing.assert_allclose((shifted.who, shifted.which), 1.0, atol=1e-9)


def test_undefined_is_nan_and_counted_never_a_number() -> None:
    """No variance, nobody guilty, one agent, one step, credit that is not finite: NaN, and the others are untouched."""
    rng = np.random.default_rng(3)
    c, truth = rng.normal(size=(2, T, 3, N))
    alive = np.ones((T, 3), dtype=bool)
    truth[:, 0] = np.abs(truth[:, 0])  # nobody is guilty in episode 0
    c[:, 1] = 0.1  # no variance in episode 1
    c[3, 2, 0] = np.inf
    scores = metrics.scores(c, truth, alive)
    assert np.isnan([scores[name][0] for name in ("culprit_auc", "top1_culprit", "blame_mass")]).all()
    assert np.isnan(
        [scores[name][1] for name in ("credit_pearson", "credit_spearman", "split_who", "blame_mass")]
    ).all()
    assert scores["culprit_auc"][1] == 0.5  # a constant credit points at no one: chance, not undefined
    assert all(np.isnan(value[2]) for value in scores.values())
    assert metrics.average(scores["culprit_auc"]) == (0.5, 1)
    assert metrics.average([np.nan])[1] == 0 and np.isnan(metrics.average([np.nan])[0])
    lone = metrics.split(c[:, :1, :1], truth[:, :1, :1], alive[:, :1])
    assert np.isnan([lone.who[0], lone.which[0]]).all() and np.isfinite(lone.when[0])
    once = metrics.split(c[:1, :1], truth[:1, :1], alive[:1, :1])
    assert np.isnan([once.when[0], once.which[0]]).all() and np.isfinite(once.who[0])
    dead = metrics.scores(c, truth, np.zeros((T, 3), dtype=bool))
    assert all(np.isnan(value).all() for value in dead.values())


def test_blame_is_scored_on_failed_episodes_only() -> None:
    """Without the mask a walk in which nothing went wrong would have 'culprits': units that merely did not swing."""
    truth = np.random.default_rng(4).normal(size=(T, 2, N))
    alive = np.ones((T, 2), dtype=bool)
    guilty = metrics.culprits(truth, alive, failed=[True, False])
    assert guilty[:, 0].any() and not guilty[:, 1].any()
    assert np.isnan(metrics.culprit_auc(truth, guilty, alive)).tolist() == [False, True]


def test_rounding_is_not_ranked() -> None:
    """A truth that is 0 up to 1e-17 at most units ranks like one that is 0 exactly."""
    rng = np.random.default_rng(5)
    truth = np.zeros((T, 1, N))
    truth[4, 0, 2] = -1.0
    c = rng.normal(size=truth.shape)
    alive = np.ones((T, 1), dtype=bool)
    noisy = truth + 1e-16 * rng.normal(size=truth.shape)
    np.testing.assert_allclose(metrics.spearman(c, noisy, alive), metrics.spearman(c, truth, alive), atol=1e-12)


def test_wrong_shapes_are_refused() -> None:
    """A credit [B,T,N] by mistake is a sentence, not a number."""
    with pytest.raises(ValueError, match=r"must be \[T,B,N\]"):
        metrics.pearson(np.zeros((B, T, N)), np.zeros((T, B, N)), np.ones((T, B)))
