"""Means over luck, by replays with fresh noise: right within the errors that they state, in any amount of memory."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import pytest
import torch
from honest import assert_honest
from tiny_mdp import MaskedTiny, TinyMdp, acting, given_joint, given_own, joint_index, lopsided, rows_of, solve
from torch import Tensor

from envs.base import Env
from envs.el_farol import ElFarol
from envs.matrix_game import MatrixGame
from envs.walking_robot import WalkingRobot
from marl.oracle import KINDS, oracle, ways
from marl.policy import Actor
from marl.rollout import rollout, row_bytes
from marl.types import Trajectory

ROBOT = WalkingRobot(3, 12, 4, 5, 2, 2, n_cues=3, decoys=2, stagger=2, temptation=0.3)


def truths(game: TinyMdp, table: Tensor, tau: Trajectory) -> dict[str, Tensor]:
    """O2 to O5 [T,B,N] of recorded actions, from the tables of tests/tiny_mdp.py, O5 by all orders of agents."""
    exact, joints = solve(game, table), torch.tensor(game.joints)
    t, place, N = torch.arange(game.horizon)[:, None], tau.state.place, game.n_agents
    j = joint_index(game, tau.action)
    q, v = exact.q[t, place, j], exact.v[t, place]
    own = given_own(game, table, exact)

    def worth(present: tuple[int, ...]) -> Tensor:
        """E over the actions of those not present of Q."""
        chance = torch.ones(*q.shape, len(joints), dtype=torch.float64)
        for i in range(N):
            took = (tau.action[..., None, i] == joints[:, i]).double()
            chance *= took if i in present else table[t, place, i][..., joints[:, i]]
        return (chance * exact.q[t, place]).sum(-1)

    shares = torch.zeros(tau.action.shape, dtype=torch.float64)
    orders = list(permutations(range(N)))
    for order in orders:
        for k, i in enumerate(order):
            shares[..., i] += (worth(order[: k + 1]) - worth(order[:k])) / len(orders)
    found = {
        "O2": (q - v)[..., None].expand(tau.action.shape),
        "O3": torch.stack([own[t, place, i, tau.action[..., i]] for i in range(N)], -1),
        "O4": given_joint(game, table, exact.q)[t, place, j],
        "O5": shares,
    }
    return {kind: values * tau.alive[..., None] for kind, values in found.items()}


def masked_table(game: MaskedTiny) -> Tensor:
    """A lopsided policy that never does what is forbidden."""
    table = lopsided(game) * game.allowed
    return table / table.sum(-1, keepdim=True)


MEANS = ("O2", "O3", "O4", "O5")


@pytest.mark.parametrize("kind", MEANS)
@pytest.mark.parametrize(
    "game", [TinyMdp(), TinyMdp(3, 3, 2, seed=5), TinyMdp(2, 3, 3, seed=4), MaskedTiny(horizon=2, ends=0.3)], ids=repr
)
def test_sampled_means_are_the_exact_ones(game: TinyMdp, kind: str) -> None:
    """Paired replays with fresh noise against tables: at most 1% outside 3 standard errors, none outside 6."""
    table = masked_table(game) if isinstance(game, MaskedTiny) else lopsided(game)
    policy = acting(game, table)
    tau = rollout(game, policy, 200, dtype=torch.float64)
    truth = truths(game, table, tau)[kind]
    found = oracle(game, policy, tau, kind, how="sampled", replays=200)
    assert_honest(found.values, found.error, truth)
    assert not found.values[~tau.alive].any() and not found.error[~tau.alive].any()
    if not isinstance(game, MaskedTiny) and kind != "O4":  # there, pairs may differ by a constant
        assert bool((found.error[tau.alive] > 0).all())
    with pytest.raises(AssertionError):  # the control: another agent's truth is not this one's
        assert_honest(found.values, found.error, truth.flip(1))


@pytest.mark.parametrize("kind", MEANS)
@pytest.mark.parametrize(
    "game", [ElFarol(3, 2, 2.0), MatrixGame("climbing"), MatrixGame("two_step")], ids=["bar", "climbing", "two steps"]
)
def test_sampled_means_are_what_enumeration_finds(game: Env[Any], kind: str) -> None:
    """Two ways of ours that share no code, for a policy whose every action is met often enough."""
    actor = Actor(game, (0,)).double()
    with torch.no_grad():
        actor.net.weights[-1].mul_(30)
    tau = rollout(game, actor, 300, dtype=torch.float64)
    assert float(tau.probs.min()) > 0.05 and float(tau.probs.std()) > 0.05
    exact = oracle(game, actor, tau, kind, how="exact")
    found = oracle(game, actor, tau, kind, how="sampled", replays=600)
    assert not exact.error.any()
    assert_honest(found.values, found.error, exact.values)


def test_shares_of_the_sampled_ledger_sum_to_the_advantage() -> None:
    """sum_i O5 = O2 replay by replay, not only in the mean: both live the same two ends of a chain of joint actions."""
    game = TinyMdp(3, 3)
    policy = acting(game, lopsided(game))
    tau = rollout(game, policy, 20, dtype=torch.float64)
    shares, whole = (oracle(game, policy, tau, kind, how="sampled", replays=5) for kind in ("O5", "O2"))
    assert (shares.values.sum(-1) - whole.values[..., 0]).abs().max() < 1e-12


@pytest.mark.parametrize("kind", MEANS)
def test_errors_shrink_as_one_over_root_m(kind: str) -> None:
    """Four times the replays halve the stated error, and the real one."""
    game = TinyMdp(2, 3)
    table = lopsided(game)
    policy = acting(game, table)
    tau = rollout(game, policy, 120, dtype=torch.float64)
    truth = truths(game, table, tau)[kind]
    few, many = (oracle(game, policy, tau, kind, how="sampled", replays=m) for m in (40, 160))
    assert float(few.error.mean() / many.error.mean()) == pytest.approx(2, rel=0.05)
    assert float((few.values - truth).std() / (many.values - truth).std()) == pytest.approx(2, rel=0.2)


def test_fresh_noise_is_named() -> None:
    """The same seed, the same numbers; another seed, others; and an episode's do not depend on those beside it."""
    tau = rollout(ROBOT, None, 6, dtype=torch.float64)
    first, again, other = (
        oracle(ROBOT, None, tau, "O4", how="sampled", replays=3, seed=seed).values for seed in (0, 0, 1)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)
    alone = oracle(ROBOT, None, rows_of(tau, [0, 1]), "O4", how="sampled", replays=3).values
    assert (alone - first[:, :2]).abs().max() < 1e-12


# Memory and progress.


STEPPED: list[int] = []


class Watched(TinyMdp):
    """Notes how many rows are stepped at once."""

    def step(self, state: Any, action: Tensor, noise: Tensor) -> Any:
        STEPPED.append(len(action))
        return super().step(state, action, noise)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "O3 observed"])
def test_memory_is_bounded_and_changes_nothing(kind: str) -> None:
    """Rows in work at a time fit in `memory`, down to one; values, errors and costs are those of any other memory."""
    game = Watched(3, 4, ends=0.2)
    table = lopsided(game)
    policy = acting(game, table)
    tau = rollout(game, policy, 9, dtype=torch.float64)
    size = row_bytes(game, tau)
    whole = oracle(game, policy, tau, kind, how=ways(game, kind)[-1], replays=3)
    for rows in (1, 40):
        STEPPED.clear()
        memory = 1 if rows == 1 else 4 * size * rows
        calls: list[tuple[int, int]] = []
        part = oracle(
            game, policy, tau, kind, how=ways(game, kind)[-1], replays=3, memory=memory,
            progress=lambda done, total, calls=calls: calls.append((done, total)),
        )  # fmt: skip
        assert (part.values - whole.values).abs().max() < 1e-12 and (part.error - whole.error).abs().max() < 1e-12
        assert part.cost == whole.cost > 0
        assert max(STEPPED) <= rows
        done, total = zip(*calls, strict=True)
        assert list(done) == sorted(set(done)) and set(total) == {done[-1]}
        assert rows > 1 or len(calls) > 1


def test_populations_are_judged_seed_by_seed_in_pieces() -> None:
    """A policy of two seeds, in pieces of any size and exactly, has the truth that each seed has alone."""
    for game, kinds in ((ROBOT, ("O4", "O6", "O7 reacting")), (ElFarol(3, 2, 2.0), ("O3", "O5"))):
        actor = Actor(game, (3, 5)).double()
        with torch.no_grad():
            actor.net.weights[-1].mul_(200)
        tau = rollout(game, actor, 4, (3, 5), dtype=torch.float64)
        for kind in kinds:
            found = oracle(game, actor, tau, kind, replays=2)
            pieces = oracle(game, actor, tau, kind, replays=2, memory=200_000 if kind in ("O3", "O5") else 20_000)
            assert (found.values - pieces.values).abs().max() < 1e-9
            if kind == "O4":
                continue  # fresh noise is named by an episode's number, which is another one alone
            for s in range(2):
                alone = Actor(game, ((3, 5)[s],)).double()
                with torch.no_grad():
                    alone.net.weights[-1].mul_(200)
                part = rows_of(tau, range(4 * s, 4 * s + 4))
                assert (oracle(game, alone, part, kind).values - found.values[:, 4 * s : 4 * s + 4]).abs().max() < 1e-9
