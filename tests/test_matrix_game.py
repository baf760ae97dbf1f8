"""matrix_game: payoffs, optima and credit are what looking at every cell says."""

from __future__ import annotations

from typing import Any

import brute
import pytest
import torch

from envs.base import KnobError
from envs.matrix_game import CLIMBING, MatrixGame

CUBE = [[[1, 2], [3, -4]], [[5, 6], [-7, 9.5]]]
GAMES = [
    MatrixGame("climbing"),
    MatrixGame("penalty", penalty=-100),
    MatrixGame("qtran"),
    MatrixGame("two_step"),
    MatrixGame(CUBE),
    MatrixGame([3.0, 1.0, 2.0]),
]


@pytest.mark.parametrize("game", GAMES, ids=lambda game: str(game.payoff)[:20])
def test_credit_equals_brute_force(game: MatrixGame) -> None:
    """Differences and Shapley values of every plan under every sort of baseline, to 1e-9."""
    plan = brute.every_joint_action(game)
    noise = brute.noise_of(game, plan.shape[1])
    recorded = brute.record(game, noise, plan)
    generator = torch.Generator().manual_seed(0)
    baselines = [torch.zeros(game.n_agents, dtype=torch.int64)]
    baselines += [torch.randint(game.n_actions, (game.n_agents,), generator=generator) for _ in range(3)]
    for baseline in baselines:
        truth = brute.unit_differences(game, noise, plan, baseline)
        assert (game.unit_differences(recorded, baseline) - truth).abs().max() < 1e-9
        shares = game.unit_shapley(recorded, baseline)
        assert (shares - brute.unit_shapley(game, noise, plan, baseline)).abs().max() < 1e-9
        base = brute.frozen_return(game, noise, baseline.expand_as(plan))
        assert (shares.sum((0, 2)) - (recorded.reward.sum(0) - base)).abs().max() < 1e-9  # shares sum to the whole


@pytest.mark.parametrize(("game", "optimum"), zip(GAMES, [11, 10, 8, 8, 9.5, 3], strict=True), ids=str)
def test_optimum_and_chance_equal_enumeration(game: MatrixGame, optimum: float) -> None:
    """The design's optima; and the largest and mean return over every plan."""
    plans = brute.every_joint_action(game)
    returns = brute.frozen_return(game, brute.noise_of(game, plans.shape[1]), plans)
    assert game.optimal_return == optimum == float(returns.max())
    assert game.random_return == pytest.approx(float(returns.mean()), abs=1e-12)


def test_climbing_misleads_a_lone_learner() -> None:
    """Row means under a uniform partner are -6.33, -5.67, 1.67: the best action looks worst."""
    means = torch.tensor(CLIMBING, dtype=torch.float64).mean(1)
    assert means.tolist() == pytest.approx([-19 / 3, -17 / 3, 5 / 3])
    game = MatrixGame("climbing")
    plan = brute.every_joint_action(game)
    returns = brute.frozen_return(game, brute.noise_of(game, 9), plan)
    assert [float(returns[plan[0, :, 0] == a].mean()) for a in range(3)] == pytest.approx(means.tolist())


def test_two_step_is_played_in_two_steps() -> None:
    """Agent 0 picks the table, nothing is paid, then the table pays; agent 1's first action does nothing."""
    game = MatrixGame("two_step")
    plan = brute.every_joint_action(game)
    recorded = brute.record(game, brute.noise_of(game, 16), plan)
    assert game.horizon == 2 and bool((recorded.reward[0] == 0).all())
    a, b = plan[1].unbind(-1)
    in_2b = torch.tensor([[0.0, 1.0], [1.0, 8.0]], dtype=torch.float64)[a, b]
    assert torch.equal(recorded.reward[1], torch.where(plan[0, :, 0] == 0, 7.0, in_2b))
    seen = game.observe(type(recorded.state)(*(x[1] for x in recorded.state)))
    assert torch.equal(seen.argmax(-1), 1 + plan[0, :, :1].expand(-1, 2))
    values = game.optimal_value(type(recorded.state)(*(x[1] for x in recorded.state)))
    assert torch.equal(values, torch.where(plan[0, :, 0] == 0, 7.0, 8.0))


def test_a_table_may_be_lists_or_tuples_or_an_array() -> None:
    """They are one game: equal, hashable and picklable as a configuration."""
    cubes = [CUBE, tuple(tuple(tuple(row) for row in part) for part in CUBE), torch.tensor(CUBE).numpy()]
    games = {MatrixGame(cube) for cube in cubes}
    assert len(games) == 1
    (game,) = games
    assert (game.n_agents, game.n_actions, game.horizon) == (3, 2, 1)


@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        ({"payoff": "climb"}, "payoff='climb' is not allowed; it must be one of climbing, penalty, qtran, two_step"),
        ({"payoff": [[1, 2, 3], [4, 5, 6]]}, "equally many actions"),
        ({"payoff": [[1, 2], [3]]}, "equally many actions"),
        ({"payoff": [[1, float("inf")], [0, 0]]}, "equally many actions"),
        ({"payoff": 3}, "payoff=3 is not allowed"),
        ({"payoff": [["a", "b"], ["c", "d"]]}, "numbers nested once an agent"),
        ({"penalty": 5}, "penalty=5 is not allowed; it must be a number in -1000000.0..0.0"),
    ],
)
def test_bad_knobs(knobs: dict[str, Any], words: str) -> None:
    """One sentence: the knob, its value, what is allowed."""
    with pytest.raises(KnobError, match=words):
        MatrixGame(**knobs)
