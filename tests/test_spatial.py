"""Who did it: each spatial method keeps the identities that its source claims, on real simulators."""

from __future__ import annotations

from functools import partial
from itertools import permutations, product
from typing import Any

import pytest
import torch
from tiny_mdp import TinyMdp
from torch import Tensor

from benchmarks.methods import METHODS
from envs.base import Env, HasRewardWith
from envs.el_farol import ElFarol
from envs.key_door import KeyDoor
from envs.matrix_game import MatrixGame
from envs.rover_grid import RoverGrid
from envs.walking_robot import WalkingRobot
from marl.credit.base import Chain, ChainError, Context, Credit, Learned, Signal
from marl.credit.joint.episode_dplusplus import EpisodeDPlusPlus
from marl.credit.joint.light_cone import LightCone
from marl.credit.spatial.aristocrat import Aristocrat
from marl.credit.spatial.difference import Difference
from marl.credit.spatial.dplusplus import DPlusPlus, first_that_helps
from marl.credit.spatial.learned_reward import LearnedDifference
from marl.credit.spatial.potential import CounterfactualPotential, DifferencePotential
from marl.credit.spatial.shapley import Shapley
from marl.credit.spatial.shapley_q import ShapleyQ
from marl.experiment import Method
from marl.policy import Actor
from marl.rollout import Simulator, rollout
from marl.types import Trajectory

SEEDS = (3, 8)
ROBOT = WalkingRobot(3, 12, 4, 5, 2, 1, n_cues=3)


def played(game: Env[Any], policy: Any = None, episodes: int = 6) -> Trajectory:
    return rollout(game, policy, episodes, SEEDS, dtype=torch.float64)


def given(operator: Any, game: Env[Any], tau: Trajectory, **knobs: Any) -> Tensor:
    """[T,B,N] what the operator makes of the game's own reward, 0 at dead steps."""
    out: Tensor = operator(Context(game, SEEDS), **knobs)(tau, tau.reward)
    return out.detach() * tau.alive[..., None]


# D and D++ under tight coupling.


def threshold(present: int, needed: int, n: int = 6) -> tuple[float, float]:
    """(D, D++) of one who is there, in the game that pays 1 when `needed` of n agents are."""

    def worth(k: int) -> float:
        return float(k >= needed)

    difference = torch.tensor([worth(present) - worth(present - 1)])
    gain = torch.tensor([[worth(present + clones) - worth(present) for clones in range(1, n)]])
    return float(difference), float(first_that_helps(difference, gain))


def test_threshold_game() -> None:
    """D is 0 for k > n, 1 for k = n, 0 for k < n; D++ pays 1/(n-k) for coming close and D where clones add nothing."""
    for present, needed in product(range(1, 6), range(1, 6)):
        difference, plus = threshold(present, needed)
        assert difference == float(present == needed)
        assert plus == pytest.approx(1 / (needed - present) if present < needed else difference)


def test_dplusplus_on_a_game() -> None:
    """El Farol by hand: clones crowd one's own night, so the first n that beats removal is looked up one by one."""
    game = ElFarol(5, 2, 2.0)
    assert isinstance(game, HasRewardWith)
    tau = played(game)
    found = given(DPlusPlus, game, tau)
    for b, i in product(range(tau.reward.shape[1]), range(5)):
        row = (tau.state.over[0, b : b + 1], tau.state.attendance[0, b : b + 1])
        ask = partial(game.reward_with, type(tau.state)(*row), tau.action[0, b : b + 1], tau.noise[0, b : b + 1])
        copies = torch.ones(1, 5, dtype=torch.int64)

        def worth(n: int, i: int = i, ask: Any = ask, copies: Tensor = copies) -> float:
            changed = copies.clone()
            changed[0, i] = n
            return float(ask(changed))

        want = worth(1) - worth(0)
        better = [(worth(1 + n) - worth(1)) / n for n in range(1, 5)]
        want = next((x for x in better if x > want + 1e-9), want)
        assert float(found[0, b, i]) == pytest.approx(want, abs=1e-9)


def test_dplusplus_on_episodes() -> None:
    """Rovers with clones that walk along: every episode lived again one by one; in one step it is the plain D++."""
    game = RoverGrid(3, 6, 2, 2, horizon=8)
    tau = played(game)
    found = given(partial(EpisodeDPlusPlus, baseline="none"), game, tau)
    T, B, N = tau.action.shape
    by_steps, overpaid = given(DPlusPlus, game, tau).sum(0), 0
    for b, i in product(range(B), range(N)):

        def worth(n: int, b: int = b, i: int = i) -> float:
            copies = torch.ones(1, N, dtype=torch.int64)
            copies[0, i] = n
            state, total = type(tau.state)(*(x[0, b : b + 1] for x in tau.state)), 0.0
            for t in range(T):
                state, reward, _ = game.step_with(state, tau.action[t, b : b + 1], tau.noise[t, b : b + 1], copies)
                total += float(reward)
            return total

        want = worth(1) - worth(0)
        better = [(worth(1 + n) - worth(1)) / n for n in range(1, N)]
        want = next((x for x in better if x > want + 1e-9), want)
        assert found[:, b, i].tolist() == pytest.approx([want] * T, abs=1e-9)
        overpaid += float(by_steps[b, i]) > want + 1e-9
    assert overpaid > 0  # steps summed pay for waiting, so that the two really differ here
    bar = ElFarol(5, 2, 2.0)
    once = played(bar)
    assert torch.equal(given(partial(EpisodeDPlusPlus, baseline="none"), bar, once), given(DPlusPlus, bar, once))


# Shapley.


def brute(game: Env[Any], tau: Trajectory, default: Tensor) -> Tensor:
    """[T,B,N] the mean marginal gain over all N! orders, one step of the game at a time."""
    T, _, N = tau.action.shape
    out = torch.zeros(tau.action.shape, dtype=torch.float64)
    for t in range(T):
        state = type(tau.state)(*(x[t] for x in tau.state))
        orders = list(permutations(range(N)))
        for order in orders:
            joint = default.expand_as(tau.action[t]).clone()
            before = game.step(state, joint, tau.noise[t]).reward
            for i in order:
                joint[:, i] = tau.action[t, :, i]
                after = game.step(state, joint, tau.noise[t]).reward
                out[t, :, i] += (after - before) / len(orders)
                before = after
    return out * tau.alive[..., None]


@pytest.mark.parametrize("game", [ROBOT, ElFarol(4, 2, 1.5), TinyMdp(3, 3, ends=0.3)], ids=["robot", "bar", "tiny"])
def test_shapley_is_the_mean_over_orders(game: Env[Any]) -> None:
    """Exact shares against all orders by brute force; they sum to r(a) - r(default), on live steps."""
    tau = played(game)
    exact = given(Shapley, game, tau)
    default = (
        torch.full((game.n_agents,), 0) if isinstance(game.default_action, int) else torch.tensor(game.default_action)
    )
    assert torch.allclose(exact, brute(game, tau, default), atol=1e-9)


@pytest.mark.parametrize("absent", ["default", "policy"])
def test_shares_sum_to_the_whole(absent: str) -> None:
    """Exact or by orders, with absent agents on their default or on their policy: nothing is lost, nothing invented."""
    game = ElFarol(5, 2, 2.0)
    tau = played(game)
    sums = {}
    for orders in (None, 1, 3):
        shares = given(Shapley, game, tau, absent=absent, orders=orders)
        sums[orders] = tau.reward - shares.sum(-1)
    if absent == "default":
        assert all(torch.allclose(x, torch.zeros_like(x), atol=1e-9) for x in sums.values())  # nobody out: r = 0
    else:
        assert torch.allclose(sums[None], sums[1], atol=1e-9)  # what the same draw of everyone would have earned
        assert not torch.allclose(sums[None], torch.zeros_like(sums[None]))


def test_symmetry_and_null_players() -> None:
    """Guests of one night get equal shares, who stays home (the default) gets none."""
    game = ElFarol(6, 3, 2.0)
    tau = played(game)
    shares = given(Shapley, game, tau)[0]
    action = tau.action[0]
    assert float(shares[action == 0].abs().max()) < 1e-12
    alike = action[:, :, None] == action[:, None, :]
    assert torch.allclose((shares[:, :, None] - shares[:, None, :]) * alike, torch.zeros((), dtype=torch.float64))


def test_random_orders_are_unbiased() -> None:
    """The mean over many orders comes to the exact shares as 1/sqrt(M); one order alone does not."""
    game = ElFarol(5, 2, 2.0)
    tau = played(game)
    exact = given(Shapley, game, tau)
    errors = [float((given(Shapley, game, tau, orders=m) - exact).square().mean().sqrt()) for m in (4, 64, 1024)]
    assert errors[0] > 2.5 * errors[1] > 6 * errors[2] > 0


def test_cost_of_shares() -> None:
    """2^N steps a live step exactly, N + 1 an order; many agents fall back to 16 orders."""
    for n, orders, each in ((4, None, 16), (4, 3, 15), (12, None, 16 * 13)):
        game = ElFarol(n, 2, 2.0)
        tau, context = played(game), Context(game, SEEDS)
        Shapley(context, orders=orders)(tau, tau.reward)
        assert context.simulator.steps.tolist() == [6 * each, 6 * each]


# One agent, zero means, permutations.


SPATIAL = {
    "difference": Difference,
    "aristocrat": Aristocrat,
    "Shapley": Shapley,
    "CaP": CounterfactualPotential,
    "DRiP": DifferencePotential,
}


def test_one_agent_has_nobody_to_share_with() -> None:
    """Difference and Shapley are r - r(default); the aristocrat is r minus its mean; CaP's return is the team's."""
    game = WalkingRobot(1, 12, 4, 5, 2)
    tau = played(game)
    default = played_default(game, tau)
    assert torch.allclose(given(Difference, game, tau)[..., 0], (tau.reward - default) * tau.alive, atol=1e-12)
    assert torch.allclose(given(Shapley, game, tau)[..., 0], (tau.reward - default) * tau.alive, atol=1e-12)
    assert torch.allclose(given(CounterfactualPotential, game, tau).sum((0, 2)), tau.reward.sum(0), atol=1e-12)
    means = torch.stack(
        [game.step(state_at(tau, 0), torch.full_like(tau.action[0], c), tau.noise[0]).reward for c in range(3)]
    )
    assert torch.allclose(given(Aristocrat, game, tau)[0, :, 0], tau.reward[0] - means.mean(0), atol=1e-12)


def state_at(tau: Trajectory, t: int) -> Any:
    return type(tau.state)(*(x[t] for x in tau.state))


def played_default(game: Env[Any], tau: Trajectory) -> Tensor:
    """[T,B] the reward of each recorded step had everyone done nothing."""
    nothing = torch.zeros_like(tau.action[0])
    return torch.stack([game.step(state_at(tau, t), nothing, tau.noise[t]).reward for t in range(len(tau.action))])


@pytest.mark.parametrize("name", SPATIAL)
def test_symmetric_agents_permute_with_their_credit(name: str) -> None:
    """Whoever does what agent 0 did in a game of equals is credited as agent 0 was."""
    game = ElFarol(4, 2, 1.5)
    tau = played(game)
    order = torch.tensor([2, 0, 3, 1])
    swapped = tau._replace(action=tau.action[..., order], probs=tau.probs[:, :, order])
    assert torch.allclose(given(SPATIAL[name], game, swapped), given(SPATIAL[name], game, tau)[..., order], atol=1e-9)


def test_zero_mean_under_the_policy() -> None:
    """Aristocrat, learned aristocrat: whatever the others do, an agent's own actions average to no credit."""
    game = TinyMdp(2, 3)
    tau = played(game)
    actor = Actor(game, SEEDS)
    tau = tau._replace(probs=actor(tau.obs.float()).detach().double())
    for operator in (Aristocrat, LearnedDifference):
        part = operator(Context(game, SEEDS))
        part = part.double() if isinstance(part, Learned) else part
        mean = torch.zeros(tau.action.shape, dtype=torch.float64)
        for i, c in product(range(2), range(game.n_actions)):
            action = tau.action.clone()
            action[..., i] = c
            reward = torch.stack([game.step(state_at(tau, t), action[t], tau.noise[t]).reward for t in range(3)])
            mean[..., i] += (
                tau.probs[..., i, c] * part(tau._replace(action=action, reward=reward), reward)[..., i].detach()
            )
        assert torch.allclose(mean, torch.zeros_like(mean), atol=1e-6), operator


# Potentials.


def test_cap_keeps_every_return() -> None:
    """The shaping telescopes: each agent's return is the team's, also in episodes that end early; steps differ."""
    for game in (ROBOT, TinyMdp(3, 4, ends=0.4), ElFarol(4, 2, 1.5)):
        tau = played(game)
        shaped = given(CounterfactualPotential, game, tau)
        assert torch.allclose(shaped.sum(0), tau.reward.sum(0)[:, None].expand(shaped.shape[1:]), atol=1e-12)
    tau = played(ROBOT)
    assert not torch.allclose(given(CounterfactualPotential, ROBOT, tau), tau.reward[..., None])


def test_drip_is_the_difference_return_less_the_first_potential() -> None:
    """sum_t (D + Phi' - Phi) = sum_t D - Phi(s_0)."""
    tau = played(ROBOT)
    shaped, plain = given(DifferencePotential, ROBOT, tau), given(Difference, ROBOT, tau)
    start = ROBOT.optimal_value(state_at(tau, 0))
    assert torch.allclose(shaped.sum(0), plain.sum(0) - start[:, None], atol=1e-9)
    with pytest.raises(ChainError, match="DifferencePotential needs optimal_value, and TinyMdp has none"):
        DifferencePotential(Context(TinyMdp()))


# Learned models.


class Mute(Simulator):
    """A simulator that refuses to be asked."""

    def refuse(self, *_: Any, **__: Any) -> Any:
        raise AssertionError("a learned model asked the simulator")

    rewards = paid = paid_with = branches = totals = lives = refuse


MODELS = [
    n for n, m in METHODS.items() if not {"simulator", "truth"} & set(m.needs) and {"model", "critic"} & set(m.needs)
]


@pytest.mark.parametrize("name", MODELS)
def test_learned_methods_never_ask_the_simulator(name: str) -> None:
    """Critics and models are fitted and asked with the simulator locked; the control: differences need it."""
    game = WalkingRobot(2, 8, 2, 3) if "local rewards" not in METHODS[name].needs else TinyMdp(2, 3)
    method = METHODS[name]
    if "local rewards" in method.needs:
        return  # no model of anything: it reads what the game pays each agent
    locked = Mute(game, len(SEEDS))
    chain = Chain(method.chain, Context(game, SEEDS, simulator=locked, fit=method.fit), method.ends)
    tau = rollout(game, None, 6, SEEDS)
    chain.fit(torch.optim.Adam(chain.parameters(), 0.01), tau, chain.trace(tau)[1], 0)
    assert bool(chain.assign(tau).isfinite().all())
    with pytest.raises(AssertionError, match="asked the simulator"):
        Difference(Context(game, SEEDS, simulator=locked))(tau, tau.reward)


def fitted(operator: Any, game: Env[Any], tau: Trajectory, steps: int = 400, **knobs: Any) -> Credit:
    """An operator after many steps on one batch."""
    part: Credit = operator(Context(game, SEEDS), **knobs)
    optimizer = torch.optim.Adam(part.parameters(), 0.01)
    assert isinstance(part, Learned)
    for _ in range(steps):
        optimizer.zero_grad()
        (part.predict(tau) - part.target(tau, tau.reward).detach()).square().mean().backward()
        optimizer.step()
    return part


def test_a_learned_reward_comes_to_the_simulators_answer() -> None:
    """On a small table the fitted model's aristocrat is the simulator's, which it never asked."""
    game = MatrixGame([[1, 2, -1], [3, -4, 0], [2, 2, 5]])
    tau = rollout(game, None, 40, SEEDS)
    part = fitted(LearnedDifference, game, tau)
    truth = Aristocrat(Context(game, SEEDS))(tau, tau.reward)
    assert float((part(tau, tau.reward) - truth).detach().abs().max()) < 0.2 < 0.2 * float(truth.abs().max()) + 0.2


@pytest.mark.parametrize("absent", ["default", "policy"])
def test_shapley_of_a_learned_value(absent: str) -> None:
    """Shares sum to Q(a) - v({}), and on a one-step table they come to the shares of the reward itself."""
    game = MatrixGame([[1, 2, -1], [3, -4, 0], [2, 2, 5]])
    tau = rollout(game, None, 40, SEEDS)
    part = fitted(ShapleyQ, game, tau, absent=absent, lam=1.0)
    truth = Shapley(Context(game, SEEDS), absent=absent)(tau, tau.reward)
    found = part(tau, tau.reward).detach()
    assert float((found - truth).abs().max()) < 0.25
    if absent == "default":
        nothing = part.critic.of(game.critic_view(state_at(tau, 0))[None], torch.zeros(1, 80, 1, 2, dtype=torch.int64))
        total = part.predict(tau)[..., 0] - nothing[..., 0]
        assert torch.allclose(found.sum(-1), total.detach(), atol=1e-4)


# The light cone.


def test_the_light_cone_leaves_out_what_cannot_be_reached() -> None:
    """The mean credit of an action is that of the whole return; its variance is smaller."""
    game = WalkingRobot(2, 10, 5, 3, temptation=0.5)
    tau = rollout(game, None, 4000, 0, dtype=torch.float64)
    cone = LightCone(Context(game))(tau, tau.reward)
    whole = Method(METHODS["team + return"].chain, "baseline").credit(game).assign(tau)
    for t, i, a in product((0, 2, 4, 6), range(2), range(3)):
        rows = tau.alive[t] & (tau.action[t, :, i] == a)
        gap = (cone - whole)[t, rows, i]
        assert abs(float(gap.mean())) < 4.5 * float(gap.std() / len(gap) ** 0.5) + 1e-9
    assert float(cone[:5].var()) < 0.8 * float(whole[:5].var())


def test_operators_name_what_they_miss() -> None:
    """One sentence: which part of the contract, which game."""
    with pytest.raises(ChainError, match="DPlusPlus needs reward_with, and TinyMdp does not have it"):
        DPlusPlus(Context(TinyMdp()))
    with pytest.raises(ChainError, match="EpisodeDPlusPlus needs step_with, and KeyDoor does not have it"):
        EpisodeDPlusPlus(Context(KeyDoor()))
    with pytest.raises(ChainError, match="LightCone needs light_cone, and ElFarol does not declare it"):
        LightCone(Context(ElFarol()))
    with pytest.raises(ChainError, match="Shapley: orders=0 is not allowed; it must be 1 or more"):
        Shapley(Context(ElFarol()), orders=0)
    assert Signal.RAW in Shapley.signals and Signal.TEAM not in Shapley.signals
