"""The exact truth obeys its algebra, agrees with plain tables and closed forms, and gives the true policy gradient."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import permutations, product
from math import prod
from typing import Any, ClassVar

import pytest
import torch
from tiny_atoms import Discounted, FiniteMasked, FiniteTiny, Remembering, random_table
from tiny_mdp import TinyMdp, acting, every_noise, given_joint, given_own, joint_index, lopsided
from tiny_mdp import solve as plain
from torch import Tensor

import envs
from envs.base import Env, HasOptimalValue, HasScriptedPolicy
from envs.matrix_game import MatrixGame
from envs.walking_robot import WalkingRobot
from marl.oracle.exact import (
    DEFINITIONS,
    Solution,
    World,
    coalitions,
    expected_return,
    ledger,
    observed_advantages,
    of_coalitions,
    optimal,
    own_advantages,
    solve,
    true_gradient,
    truth,
)
from marl.oracle.sampled import unit_effect
from marl.policy import Actor
from marl.rollout import Simulator, play, rollout
from marl.types import Trajectory

ROBOT = WalkingRobot(2, 6, 3, 2, n_cues=3, decoys=1, stagger=2, temptation=0.3)
DRAWS = [range(k, 100, 4) for k in range(4)]  # a hundred games, in four tests
each_quarter = pytest.mark.parametrize("draws", DRAWS, ids=["draws 0, 4, ...", "1, 5, ...", "2, 6, ...", "3, 7, ..."])


def drawn(draws: range) -> Iterator[tuple[FiniteTiny, Tensor, Solution]]:
    """Random games of 2 or 3 agents, 3 places and 1 to 4 steps under random policies, with and without discount."""
    for d in draws:
        game = FiniteTiny(2 + d % 2, 1 + d // 2 % 4, seed=d)
        table = random_table(game, d)
        yield game, table, solve(game, acting(game, table), gamma=1.0 if d % 3 else 0.7)


def far(game: Env[Any], seeds: tuple[int, ...] = (0,)) -> Actor:
    """A policy that reads what it sees and is far from uniform."""
    actor = Actor(game, seeds, (4,)).double()
    with torch.no_grad():
        actor.net.weights[-1].mul_(100)
    return actor


def everything(solution: Solution, t: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(Q [K,J], V [K], chance [K,J] of each joint action, credit [4,K,J,N]: O2 to O5 of each) in layer t."""
    q, v, chance = solution.q[t], solution.v[t], solution.joint[t]
    K, J = q.shape
    action = solution.world.joint.repeat(K, 1)
    worth = coalitions(q.repeat_interleave(J, 0), solution.probs[t].repeat_interleave(J, 0), action)
    credit = torch.stack([of_coalitions(worth, kind) for kind in ("O2", "O3", "O4", "O5")])
    return q, v, chance, credit.unflatten(1, (K, J))


def given_action(solution: Solution, chance: Tensor, credit: Tensor) -> Tensor:
    """[K,N,A]: the mean of credit [K,J,N] given each agent's own action."""
    one_hot = torch.nn.functional.one_hot(solution.world.joint, solution.world.game.n_actions).double()  # [J,N,A]
    total = torch.einsum("kj,kjn,jna->kna", chance, credit, one_hot)
    return total / torch.einsum("kj,jna->kna", chance, one_hot)


# A hundred random games.


@each_quarter
def test_values_equal_plain_tables(draws: range) -> None:
    """Q, V, O3 and O4 in every state that is reached are those of an induction written apart, over tables."""
    for game, table, found in drawn(draws):
        exact = plain(game, table, found.gamma)
        o3, o4 = given_own(game, table, exact), given_joint(game, table, exact.q)
        assert abs(float(found.value - exact.start)) < 1e-12
        for t, layer in enumerate(found.world.layers):
            place = layer.state.place
            assert place.unique().numel() == len(place)
            credit = everything(found, t)[-1]
            for mine, theirs in ((found.q, exact.q), (found.v, exact.v)):
                assert (mine[t] - theirs[t, place]).abs().max() < 1e-12
            assert (own_advantages(found, t) - o3[t, place]).abs().max() < 1e-12
            assert (credit[2] - o4[t, place]).abs().max() < 1e-12


@each_quarter
def test_the_algebra_of_credit(draws: range) -> None:
    """sum_i O5 = Q - V; E[O4 | s,a_i] = E[O5 | s,a_i] = E[O2 | s,a_i] = O3; all have mean 0; two agents: O5 between."""
    gap_of_coma, spread = 0.0, 0.0
    for game, _, found in drawn(draws):
        for t in range(len(found.world.layers)):
            q, v, chance, (o2, o3, o4, o5) = everything(found, t)
            advantage, own = q - v[:, None], own_advantages(found, t)
            assert (o5.sum(-1) - advantage).abs().max() < 1e-9
            assert (o2 - advantage[..., None]).abs().max() < 1e-9
            for credit in (o2, o3, o4, o5):
                assert (given_action(found, chance, credit) - own).abs().max() < 1e-9
                assert torch.einsum("kj,kjn->kn", chance, credit).abs().max() < 1e-9
            if game.n_agents == 2:
                assert (o5 - (o3 + o4) / 2).abs().max() < 1e-9
            gap_of_coma = max(gap_of_coma, float((o4.sum(-1) - advantage).abs().max()))
            spread = max(spread, float((o4 - o3).abs().max()))
    assert gap_of_coma > 0.5 and spread > 0.5  # COMA's shares do not sum, and O4 is no O3: the tests can fail


def entering(joints: list[tuple[int, ...]], probs: Tensor, q: Tensor, joint: tuple[int, ...]) -> list[float]:
    """O5 of one joint action in one state: agents enter in every order; who is not in yet acts by its policy."""
    N = len(joint)
    agents = range(N)

    def worth(inside: tuple[int, ...]) -> float:
        total = 0.0
        for j, other in enumerate(joints):
            if all(other[i] == joint[i] for i in inside):
                total += prod(float(probs[i, other[i]]) for i in agents if i not in inside) * float(q[j])
        return total

    orders = list(permutations(agents))
    steps = [(order[: n + 1], order[n]) for order in orders for n in agents]
    return [sum(worth(now) - worth(now[:-1]) for now, i in steps if i == me) / len(orders) for me in agents]


@each_quarter
def test_o5_is_the_mean_over_all_orders(draws: range) -> None:
    """The Shapley value by plain loops over orders, coalitions and joint actions."""
    for game, _, found in drawn(draws[:4]):
        t = len(found.world.layers) - 1
        o5 = everything(found, t)[-1][3]
        for k, (j, joint) in product(range(len(o5)), enumerate(game.joints)):
            slowly = entering(game.joints, found.probs[t][k], found.q[t][k], joint)
            assert o5[k, j].tolist() == pytest.approx(slowly, abs=1e-9)


@each_quarter
def test_the_ledger_balances(draws: range) -> None:
    """G_0 - V(s_0) = sum_t gamma^t (sum_i phi_it + luck_t) on every episode; phi is O5; luck is 0 once all is over."""
    for game, table, found in drawn(draws):
        tau = rollout(game, acting(game, table), 8, dtype=torch.float64)
        phi, luck, gap = ledger(found, tau)
        discount = found.gamma ** torch.arange(game.horizon, dtype=torch.float64)[:, None]
        v0 = found.v[0][found.world.places(tau)[0]]
        left = (discount * tau.reward).sum(0) - v0
        assert (left - (discount * (phi.sum(-1) + luck)).sum(0)).abs().max() < 1e-9 and gap.abs().max() < 1e-9
        assert torch.equal(phi, truth(game, None, tau, "O5", solution=found).values)
        assert not phi[~tau.alive].any() and not luck[~tau.alive].any()


# Means over everything that chance can bring.


@pytest.mark.parametrize("game", [FiniteTiny(), FiniteTiny(3, 2), FiniteTiny(2, 2, 3, seed=4)], ids=repr)
def test_unit_effects_average_to_o4(game: FiniteTiny) -> None:
    """E[O6 | s, a] = O4 over all luck, E[luck | s, a] = 0; single effects differ, so the mean is not trivial."""
    policy = acting(game, lopsided(game))
    tau = play(game, policy, every_noise(game))
    solution = solve(game, policy)
    effect, o4 = unit_effect(Simulator(game), policy, tau), truth(game, None, tau, "O4", solution=solution).values
    luck = ledger(solution, tau)[1]
    for group in cells(game, tau):
        assert (effect[group].mean(0) - o4[group]).abs().max() < 1e-12
        assert abs(float(luck[group].mean())) < 1e-12
    assert float((effect - o4).abs().max()) > 0.1 and float(luck.abs().max()) > 0.1


def test_discount_enters_as_gamma_to_the_t() -> None:
    """An effect on the discounted return of the whole episode is gamma^t O4, and V, Q likewise; gamma 1 is another."""
    game, paid = FiniteTiny(2, 3, seed=5), Discounted(2, 3, seed=5, gamma=0.8)
    policy = acting(game, lopsided(game))
    tau = play(paid, policy, every_noise(paid))
    effect = unit_effect(Simulator(paid), policy, tau)
    o4 = {gamma: truth(game, policy, tau, "O4", gamma=gamma).values for gamma in (0.8, 1.0)}
    for group in cells(game, tau):
        assert (effect[group].mean(0) - 0.8 ** group[0] * o4[0.8][group]).abs().max() < 1e-12
    assert float((o4[0.8] - o4[1.0]).abs().max()) > 0.05
    plainly, there = solve(paid, policy), solve(game, policy, gamma=0.8)
    for t in range(3):
        order = [x.world.layers[t].state.place.argsort() for x in (plainly, there)]
        assert (plainly.q[t][order[0]] - 0.8**t * there.q[t][order[1]]).abs().max() < 1e-12


def cells(game: TinyMdp, tau: Trajectory) -> Iterator[tuple[int, Tensor]]:
    """Index of the live rows in each (step, place, joint action)."""
    j = joint_index(game, tau.action)
    for t, s, k in product(range(game.horizon), range(game.n_places), range(len(game.joints))):
        here = tau.alive[t] & (tau.state.place[t] == s) & (j[t] == k)
        if bool(here.any()):
            yield t, here


class Blind(FiniteTiny):
    """Nobody sees anything: all places and times look the same."""

    obs_size: ClassVar[int] = 1

    def observe(self, state: Any) -> Tensor:
        return state.paid.new_ones(len(state.place), self.n_agents, 1)


def test_what_can_be_known_from_an_observation() -> None:
    """ "O3 observed" is the mean of O3 over all live (t, s) that look the same, given the action; else it is O3."""
    game = Blind(2, 3, ends=0.4, seed=1)
    share = torch.tensor([[1 / 3, 2 / 3], [2 / 3, 1 / 3]], dtype=torch.float64)
    tau = play(game, lambda obs, mask: share.expand(len(obs), 2, 2), every_noise(game))
    solution = solve(game, lambda obs, mask: share.expand(len(obs), 2, 2))
    o3, seen = (truth(game, None, tau, kind, solution=solution).values for kind in ("O3", "O3 observed"))
    for i, c in product(range(2), range(2)):
        group = tau.alive & (tau.action[..., i] == c)
        assert (seen[..., i][group] - o3[..., i][group].mean()).abs().max() < 1e-12
    assert float((o3 - seen).abs().max()) > 0.1 and not seen[~tau.alive].any()
    open_eyes = FiniteTiny(2, 3, ends=0.4, seed=1)
    found = solve(open_eyes, acting(open_eyes, random_table(open_eyes)))
    for t, table in enumerate(observed_advantages(found)):
        assert (table - own_advantages(found, t)).abs().max() < 1e-12
    never = solve(game, lambda obs, mask: torch.tensor([1.0, 0.0]).expand(len(obs), 2, 2))
    assert truth(game, None, tau, "O3 observed", solution=never).values[0][tau.action[0] == 1].isnan().all()


# The gradient.


def pulled(solution: Solution, actor: Actor, credit: list[Tensor]) -> Tensor:
    """[P] sum_t gamma^t sum_s P(s) sum_{i,c} pi_i(c) credit(s,i,c) grad log pi_i(c), credit [K,N,A] a layer."""
    total = torch.zeros((), dtype=torch.float64)
    for t, layer in enumerate(solution.world.layers):
        probs = actor(solution.world.game.observe(layer.state), layer.mask)
        log = probs.clamp(min=1e-300).log()
        weight = solution.gamma**t * solution.occupancy[t][:, None, None] * solution.probs[t]
        total = total + (weight * credit[t] * log).sum()
    return torch.cat([g.flatten() for g in torch.autograd.grad(total, list(actor.parameters()))])


GRADIENTS = [FiniteTiny(3, 3, ends=0.3), FiniteMasked(2, 3), ROBOT, MatrixGame("two_step")]


@pytest.mark.parametrize("game", GRADIENTS, ids=repr)
@pytest.mark.parametrize("gamma", [1.0, 0.8])
def test_policy_gradient_theorem(game: Env[Any], gamma: float) -> None:
    """Differentiating the induction = O3-weighted grad log pi over all states = finite differences."""
    actor = far(game)
    found = true_gradient(game, actor, gamma=gamma)[0]
    solution = solve(game, actor, gamma=gamma)
    T = range(len(solution.world.layers))
    assert (found - pulled(solution, actor, [own_advantages(solution, t) for t in T])).abs().max() < 1e-12
    # O3 is only defined up to what depends on the state alone.
    lifted = [own_advantages(solution, t) + torch.arange(len(solution.v[t]))[:, None, None] for t in T]
    assert (found - pulled(solution, actor, lifted)).abs().max() < 1e-9
    observed = [x.nan_to_num() for x in observed_advantages(solution)]
    if gamma == 1:  # what can be known from observations is enough for the gradient
        assert (found - pulled(solution, actor, observed)).abs().max() < 1e-9
    wrong = [x.roll(1, 1) for x in (own_advantages(solution, t) for t in T)]
    assert (found - pulled(solution, actor, wrong)).norm() > 0.1 * found.norm() > 0
    weights, step = actor.net.weights[-1], 1e-6
    start = sum(p.numel() for p in list(actor.parameters())[: len(actor.net.weights) - 1])
    for cell in torch.randperm(weights.numel(), generator=torch.Generator().manual_seed(0))[:5].tolist():
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                weights.view(-1)[cell] += sign * step
                ends.append(float(expected_return(game, actor, gamma=gamma)))
                weights.view(-1)[cell] -= sign * step
        slope = (ends[0] - ends[1]) / (2 * step)
        assert float(found[start + cell]) == pytest.approx(slope, abs=1e-7)


def test_seeds_have_gradients_and_truths_of_their_own() -> None:
    """A population's row is what the seed alone gets; float32 networks are read in float32."""
    game, seeds = FiniteTiny(2, 3), (3, 5)
    both, alone = true_gradient(game, far(game, seeds)), [true_gradient(game, far(game, (s,))) for s in seeds]
    assert (both - torch.cat(alone)).abs().max() < 1e-12 and float((both[0] - both[1]).abs().max()) > 1e-3
    tau = rollout(game, far(game, seeds), 4, list(seeds), dtype=torch.float64)
    found = truth(game, far(game, seeds), tau, "O5").values
    for s, seed in enumerate(seeds):
        own = rollout(game, far(game, (seed,)), 4, seed, dtype=torch.float64)
        assert (found[:, 4 * s : 4 * s + 4] - truth(game, far(game, (seed,)), own, "O5").values).abs().max() < 1e-12
    short = true_gradient(game, far(game, seeds).float())
    assert short.dtype == torch.float32 and (short - both).abs().max() < 1e-5
    with pytest.raises(ValueError, match="several seeds"):
        solve(game, far(game, seeds))


# Order matters.


def summed(solution: Solution, reward: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """(U [K,N], [K,N,A]): the mean sum of what is to come of per-agent rewards [K,J,N], and given one's own action."""
    later: Tensor | None = None
    values, given = [], []
    for t, layer in reversed(list(enumerate(solution.world.layers))):
        ahead = 0.0 if later is None else torch.stack([layer.ahead(u) for u in later.unbind(-1)], -1)
        total = reward[t] + ahead
        later = torch.einsum("kj,kjn->kn", solution.joint[t], total)
        values, given = [later, *values], [given_action(solution, solution.joint[t], total), *given]
    return values, given


def one_step(solution: Solution, t: int, kind: str) -> Tensor:
    """[K,J,N]: aristocrat or default-action difference of the expected reward of layer t."""
    reward, probs, game = solution.world.layers[t].reward, solution.probs[t], solution.world.game
    table = reward.unflatten(1, (game.n_actions,) * game.n_agents)
    out = []
    for i in range(game.n_agents):
        default = game.default_action if isinstance(game.default_action, int) else game.default_action[i]
        axis = table.movedim(i + 1, -1)
        mean = (axis * probs[:, i].reshape(len(probs), *[1] * (game.n_agents - 1), -1)).sum(-1)
        base = mean if kind == "aristocrat" else axis[..., default]
        out.append((table - base.unsqueeze(i + 1)).flatten(1))
    return torch.stack(out, -1)


@pytest.mark.parametrize("game", [FiniteTiny(3, 4, seed=7), ROBOT], ids=repr)
def test_aristocrat_then_sum_is_myopic_and_difference_then_sum_biased(game: Env[Any]) -> None:
    """Future aristocrat rewards have mean 0 given (s_t, a_it): their gradient is that of the immediate ones alone.

    Future default-action differences do not; they pull elsewhere than the truth. Both taken of Q pull as the truth.
    """
    actor = far(game)
    solution = solve(game, actor)
    T, true = range(len(solution.world.layers)), true_gradient(game, actor)[0]
    future, given = summed(solution, [one_step(solution, t, "aristocrat") for t in T])
    now = [given_action(solution, solution.joint[t], one_step(solution, t, "aristocrat")) for t in T]
    for t in T:
        assert future[t].abs().max() < 1e-12 and (given[t] - now[t]).abs().max() < 1e-12
    myopic = pulled(solution, actor, now)
    assert (pulled(solution, actor, given) - myopic).abs().max() < 1e-12
    assert (myopic - true).norm() > 0.1 * true.norm()
    later, differences = summed(solution, [one_step(solution, t, "difference") for t in T])
    assert max(float(x.abs().max()) for x in later) > 0.01
    assert (pulled(solution, actor, differences) - true).norm() > 0.1 * true.norm()
    layers = tuple(x._replace(reward=q) for x, q in zip(solution.world.layers, solution.q, strict=True))
    of_q = solution._replace(world=solution.world._replace(layers=layers))
    for kind in ("aristocrat", "difference"):
        credit = [given_action(solution, solution.joint[t], one_step(of_q, t, kind)) for t in T]
        assert (pulled(solution, actor, credit) - true).abs().max() < 1e-12


# What is declared, found by enumeration.


TINY: dict[str, list[dict[str, Any]]] = {
    "el_farol": [{"n_agents": 4, "n_nights": 2, "capacity": 1.5}],
    "matrix_game": [{}, {"payoff": "penalty"}, {"payoff": "qtran"}, {"payoff": "two_step"}, {"payoff": [3, 1, 2]}],
    "gaussian_squeeze": [{"n_agents": 3}],
    "quorum": [{"n_agents": 5, "quorum": 3}, {"n_agents": 3, "quorum": 3, "cost": 2.0}],
    "key_door": [{"n_agents": 2, "keys_needed": 2, "horizon": 4}, {"n_agents": 1, "horizon": 5}],
    "assembly_line": [{"n_agents": 2, "spacing": 1, "inspection": 1, "horizon": 5, "n_cues": 2}],
    "walking_robot": [
        {"n_agents": 2, "horizon": 4, "window": 3, "delay": 1, "n_cues": 2},
        {"n_agents": 2, "horizon": 5, "window": 3, "delay": 0, "n_decisive": 2, "joints_per_moment": 2, "n_cues": 2},
        {"n_agents": 3, "horizon": 6, "window": 2, "delay": 3, "n_cues": 3, "temptation": 0},
        {"n_agents": 2, "horizon": 6, "window": 2, "delay": 3, "n_cues": 3, "decoys": 1, "stagger": 2},
        {"n_agents": 1, "horizon": 8, "window": 4, "delay": 3, "n_decisive": 3, "n_actions": 2, "fall_penalty": 0},
    ],
    "rover_grid": [{"n_agents": 2, "size": 3, "n_points": 1, "radius": 0, "horizon": 3}],
    "cleanup": [{"n_agents": 2, "waste": 2, "apples": 2, "horizon": 4}],
}
"""Knobs under which a game can be listed state by state; a new game needs a line here, or one in ENDLESS."""
ENDLESS = {"spread"}  # real numbers in the state
CASES = [
    pytest.param(name, knobs, id=f"{name}-{k}") for name in envs.GAMES for k, knobs in enumerate(TINY.get(name, []))
]


def test_every_game_is_listed_or_known_to_be_endless() -> None:
    """A new game is not registered without a look at its truth."""
    assert set(envs.GAMES) <= set(TINY) | ENDLESS


def scripted(game: HasScriptedPolicy, world: World) -> Tensor:
    """[] the expected return of the hand-written policy."""
    later: Tensor | None = None
    for layer in reversed(world.layers):
        q = layer.reward if later is None else layer.reward + layer.ahead(later)
        chosen = (game.scripted_action(layer.state)[:, None] == world.joint).all(-1)
        assert bool((chosen & layer.legal).any(1).all())
        later = q[chosen]
    assert later is not None
    return (world.start * later).sum()


@pytest.mark.parametrize(("name", "knobs"), CASES)
def test_declared_values_equal_enumeration(name: str, knobs: dict[str, Any]) -> None:
    """optimal_return, random_return, optimal_value in every state, and the scripted policy, to 1e-9."""
    game = envs.rules(name, **knobs)
    best, chance = optimal(game), solve(game, None)
    if game.optimal_return is not None:
        assert float(best.value) == pytest.approx(game.optimal_return, abs=1e-9)
    if game.random_return is not None:
        assert float(chance.value) == pytest.approx(game.random_return, abs=1e-9)
    if game.reachable_return is not None:
        assert game.reachable_return <= float(best.value) + 1e-9
    target = game.optimal_return if game.reachable_return is None else game.reachable_return
    if isinstance(game, HasScriptedPolicy) and target is not None:
        assert float(scripted(game, best.world)) == pytest.approx(target, abs=1e-9)
    for t, layer in enumerate(best.world.layers):
        assert bool((chance.v[t] <= best.v[t] + 1e-9).all())
        if isinstance(game, HasOptimalValue):
            assert (best.v[t] - game.optimal_value(layer.state)).abs().max() < 1e-9


@pytest.mark.parametrize("game", [FiniteTiny(2, 4, seed=s) for s in range(4)], ids=repr)
def test_the_best_equals_plain_value_iteration(game: FiniteTiny) -> None:
    """V* by a loop over tables; no policy does better, and the best joint actions, played, earn it."""
    follow, shares, ends = game.tables
    v = torch.zeros(game.n_places, dtype=torch.float64)
    found = optimal(game, gamma=0.9)
    for t in reversed(range(game.horizon)):
        v = (shares.sum(-1) + 0.9 * (ends == 0).double() * v[follow]).mean(-1).amax(1)
        assert (found.v[t] - v[found.world.layers[t].state.place]).abs().max() < 1e-12
    assert float(found.value) == pytest.approx(float(v.mean()), abs=1e-12)
    table = torch.zeros(game.horizon, game.n_places, game.n_agents, game.n_actions, dtype=torch.float64)
    for t, layer in enumerate(found.world.layers):
        best = found.world.joint[found.q[t].argmax(1)]
        table[t, layer.state.place] = torch.nn.functional.one_hot(best, game.n_actions).double()
    assert float(solve(game, acting(game, table), gamma=0.9).value) == pytest.approx(float(v.mean()), abs=1e-12)


def test_forbidden_actions_are_never_taken() -> None:
    """Not by enumeration (the game would object), nor by the best policy; a policy or a record that does is refused."""
    game = FiniteMasked(2, 3, strict=True)
    found = solve(game, None)
    free = optimal(FiniteTiny(2, 3, 3))
    assert not bool(found.world.layers[0].legal.all())
    assert float(optimal(game).value) < float(free.value) - 0.1
    with pytest.raises(ValueError, match="the policy takes illegal actions"):
        solve(game, lambda obs, mask: torch.full((len(obs), 2, 3), 1 / 3))
    tau = rollout(game, None, 8, dtype=torch.float64)
    wrong = tau._replace(action=tau.mask.int().argmin(-1))
    with pytest.raises(ValueError, match="illegal there"):
        truth(game, None, wrong, "O3")


# One call.


def test_truth_is_one_call() -> None:
    """Exact answers claim no error, name themselves and their cost; dead steps get 0; what is unknown is refused."""
    game = FiniteTiny(2, 3, ends=0.4)
    tau = rollout(game, None, 12, dtype=torch.float64)
    for kind in DEFINITIONS:
        found = truth(game, None, tau, kind)
        assert found.values.shape == tau.action.shape and found.values.dtype == torch.float64
        assert not found.error.any() and not found.values[~tau.alive].any() and bool(found.values[tau.alive].any())
        assert found.cost == solve(game, None).cost
        assert found.definition.startswith(kind) and found.definition.endswith("exact")
    assert truth(game, None, tau, "O3", gamma=0.5).definition.endswith("exact, gamma 0.5")
    with pytest.raises(
        ValueError, match="there is no exact oracle 'O6'; the exact oracles are: O2, O3, O4, O5, O3 obs"
    ):
        truth(game, None, tau, "O6")


@pytest.mark.parametrize("kind", DEFINITIONS)
def test_what_nothing_depends_on_changes_nothing(kind: str) -> None:
    """States told apart by the return so far cost more and are worth the same."""
    game, apart = FiniteTiny(2, 3, seed=3), Remembering(2, 3, seed=3)
    tau = rollout(game, None, 20, dtype=torch.float64)
    short, long = truth(game, None, tau, kind), truth(apart, None, tau, kind)
    assert (short.values - long.values).abs().max() < 1e-12 and short.cost < long.cost
