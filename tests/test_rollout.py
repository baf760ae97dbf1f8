"""Rollouts and branches: the fact lives again exactly, a branch differs in one thing, every step is counted."""

from __future__ import annotations

import sys
from itertools import product
from typing import Any

import pytest
import torch
from tiny_mdp import MaskedTiny, TinyMdp, acting, every_noise, joint_index, lopsided, rows_of, solve
from torch import Tensor

import envs
from envs.assembly_line import AssemblyLine
from envs.base import Env, HasActionMask, map_state, take
from envs.cleanup import Cleanup
from envs.el_farol import ElFarol
from envs.gaussian_squeeze import GaussianSqueeze
from envs.key_door import KeyDoor
from envs.matrix_game import MatrixGame
from envs.quorum import Quorum
from envs.rover_grid import RoverGrid
from envs.spread import Spread
from envs.walking_robot import WalkingRobot
from marl.policy import Actor
from marl.rollout import (
    Simulator,
    draw_noise,
    greedy,
    others,
    play,
    rollout,
    sample,
    swapped,
    uniform_policy,
)
from marl.types import Noise, Policy, Trajectory

ROBOT = WalkingRobot(3, 12, 4, 5, 2, 2, n_cues=3, decoys=2, stagger=2, wobble=0.5)
GAMES: list[Env[Any]] = [
    ROBOT,
    ElFarol(5, 2, 2.0),
    MatrixGame("two_step"),
    Spread(n_agents=2, horizon=5),
    GaussianSqueeze(3),
    Quorum(5, 2),
    Cleanup(n_agents=3, waste=4, horizon=8),
    RoverGrid(n_agents=3, size=5, n_points=2, horizon=6),
    KeyDoor(2, 1, 6),
    AssemblyLine(2, 1, 1, 6),
    TinyMdp(),
    TinyMdp(n_agents=3, horizon=4, ends=0.3),
    MaskedTiny(),
]
every_game = pytest.mark.parametrize("game", GAMES, ids=lambda game: type(game).__name__)


def actor_of(game: Env[Any], seeds: tuple[int, ...] = (0,)) -> Actor:
    """A policy far from uniform that reads what it sees, float64."""
    actor = Actor(game, seeds).double()
    with torch.no_grad():
        for p in actor.parameters():
            p.mul_(3.0 if p is not actor.net.weights[-1] else 200.0)
    return actor


def lived(game: Env[Any], episodes: int = 8, seeds: tuple[int, ...] = (0,)) -> tuple[Actor, Trajectory]:
    """Episodes of such a policy."""
    actor = actor_of(game, seeds)
    return actor, rollout(game, actor, episodes, seeds, dtype=torch.float64)


def to_go(trajectory: Trajectory) -> Tensor:
    """[T,B] returns from t."""
    return trajectory.reward.flip(0).cumsum(0).flip(0)


# Turning a number into an action.


def test_sample_is_the_inverse_of_the_cdf() -> None:
    """With p in eighths, the eight equal parts of [0,1) fall to actions in order, exactly as often as p says."""
    p = torch.tensor([2, 0, 5, 1]).double() / 8
    u = (torch.arange(8).double() + 0.5) / 8
    assert sample(p.expand(8, 4), u).tolist() == [0, 0, 2, 2, 2, 2, 2, 3]
    assert sample(p.expand(4, 4), torch.tensor([0.0, 0.25, 0.875, 1 - 2.0**-24])).tolist() == [0, 2, 3, 3]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sample_never_takes_the_impossible(dtype: torch.dtype) -> None:
    """Not at the ends of [0,1), not on a boundary, not where rounding makes p sum to a little more or less than 1."""
    g = torch.Generator().manual_seed(0)
    p = torch.rand(20_000, 6, generator=g, dtype=dtype) ** 4
    p[torch.rand(p.shape, generator=g) < 0.5] = 0.0
    p[p.sum(1) == 0, 3] = 1.0
    p = p / p.sum(1, keepdim=True)
    for scale in (1.0, 1 + 2.0**-20, 1 - 2.0**-20, 0.3):
        cdf = (p * scale).cumsum(1)
        borders = [cdf[:, k] for k in range(6)]
        for u in (torch.zeros(20_000), torch.full((20_000,), 1 - 2.0**-24), torch.rand(20_000, generator=g), *borders):
            action = sample(p * scale, u.to(dtype).clamp(max=1 - 2.0**-24))
            assert bool((p.gather(1, action[:, None]) > 0).all())


def test_sample_frequencies() -> None:
    """A negative control of the above: what is possible happens, as often as it should."""
    p = torch.tensor([0.1, 0.0, 0.6, 0.3])
    action = sample(p.expand(100_000, 4), torch.rand(100_000, generator=torch.Generator().manual_seed(1)))
    assert torch.allclose(action.bincount(minlength=4) / 100_000, p, atol=0.006)


def test_greedy_and_uniform_respect_masks() -> None:
    """greedy puts all on the best, uniform equal parts on what is legal; both sum to 1."""
    game = MaskedTiny()
    trajectory = rollout(game, episodes=50)
    assert trajectory.mask is not None
    even = uniform_policy(3)(trajectory.obs, trajectory.mask)
    assert torch.equal(even > 0, trajectory.mask) and torch.allclose(even.sum(-1), torch.ones(()))
    assert torch.allclose(even.amax(-1) * trajectory.mask.sum(-1), torch.ones(()))
    actor = actor_of(game).float()
    with torch.no_grad():
        p, best = actor(trajectory.obs, trajectory.mask), greedy(actor)(trajectory.obs, trajectory.mask)
    assert torch.equal(best.argmax(-1), p.argmax(-1)) and torch.equal(best.sum(-1), torch.ones_like(best.sum(-1)))
    assert not best[~trajectory.mask].any()


# Playing.


@every_game
def test_record_has_its_shapes(game: Env[Any]) -> None:
    """[T,B,...] in every field, rewards 0 at dead steps, alive = not done before, all actions legal."""
    _, tau = lived(game, 8, (0, 1))
    T, B, N, A = game.horizon, 16, game.n_agents, game.n_actions
    shapes = {"obs": (T, B, N, game.obs_size), "action": (T, B, N), "probs": (T, B, N, A), "reward": (T, B)}
    shapes |= {"noise": (T, B, game.step_noise_size), "policy_noise": (T, B, N), "done": (T, B), "alive": (T, B)}
    for name, shape in shapes.items():
        assert getattr(tau, name).shape == shape
    assert all(field.shape[:2] == (T, B) for field in tau.state) and all(len(field) == B for field in tau.final)
    assert (tau.mask is not None) == isinstance(game, HasActionMask)
    before = torch.cat((torch.zeros_like(tau.done[:1]), tau.done[:-1]))
    assert torch.equal(tau.alive, ~before.cummax(0).values)
    assert not tau.reward[~tau.alive].any()
    assert bool((tau.probs.gather(-1, tau.action[..., None]) > 0).all())
    assert torch.allclose(tau.probs.sum(-1), torch.ones((), dtype=torch.float64))
    assert torch.equal(sample(tau.probs, tau.policy_noise), tau.action)


@every_game
def test_replay_is_exact(game: Env[Any]) -> None:
    """The stored noise and actions bring back every state and reward, bit for bit."""
    _, tau = lived(game)
    state = map_state(lambda x: x[0], tau.state)
    for t in range(game.horizon):
        for kept, again in zip(tau.state, state, strict=True):
            assert torch.equal(kept[t], again)
        outcome = game.step(state, tau.action[t], tau.noise[t])
        assert torch.equal(outcome.reward, tau.reward[t]) and torch.equal(outcome.done, tau.done[t])
        state = outcome.state
    for kept, again in zip(tau.final, state, strict=True):
        assert torch.equal(kept, again)


@every_game
def test_nothing_depends_on_the_seeds_beside(game: Env[Any]) -> None:
    """Seed 5's noise and random episodes are the same alone and among others; seeds and episodes differ."""
    alone, among = rollout(game, None, 4, 5), rollout(game, None, 4, [3, 5, 9])
    for name in ("obs", "action", "noise", "policy_noise", "reward"):
        assert torch.equal(getattr(alone, name), getattr(among, name)[:, 4:8])
    assert not torch.equal(among.policy_noise[:, :4], among.policy_noise[:, 4:8])
    later = rollout(game, None, 2, [3, 5], first_episode=2)
    assert torch.equal(later.policy_noise[:, 2:], among.policy_noise[:, 6:8])
    assert not torch.equal(rollout(game, None, 4, 5, purpose="evaluation").policy_noise, alone.policy_noise)


def test_first_weights_do_not_depend_on_the_seeds_beside() -> None:
    """Seed 5's actor begins with the same numbers alone and among others; another seed's differ."""
    alone, among = Actor(ROBOT, [5]), Actor(ROBOT, [3, 5, 9])
    for one, many in zip(alone.parameters(), among.parameters(), strict=True):
        assert torch.equal(one, many[3:6]) and not torch.equal(one, many[:3])


def test_rollout_refuses_no_episodes() -> None:
    """One sentence with the value and what is allowed."""
    with pytest.raises(ValueError, match="episodes=0 is not allowed; it must be 1 or more"):
        rollout(ROBOT, episodes=0)


def test_record_says_its_axes() -> None:
    """A person who prints a trajectory reads axes, not numbers."""
    assert repr(rollout(MatrixGame(), episodes=2)).startswith("Trajectory(T=1, B=2, N=2, mean return ")


# Branches.


@every_game
@pytest.mark.parametrize("reacts", [False, True], ids=["frozen", "reacting"])
def test_branch_with_the_recorded_action_is_the_fact(game: Env[Any], reacts: bool) -> None:
    """Nothing changed: G_t itself (to 1e-12), under recorded actions and under the policy with recorded noise."""
    actor, tau = lived(game)
    found = Simulator(game).branches(tau, tau.action[:, :, None], actor if reacts else None)[..., 0]
    assert (found - to_go(tau)).abs().max() < 1e-12


def single_branch(
    game: Env[Any], tau: Trajectory, t: int, b: int, joint: Tensor, policy: Policy | None
) -> tuple[float, int]:
    """(return from t, live steps) of one branch of one episode, lived alone."""
    if not bool(tau.alive[t, b]):
        return 0.0, 0
    state = take(map_state(lambda x: x[t], tau.state), torch.tensor([b]))
    action, total, steps = joint[None], 0.0, 0
    for u in range(t, game.horizon):
        outcome = game.step(state, action, tau.noise[u, b][None])
        total, steps, state = total + float(outcome.reward), steps + 1, outcome.state
        if bool(outcome.done) or u + 1 == game.horizon:
            break
        if policy is None:
            action = tau.action[u + 1, b][None]
        else:
            mask = game.action_mask(state) if isinstance(game, HasActionMask) else None
            action = sample(policy(game.observe(state), mask), tau.policy_noise[u + 1, b][None])
    return total, steps


@every_game
@pytest.mark.parametrize("reacts", [False, True], ids=["frozen", "reacting"])
def test_branches_equal_single_lives(game: Env[Any], reacts: bool) -> None:
    """All branches of all steps advance together, yet each is what one episode lived alone gives, and is counted so."""
    actor, tau = lived(game, 4)
    policy: Policy | None = actor if reacts else None
    joint = swapped(tau.action, tau.action.flip(-1)[..., None])  # each agent does what its mirror image did
    if tau.mask is not None:
        joint = torch.where(
            tau.mask.gather(-1, joint.transpose(-1, -2)).transpose(-1, -2), joint, tau.action[:, :, None]
        )
    simulator = Simulator(game)
    found = simulator.branches(tau, joint, policy)
    steps = 0
    for t, b, v in product(range(game.horizon), range(4), range(joint.shape[2])):
        total, spent = single_branch(game, tau, t, b, joint[t, b, v], policy)
        assert float(found[t, b, v]) == pytest.approx(total, abs=1e-12)
        steps += spent
    assert simulator.steps.tolist() == [steps]


def test_branches_of_some_steps_are_those_of_all() -> None:
    """`at` picks steps and nothing else."""
    actor, tau = lived(ROBOT)
    joint = swapped(tau.action, others(tau.action, 3))
    for policy in (None, actor):
        whole = Simulator(ROBOT).branches(tau, joint, policy)
        some = Simulator(ROBOT).branches(tau, joint[[2, 7, 8]], policy, at=[2, 7, 8])
        assert torch.equal(whole[[2, 7, 8]], some)


def test_branches_with_every_luck_average_to_q() -> None:
    """The mean of reacting branches over all that chance can bring is Q of backward induction, to 1e-12."""
    game = TinyMdp(horizon=2)
    table = lopsided(game)
    policy, luck = acting(game, table), every_noise(game)
    tau = play(game, policy, Noise(*(x[..., ::37, :] for x in luck)))
    q, B = solve(game, table).q, tau.action.shape[1]
    draws = [Noise(luck.reset[:B], *(x[:, k : k + 1].expand(-1, B, -1) for x in luck[1:])) for k in range(324)]
    simulator = Simulator(game)
    mean = torch.stack([simulator.branches(tau, tau.action[:, :, None], policy, d)[..., 0] for d in draws]).mean(0)
    t = torch.arange(2)[:, None]
    truth = q[t, tau.state.place, joint_index(game, tau.action)] * tau.alive
    assert (mean - truth).abs().max() < 1e-12
    assert (truth - to_go(tau)).abs().max() > 0.1  # luck matters here


@every_game
def test_rewards_are_single_steps(game: Env[Any]) -> None:
    """Simulator.rewards is one step with one agent's action changed, 0 at dead steps, N K steps a live (t, b)."""
    _, tau = lived(game, 6)
    choice = others(tau.action, game.n_actions)
    if tau.mask is not None:
        choice = torch.where(tau.mask.gather(-1, choice), choice, tau.action[..., None])
    simulator = Simulator(game)
    found = simulator.rewards(tau, choice)
    for t, i, k in product(range(game.horizon), range(game.n_agents), range(choice.shape[-1])):
        action = tau.action[t].clone()
        action[:, i] = choice[t, :, i, k]
        state = map_state(lambda x, t=t: x[t], tau.state)
        expected = game.step(state, action, tau.noise[t]).reward * tau.alive[t]
        assert (found[t, :, i, k] - expected).abs().max() < 1e-12
    assert simulator.steps.tolist() == [int(tau.alive.sum()) * game.n_agents * choice.shape[-1]]


@every_game
def test_totals_are_whole_plans(game: Env[Any]) -> None:
    """Simulator.totals plays whole plans on the recorded luck, and counts their live steps one by one."""
    _, tau = lived(game, 5)
    still = torch.zeros_like(tau.action)
    plans = torch.stack((tau.action, still, torch.where(tau.alive[..., None], tau.action, still)), 2)
    simulator = Simulator(game)
    found = simulator.totals(tau, plans)
    steps = 0
    for b, v in product(range(5), range(3)):
        state, total, over = take(map_state(lambda x: x[0], tau.state), torch.tensor([b])), 0.0, False
        for t in range(game.horizon):
            if over:
                break
            outcome = game.step(state, plans[t, b, v][None], tau.noise[t, b][None])
            state, total, over, steps = outcome.state, total + float(outcome.reward), bool(outcome.done), steps + 1
        assert float(found[b, v]) == pytest.approx(total, abs=1e-12)
    assert simulator.steps.tolist() == [steps]
    assert (found[:, 0] - tau.reward.sum(0)).abs().max() < 1e-12


def test_early_ends_were_met() -> None:
    """The hand counts above saw episodes of different lengths, and branches that outlive the fact."""
    for game in (ROBOT, TinyMdp(n_agents=3, horizon=4, ends=0.3)):
        _, tau = lived(game, 32)
        assert len(set(tau.alive.sum(0).tolist())) > 2
        other = swapped(tau.action, others(tau.action, game.n_actions))
        simulator = Simulator(game)
        simulator.branches(tau, other)
        length = tau.alive.sum(0)
        assert int(simulator.steps) != int((length * (length + 1) // 2).sum()) * other.shape[2]


@pytest.mark.parametrize("game", [ROBOT, TinyMdp(n_agents=3, horizon=4, ends=0.3)], ids=["robot", "tiny"])
def test_pieces_change_nothing(game: Env[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Questions asked in small pieces have the same answers and the same bill, seed by seed."""
    actor, tau = lived(game, 7, (2, 5))
    joint, plans = swapped(tau.action, others(tau.action, game.n_actions)), tau.action[:, :, None].flip(-1)

    def ask(max_rows: int) -> list[Tensor]:
        simulator = Simulator(game, 2, max_rows)
        answers = [simulator.branches(tau, joint), simulator.branches(tau, joint, actor), simulator.totals(tau, plans)]
        answers += [simulator.rewards(tau, others(tau.action, game.n_actions)), simulator.steps]
        return answers

    whole = ask(1 << 18)
    monkeypatch.setattr(sys.modules["marl.rollout"], "CACHE_ROWS", 5)  # `marl.rollout` is the function
    for rows in (1, 100, 10**9):
        for one, other in zip(whole, ask(rows), strict=True):
            assert torch.allclose(one, other, rtol=0, atol=1e-12)


def test_every_seed_pays_its_own_bill() -> None:
    """Steps are counted per seed: what seed 5 asks costs the same alone and among others, and the sum is the whole."""
    _, tau = lived(ROBOT, 6, (3, 5))
    joint = swapped(tau.action, others(tau.action, 3))
    both = Simulator(ROBOT, 2)
    both.branches(tau, joint)
    alone = []
    for s in range(2):
        part = rows_of(tau, range(6 * s, 6 * s + 6))
        simulator = Simulator(ROBOT)
        simulator.branches(part, joint[:, 6 * s : 6 * s + 6])
        alone += simulator.steps.tolist()
    assert both.steps.tolist() == alone and alone[0] != alone[1]


def test_forbidden_moves_are_never_asked() -> None:
    """MaskedTiny raises where a live agent takes a forbidden action: rollouts and reacting branches never do."""
    game = MaskedTiny(seed=3, strict=True)
    actor, tau = lived(game, 64)
    assert tau.mask is not None and not bool(tau.mask.all())
    assert bool(tau.mask.gather(-1, tau.action[..., None]).all())
    Simulator(game).branches(tau, tau.action[:, :, None], actor, draw_noise(game, *_names(64), dtype=torch.float64))
    illegal = swapped(tau.action, (~tau.mask).double().argmax(-1, keepdim=True))
    with pytest.raises(ValueError, match="forbidden"):  # the trap works
        Simulator(game).branches(tau, illegal)


def _names(episodes: int) -> tuple[Tensor, Tensor]:
    return torch.full((episodes,), 9), torch.arange(episodes)


def test_swapped_and_others() -> None:
    """Variant i K + k changes agent i to its k-th choice and nobody else; `others` is every action but one's own."""
    g = torch.Generator().manual_seed(0)
    action = torch.randint(4, (3, 5, 2), generator=g)
    choice = others(action, 4)
    variants = swapped(action, choice)
    for t, b, i, k in product(range(3), range(5), range(2), range(3)):
        expected = action[t, b].clone()
        expected[i] = choice[t, b, i, k]
        assert torch.equal(variants[t, b, 3 * i + k], expected)
    whole = torch.cat((choice, action[..., None]), -1).sort(-1).values
    assert torch.equal(whole, torch.arange(4).expand_as(whole))


def test_games_here_are_all_there_are() -> None:
    """A new game joins this list."""
    assert {envs.rules(name).__class__ for name in envs.GAMES} <= {type(game) for game in GAMES}
