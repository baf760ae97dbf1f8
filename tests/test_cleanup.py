"""cleanup: the published optimum, dynamic programming against plain recursion, and luck that is binomial."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import product
from math import comb
from typing import Any

import brute
import pytest
import torch
from torch import Tensor

from envs.base import KnobError
from envs.cleanup import CLEAN, HARVEST, IDLE, Cleanup, CleanupState
from envs.noise import uniform

TINY = [
    Cleanup(2, 2, 2, 4),
    Cleanup(3, 4, 2, 4, 0.3, 0.9),
    Cleanup(2, 3, 1, 5, 0.0, 1.0),
    Cleanup(1, 1, 3, 6, 0.5, 0.4),
    Cleanup(3, 3, 2, 3, 1.0, 0.5),
]


def at(waste: list[int], apples: list[int], t: int = 0) -> CleanupState:
    """States by hand, float64."""
    w, b = (torch.tensor(x, dtype=torch.float64) for x in (waste, apples))
    return CleanupState(torch.full((len(waste),), t), w, b)


def pmf(n: int, p: float) -> list[float]:
    return [comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1)]


def solve(game: Cleanup, pick: Callable[..., float], wrong: str = "") -> Callable[[int, int, int], float]:
    """V(t, w, b) by plain recursion over the rules as written down, every joint action and all luck one by one.

    `pick` makes a value of [(number that clean, number that harvest, expected return)] over all 3^N joint actions.
    """
    n, W, Y = game.n_agents, game.waste, game.apples
    joint = [(a.count(CLEAN), a.count(HARVEST)) for a in product((IDLE, CLEAN, HARVEST), repeat=n)]

    @cache
    def value(t: int, w: int, b: int) -> float:
        if t == game.horizon:
            return 0.0
        options = []
        for c, h in joint:
            eaten, left = min(h, b), max(0, w - c)
            grown = pmf(Y, game.growth * max(0.0, 1 - 2 * (left if wrong == "growth" else w) / W))
            total = eaten / n
            for (k, p), (d, q) in product(enumerate(grown), enumerate(pmf(n, game.dirt_probability))):
                if p * q:
                    total += p * q * value(t + 1, min(W, left + d), min(Y, b - eaten + k))
            options.append((c, h, total))
        return pick(t, w, b, options)

    return value


def best(t: int, w: int, b: int, options: list[tuple[int, int, float]]) -> float:
    return max(total for _, _, total in options)


def mean(t: int, w: int, b: int, options: list[tuple[int, int, float]]) -> float:
    return sum(total for _, _, total in options) / len(options)


@pytest.mark.parametrize("game", TINY, ids=repr)
def test_dynamic_programming_equals_plain_recursion(game: Cleanup) -> None:
    """optimal_value, random_return and the script's worth in every state, over all joint actions, to 1e-9."""
    optimum, chance = solve(game, best), solve(game, mean)

    def scripted(t: int, w: int, b: int, options: list[tuple[int, int, float]]) -> float:
        action = game.scripted_action(at([w], [b], t))[0].tolist()
        return next(v for c, h, v in options if (c, h) == (action.count(CLEAN), action.count(HARVEST)))

    script = solve(game, scripted)
    for t, w, b in product(range(game.horizon + 1), range(game.waste + 1), range(game.apples + 1)):
        assert float(game.optimal_value(at([w], [b], t))) == pytest.approx(optimum(t, w, b), abs=1e-9)
        assert script(t, w, b) == pytest.approx(optimum(t, w, b), abs=1e-9)
    assert game.optimal_return == pytest.approx(optimum(0, game.waste, 0), abs=1e-9)
    assert game.random_return == pytest.approx(chance(0, game.waste, 0), abs=1e-9)


def test_a_wrong_rule_shows() -> None:
    """If apples grew by the waste left after cleaning, the optimum would be another."""
    game = TINY[0]
    assert solve(game, best, wrong="growth")(0, 2, 0) > game.optimal_return + 0.01


def test_optimum_of_the_design() -> None:
    """18.756 from w = W, b = 0; neither other first states nor other knobs give it."""
    game = Cleanup()
    assert game.optimal_return == pytest.approx(18.756, abs=5e-4)
    assert float(game.optimal_value(game.reset(torch.zeros(1, 0)))) == pytest.approx(game.optimal_return, abs=1e-5)
    for other in (Cleanup(growth=0.61), Cleanup(dirt_probability=0.16), Cleanup(waste=9), Cleanup(horizon=39)):
        assert abs(other.optimal_return - 18.756) > 0.01
    assert float(game.optimal_value(at([7], [0]))) > 18.8


def by_hand(game: Cleanup, w: int, b: int, action: list[int], u: list[float]) -> tuple[float, int, int]:
    """One step as the rules say it: reward, waste, apples."""

    def count(n: int, p: float, x: float) -> int:
        odds, k = pmf(n, p), 0
        while k < n and x >= sum(odds[: k + 1]):
            k += 1
        return k

    eaten = min(action.count(HARVEST), b)
    grown = count(game.apples, game.growth * max(0.0, 1 - 2 * w / game.waste), u[0])
    dirt = count(game.n_agents, game.dirt_probability, u[1])
    waste = min(game.waste, max(0, w - action.count(CLEAN)) + dirt)
    return eaten / game.n_agents, waste, min(game.apples, b - eaten + grown)


@pytest.mark.parametrize("game", [Cleanup(), Cleanup(6, 5, 9, 12, 0.4, 0.2), *TINY], ids=repr)
def test_steps_equal_the_rules(game: Cleanup) -> None:
    """200 random states, actions and pairs of uniform numbers, one at a time."""
    g = torch.Generator().manual_seed(1)
    w, b = (torch.randint(top + 1, (200,), generator=g) for top in (game.waste, game.apples))
    action = torch.randint(3, (200, game.n_agents), generator=g)
    noise = uniform("test", 0, torch.arange(200), (2,), torch.float64)
    step = game.step(at(w.tolist(), b.tolist()), action, noise)
    for k in range(200):
        expected = by_hand(game, int(w[k]), int(b[k]), action[k].tolist(), noise[k].tolist())
        found = float(step.reward[k]), int(step.state.waste[k]), int(step.state.apples[k])
        assert found == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("game", [Cleanup(), Cleanup(3, 5, 2, 4, 0.3, 0.9), Cleanup(2, 3, 1, 5, 0.0, 1.0)], ids=repr)
def test_atoms_are_binomial(game: Cleanup) -> None:
    """All the luck of a step, at every waste: new apples and new dirt are independent binomials."""
    cases = game.step_atoms()
    assert float(cases.probability.sum()) == pytest.approx(1, abs=1e-12)
    count = len(cases.noise)
    idle = torch.zeros(count, game.n_agents, dtype=torch.int64)
    for w in range(game.waste + 1):
        after = game.step(at([w] * count, [0] * count), idle, cases.noise).state
        odds: dict[tuple[int, int], float] = {}
        for apples, waste, p in zip(after.apples.tolist(), after.waste.tolist(), cases.probability, strict=True):
            key = int(apples), int(waste)
            odds[key] = odds.get(key, 0.0) + float(p)
        expected: dict[tuple[int, int], float] = {}
        grown = pmf(game.apples, game.growth * max(0.0, 1 - 2 * w / game.waste))
        for (k, p), (d, q) in product(enumerate(grown), enumerate(pmf(game.n_agents, game.dirt_probability))):
            key = k, min(game.waste, w + d)
            expected[key] = expected.get(key, 0.0) + p * q
        assert {key: p for key, p in odds.items() if p > 1e-12} == pytest.approx(
            {key: p for key, p in expected.items() if p > 1e-12}, abs=1e-12
        )


def test_cleaners_are_never_paid() -> None:
    """Immediate differences of cleaning are 0 everywhere; over the episode they are not."""
    game = Cleanup(3, 4, 2, 8)
    noise = brute.noise_of(game, 40)
    plan = brute.random_plan(game, 40)
    recorded = brute.record(game, noise, plan)
    truth = brute.unit_differences(game, noise, plan, torch.zeros(3, dtype=torch.int64))
    cleans = plan == CLEAN
    for t in range(game.horizon):
        state = type(recorded.state)(*(x[t] for x in recorded.state))
        for i in range(3):
            idle = plan[t].clone()
            idle[cleans[t, :, i], i] = IDLE
            assert torch.equal(game.step(state, idle, recorded.noise[t]).reward, recorded.reward[t])
        assert game.local_rewards(state, plan[t], recorded.noise[t])[cleans[t]].abs().max() == 0
    assert truth[cleans].max() > 0.1


def test_local_rewards_are_equal_shares() -> None:
    """They sum to the reward; three harvesters of two apples get 2/3 of an apple each, worth 1/N an apple."""
    game = Cleanup()
    state = at([3, 3, 3], [2, 0, 4])
    action = torch.tensor([[HARVEST, HARVEST, CLEAN, HARVEST], [HARVEST] * 4, [IDLE, CLEAN, IDLE, HARVEST]])
    noise = torch.zeros(3, 2, dtype=torch.float64)
    own = game.local_rewards(state, action, noise)
    assert own[0].tolist() == pytest.approx([1 / 6, 1 / 6, 0, 1 / 6])
    assert own[1].tolist() == [0] * 4 and own[2].tolist() == [0, 0, 0, 0.25]
    assert (own.sum(-1) - game.step(state, action, noise).reward).abs().max() < 1e-12


def test_clones_and_removals() -> None:
    """reward_with counts copies of harvesters up to what hangs there; cleaners change nothing at once."""
    game = Cleanup()
    state = at([3], [2])
    action = torch.tensor([[HARVEST, CLEAN, IDLE, HARVEST]])
    noise = torch.zeros(1, 2, dtype=torch.float64)

    def reward(*copies: int) -> float:
        return float(game.reward_with(state, action, noise, torch.tensor([copies])))

    assert reward(1, 1, 1, 1) == float(game.step(state, action, noise).reward) == 0.5
    assert reward(0, 1, 1, 1) == 0.25 and reward(0, 5, 5, 2) == 0.5 and reward(3, 0, 0, 1) == 0.5


def test_everyone_sees_the_whole_state() -> None:
    """The script reads nothing else: states that look alike get the same joint action."""
    game = Cleanup(2, 3, 2, 4)
    cells = list(product(range(4), range(3)))
    for t in range(4):
        state = at([w for w, _ in cells], [b for _, b in cells], t)
        seen = game.observe(state)
        assert torch.equal(seen, game.critic_view(state)[:, None].expand_as(seen))
        assert len(seen[:, 0].unique(dim=0)) == len(cells)
        assert bool((seen >= 0).all()) and bool((seen <= 1).all()) and float(seen[0, 0, 2]) == t / 4


def test_float32_meets_the_same_luck() -> None:
    """Counts of a float32 game equal those of a float64 one also where noise lies just beside a step of the CDF."""
    game = Cleanup()
    apples, dirt = (torch.tensor(pmf(4, p), dtype=torch.float64).cumsum(0)[:-1] for p in (0.6 * 0.75, 0.15))
    below = (torch.stack((apples, dirt), -1) * 2.0**24).floor()
    near = torch.cat((below, below + 1)) * 2.0**-24
    idle = torch.zeros(len(near), 4, dtype=torch.int64)
    states = [at([1] * len(near), [0] * len(near)) for _ in range(2)]
    single: Tensor = states[0].waste.float()
    low = game.step(CleanupState(states[0].t, single, states[0].apples.float()), idle, near.float())
    high = game.step(states[1], idle, near)
    assert low.reward.dtype == torch.float32
    assert torch.equal(low.state.apples.double(), high.state.apples)
    assert torch.equal(low.state.waste.double(), high.state.waste)


@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        ({"n_agents": 0}, "n_agents=0 is not allowed"),
        ({"waste": 0}, "waste=0 is not allowed; it must be a whole number in 1..200"),
        ({"apples": 201}, "apples=201 is not allowed"),
        ({"apples": 2.5}, "apples=2.5 is not allowed"),
        ({"horizon": 0}, "horizon=0 is not allowed"),
        ({"dirt_probability": 1.1}, "dirt_probability=1.1 is not allowed; it must be a number in 0..1"),
        ({"growth": -0.1}, "growth=-0.1 is not allowed; it must be a number in 0..1"),
        ({"growth": float("nan")}, "growth=nan is not allowed"),
    ],
)
def test_bad_knobs(knobs: dict[str, Any], words: str) -> None:
    """One sentence: the knob, its value, what is allowed."""
    with pytest.raises(KnobError, match=words):
        Cleanup(**knobs)
