"""Credit scores: hand-computed cases, independent implementations, symmetries, and what must stay undefined."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from envs.walking_robot import WalkingRobot
from marl import metrics
from marl.oracle import oracle
from marl.rollout import rollout

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


def test_auc_equals_public_implementations(data: tuple[np.ndarray, ...]) -> None:
    """scipy's Mann-Whitney U / (n1 n0) and scikit-learn's roc_auc_score, ties included."""
    c, truth, alive = data
    guilty = metrics.culprits(truth, alive)
    for b in range(B):
        x, hit = -c[alive[:, b], b].ravel(), guilty[alive[:, b], b].ravel()
        u = stats.mannwhitneyu(x[hit], x[~hit]).statistic
        assert metrics.culprit_auc(c, guilty, alive)[b] == pytest.approx(u / (hit.sum() * (~hit).sum()), abs=1e-12)
        assert metrics.culprit_auc(c, guilty, alive)[b] == pytest.approx(roc_auc_score(hit, x), abs=1e-12)


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


# Scores over many episodes: errors that a baseline cannot explain, gradients, pairs of situations, the ledger.


def centred_by_hand(
    c: np.ndarray, truth: np.ndarray, alive: np.ndarray, action: np.ndarray, state: np.ndarray
) -> tuple:
    """Group by group, unit by unit."""
    squares, covered = [], 0
    for t in range(len(c)):
        for s in set(state[t][alive[t]].tolist()):
            for i in range(c.shape[2]):
                here = alive[t] & (state[t] == s)
                if len(set(action[t, here, i].tolist())) > 1:
                    d = (c - truth)[t, here, i]
                    squares += ((d - d.mean()) ** 2).tolist()
                    covered += int(here.sum())
    return np.sqrt(np.mean(squares)), covered / (alive.sum() * c.shape[2])


def test_centred_error_equals_a_loop_over_groups_and_forgives_baselines() -> None:
    """Any b(t, state, agent) added to the credit changes nothing; a change that depends on the action does."""
    rng = np.random.default_rng(7)
    shape = (5, 24, 3)
    c, truth = rng.normal(size=(2, *shape))
    alive = np.arange(5)[:, None] < rng.integers(1, 6, size=24)
    action, state = rng.integers(0, 3, size=shape), rng.integers(0, 4, size=shape[:2])
    both = metrics.centred_rmse(c, truth, alive, action, state, n_seeds=2)
    for s, mine in enumerate((slice(0, 12), slice(12, 24))):
        error, coverage = centred_by_hand(*(x[:, mine] for x in (c, truth, alive, action, state)))
        assert both.value[s] == pytest.approx(error, abs=1e-12) and both.coverage[s] == pytest.approx(coverage)
    baseline = rng.normal(size=(5, 4, 3))[np.arange(5)[:, None], state]
    shifted = metrics.centred_rmse(c + baseline, truth, alive, action, state, n_seeds=2)
    np.testing.assert_allclose(shifted.value, both.value, atol=1e-12)
    assert (metrics.centred_rmse(c + action, truth, alive, action, state).value > both.value.mean()).all()
    assert metrics.centred_rmse(truth, truth, alive, action, state).value[0] == 0.0
    alone = metrics.centred_rmse(c, truth, alive, action * 0, state)
    assert np.isnan(alone.value[0]) and alone.coverage[0] == 0.0  # one action everywhere: nothing to tell apart


def test_states_are_numbered_by_equality() -> None:
    """Every field counts, in whatever shape."""
    place, mark = np.array([[0, 1, 0], [1, 0, 0]]), np.array([[[0, 1], [0, 1], [0, 1]], [[0, 1], [0, 1], [9, 1]]])
    keys = metrics.state_keys((place, mark))
    assert keys.shape == (2, 3) and keys[0, 0] == keys[0, 2] == keys[1, 1] and keys[0, 1] == keys[1, 0]
    assert len(set(keys.ravel().tolist())) == 3


def test_gradient_scores_equal_their_formulas() -> None:
    """Against numpy's covariance; bias^2 + variance is the mean squared relative error of one sample."""
    rng = np.random.default_rng(8)
    truth = rng.normal(size=(2, 7))
    g = truth[:, None] + np.array([3.0, -3.0])[:, None, None] + rng.normal(size=(2, 40, 7))
    found = metrics.gradient(g, truth)
    for s in range(2):
        mean, noise, size = g[s].mean(0), np.trace(np.cov(g[s].T)), np.linalg.norm(truth[s])
        assert found.cosine[s] == pytest.approx(mean @ truth[s] / np.linalg.norm(mean) / size)
        assert found.relative_error[s] == pytest.approx(np.linalg.norm(mean - truth[s]) / size)
        assert found.snr[s] == pytest.approx((mean @ mean - noise / 40) / noise)
        assert found.variance[s] == pytest.approx(noise / size**2)
        one = np.mean(np.sum((g[s] - truth[s]) ** 2, axis=1)) / size**2
        assert found.bias[s] ** 2 + found.variance[s] == pytest.approx(one, abs=1e-12)


def test_gradient_bias_is_that_of_the_expectation_not_of_the_mean() -> None:
    """Unbiased samples: bias near 0 where the relative error still is the noise; the SNR needs no end of samples."""
    rng = np.random.default_rng(9)
    truth = np.full((4000, 5), 0.2)
    g = truth[:, None] + rng.normal(size=(4000, 8, 5))
    found = metrics.gradient(g, truth)
    assert np.mean(found.bias**2 > 0) < 0.6 and np.median(found.relative_error) > 1.5
    whole = metrics.gradient(g.reshape(1, -1, 5), truth[:1])
    assert whole.snr[0] == pytest.approx(0.2**2, abs=0.003) and whole.bias[0] < 0.1 and whole.cosine[0] > 0.999


def test_gradient_scores_are_nan_where_undefined() -> None:
    """One sample has no spread; a true gradient of 0 has no direction; what is not finite says nothing."""
    rng = np.random.default_rng(10)
    truth, g = rng.normal(size=(3, 4)), rng.normal(size=(3, 6, 4))
    truth[0], g[1, 2, 3], g[2] = 0.0, np.inf, 1.0
    found = metrics.gradient(g, truth)
    assert np.isnan([found.cosine[0], found.relative_error[0], found.bias[0], found.variance[0]]).all()
    assert np.isfinite(found.snr[0]) and all(np.isnan(x[1]) for x in found)
    assert np.isnan(found.snr[2]) and found.variance[2] == 0 and np.isfinite(found.cosine[2])
    once = metrics.gradient(g[2:, :1], truth[2:])
    assert np.isnan([once.snr[0], once.bias[0], once.variance[0]]).all() and np.isfinite(once.cosine[0])
    with pytest.raises(ValueError, match="samples must be"):
        metrics.gradient(g, truth[:2])


def stage_game(n: int = 3, actions: int = 3, seed: int = 11) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """A random one-step team game: (payoffs, joint actions z [K,N], own replacements z'_i [K,N], others' z' [K,N])."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(actions,) * n), *rng.integers(0, actions, size=(3, 4000, n))


def pay(table: np.ndarray, joint: np.ndarray) -> np.ndarray:
    return table[tuple(np.moveaxis(joint, -1, 0))]


def swap(joint: np.ndarray, other: np.ndarray) -> np.ndarray:
    """[K,N,N]: row i is `joint` with agent i's action from `other`."""
    me = np.eye(joint.shape[1], dtype=bool)
    return np.where(me, other[:, None], joint[:, None])


def test_difference_rewards_are_factored_and_more_learnable() -> None:
    """D_i = G - G(default) moves as G does under i's own change, and less under the others' (Agogino & Tumer)."""
    table, z, own, others = stage_game()
    n = z.shape[1]

    def team(joint: np.ndarray) -> np.ndarray:
        return np.repeat(pay(table, joint)[..., None], n, -1)

    def difference(joint: np.ndarray) -> np.ndarray:
        return team(joint) - np.stack([pay(table, np.where(np.arange(n) == i, 0, joint)) for i in range(n)], -1)

    mine, theirs = swap(z, own), swap(others, z)
    each = np.arange(n)
    before, after = team(z), team(mine)[:, each, each]
    of_team = metrics.factoredness(before, after, before, after)
    of_difference = metrics.factoredness(difference(z), difference(mine)[:, each, each], before, after)
    unrelated = np.random.default_rng(12).normal(size=(2, *z.shape))
    of_noise = metrics.factoredness(*unrelated, before, after)
    for found in (of_team, of_difference):
        np.testing.assert_allclose(found.value, 1.0)  # the replacement that changes nothing counts as a tie, equal
        np.testing.assert_allclose(found.ties, np.mean(z == own, axis=0), atol=1e-12)
        np.testing.assert_allclose(found.strict + found.ties, 1.0)
    assert (np.abs(of_noise.strict / (1 - of_noise.ties) - 0.5) < 0.05).all()
    opposite = metrics.factoredness(-before, -after, before, after)
    np.testing.assert_allclose(opposite.value, of_team.ties)
    signal = [metrics.learnability(f(z), f(mine)[:, each, each], f(theirs)[:, each, each]) for f in (team, difference)]
    assert (signal[1] > signal[0]).all()


def test_learnability_by_hand_and_its_ends() -> None:
    """2 own against 1 of the others; a credit that others never move is infinitely learnable, a constant one is NaN."""
    g = np.zeros((2, 3))
    own = np.array([[1.0, 3.0, 0.0], [3.0, 1.0, 0.0]])
    others = np.array([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    assert metrics.learnability(g, own, others)[:2].tolist() == [2.0, np.inf]
    assert np.isnan(metrics.learnability(g, own, others)[2])
    assert metrics.learnability(g, own, others, np.array([[True], [False]]))[0] == 1.0
    nobody = metrics.factoredness(g, own, g, own, np.zeros_like(g, dtype=bool))
    assert all(np.isnan(x).all() for x in nobody)


def test_conservation_gap_by_hand() -> None:
    """What was given beyond what there was to share; later steps count discount^t; a missing total is NaN."""
    c = np.ones((3, 2, 2))
    alive = np.array([[True, True], [True, True], [True, False]])
    assert metrics.conservation_gap(c, [5.0, np.nan], alive)[0] == 1.0
    assert np.isnan(metrics.conservation_gap(c, [5.0, np.nan], alive)[1])
    assert metrics.conservation_gap(c, [0.0, 0.0], alive, discount=0.5).tolist() == [3.5, 3.0]


# Wrong credit must rank below right credit on every score that is meant to see what is wrong with it.

WALKS = 4096


class Walks(NamedTuple):
    """Uniformly random walks of a small robot, the truth about them, and what a gradient is made of."""

    truth: np.ndarray  # [T,B,N] O8, exact by the game's closed form
    shapley: np.ndarray  # [T,B,N] Shapley over units: sums to what there was to share
    to_share: np.ndarray  # [B] the return less that of a walk without swing or error
    alive: np.ndarray
    action: np.ndarray
    state: np.ndarray
    failed: np.ndarray
    reward: np.ndarray
    cue: np.ndarray


@lru_cache(maxsize=1)
def walks() -> Walks:
    game = WalkingRobot(n_agents=3, horizon=8, delay=3, window=3, n_cues=2)
    tau = rollout(game, None, WALKS)
    truth, shapley = oracle(game, None, tau, "O8").values, oracle(game, None, tau, "O8 Shapley").values
    assert (truth - oracle(game, None, tau, "O8 simulated").values).abs().max() < 1e-5
    state = metrics.state_keys([x for name, x in tau.state._asdict().items() if name != "wobble"])
    reward = tau.reward.double().numpy()
    arrays = (tau.alive, tau.action)
    return Walks(
        truth.double().numpy(),
        shapley.double().numpy(),
        reward.sum(0) - 1.0,
        *(x.numpy() for x in arrays),
        state,
        tau.done[-1].numpy() & (tau.reward.sum(0).numpy() < 0.5),
        reward,
        tau.state.cue.numpy(),
    )


def shifted(c: np.ndarray) -> np.ndarray:
    return np.concatenate([np.zeros_like(c[:1]), c[:-1]])


def noisy(c: np.ndarray) -> np.ndarray:
    return c + 0.4 * np.abs(c).max() * np.random.default_rng(13).normal(size=c.shape)


WRONG: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "agents permuted": lambda c: np.roll(c, 1, axis=2),
    "time shifted by one": shifted,
    "noise": noisy,
}


def gradients(c: np.ndarray, batches: int = 32) -> np.ndarray:
    """[batches, P]: sum_{t,i} c grad log pi in the logits of a uniform table policy pi_i(a | cue, t)."""
    w = walks()
    taken = np.eye(3)[w.action] - 1 / 3
    seen = np.eye(2)[w.cue]
    each = np.einsum("tbi,tbia,tbik->btika", c * w.alive[..., None], taken, seen)
    return each.reshape(batches, WALKS // batches, -1).mean(1)


def broadcast() -> np.ndarray:
    """Everyone is told the return from here, less its mean over the episodes alive."""
    w = walks()
    to_go = np.flip(np.cumsum(np.flip(w.reward, 0), 0), 0)
    mean = np.sum(to_go * w.alive, 1, keepdims=True) / np.sum(w.alive, 1, keepdims=True)
    return np.repeat((to_go - mean)[..., None], 3, -1) * w.alive[..., None]


def of_episodes(name: str, sign: float = 1.0) -> Callable[[np.ndarray], float]:
    w = walks

    def score(c: np.ndarray) -> float:
        return sign * metrics.average(metrics.scores(c, w().truth, w().alive, w().failed)[name]).value

    return score


def of_gradient(name: str) -> Callable[[np.ndarray], float]:
    # The truth's own mean gradient is the yardstick: under a uniform policy nobody reacts, so O8 is unbiased.
    return lambda c: float(getattr(metrics.gradient(gradients(c), gradients(walks().truth).mean(0)), name))


def centred(c: np.ndarray) -> float:
    w = walks()
    return -float(metrics.centred_rmse(c, w.truth, w.alive, w.action, w.state).value[0])


ALL, AGENTS, TIME, NOISE = tuple(WRONG), "agents permuted", "time shifted by one", "noise"
SEES: dict[str, tuple[Callable[[np.ndarray], float], tuple[str, ...]]] = {
    "credit_pearson": (of_episodes("credit_pearson"), ALL),
    "credit_spearman": (of_episodes("credit_spearman"), ALL),
    "credit_rmse": (of_episodes("credit_rmse", -1), ALL),
    "centred_rmse": (centred, ALL),
    "sign_accuracy": (of_episodes("sign_accuracy"), ALL),
    "null_leakage": (of_episodes("null_leakage", -1), ALL),
    "unit_auc": (of_episodes("unit_auc"), ALL),
    "culprit_auc": (of_episodes("culprit_auc"), ALL),
    "top1_culprit": (of_episodes("top1_culprit"), ALL),
    "blame_mass": (of_episodes("blame_mass"), ALL),
    "split_who": (of_episodes("split_who"), (AGENTS, NOISE)),
    "split_when": (of_episodes("split_when"), (TIME, NOISE)),
    "split_which": (of_episodes("split_which"), ALL),
    "gradient_cosine": (of_gradient("cosine"), (AGENTS, TIME)),  # noise of mean 0 is no bias
    "gradient_relative_error": (lambda c: -of_gradient("relative_error")(c), ALL),
    "gradient_snr": (of_gradient("snr"), ALL),
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("name", SEES)
def test_wrong_credit_ranks_below_right_credit(name: str, wrong: str) -> None:
    """By a clear margin for scores meant to see it; those that look elsewhere hardly move."""
    score, sees = SEES[name]
    right, found = score(walks().truth), score(WRONG[wrong](walks().truth))
    if wrong in sees:
        assert found < right - 0.05 * max(1.0, abs(right))
    else:
        assert found > right - 0.12


def test_conservation_sees_what_is_not_shared_out() -> None:
    """Shapley's shares sum to the whole, to whomever and whenever they are given; noise and O8 (overlapping) do not."""
    w = walks()
    all_steps = np.ones_like(w.alive)  # a plan's units after a fall share its blame

    def gap(c: np.ndarray) -> float:
        return float(np.abs(metrics.conservation_gap(c, w.to_share, all_steps)).mean())

    assert gap(w.shapley) < 1e-6 and gap(np.roll(w.shapley, 1, axis=2)) < 1e-6 and gap(np.roll(w.shapley, 1, 0)) < 1e-6
    assert gap(noisy(w.shapley)) > 0.1 and gap(broadcast()) > 0.1


def test_a_broadcast_return_points_the_right_way_and_identifies_no_one() -> None:
    """Its gradient cosine is high; it has no who and no which, and finds units and culprits about as well as a coin."""
    w, c = walks(), broadcast()
    found = metrics.scores(c, w.truth, w.alive, w.failed)
    assert of_gradient("cosine")(c) > 0.9
    assert np.isnan(found["split_who"]).all() and np.isnan(found["split_which"]).all()
    right = metrics.scores(w.truth, w.truth, w.alive, w.failed)
    for name in ("unit_auc", "culprit_auc"):
        assert abs(metrics.average(found[name]).value - 0.5) < 0.15 < metrics.average(right[name]).value - 0.5
    assert metrics.average(found["top1_culprit"]).value < 0.2
    assert metrics.average(found["blame_mass"]).value < 0.2 < metrics.average(right["blame_mass"]).value
