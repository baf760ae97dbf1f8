"""rover_grid: the rules are the plain ones, clones and removals are what they say, the optimum is the best there is."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, product
from typing import Any

import brute
import pytest
import torch
from torch import Tensor

import envs.rover_grid as module
from envs.base import KnobError
from envs.rover_grid import MOVES, RoverGrid, RoverState, far_cells, random_coverage, sweep_bound, walks

Cell = tuple[int, int]
NOTHING = torch.zeros(1, 0, dtype=torch.float64)


def near(a: Sequence[int], b: Sequence[int], radius: int) -> bool:
    return max(abs(a[0] - b[0]), abs(a[1] - b[1])) <= radius


def after(game: RoverGrid, cell: Sequence[int], action: int) -> Cell:
    """Where a rover is after a move, in plain numbers."""
    x, y = cell[0] + MOVES[action][0], cell[1] + MOVES[action][1]
    return (x, y) if 0 <= x < game.size and 0 <= y < game.size else (cell[0], cell[1])


def scene(game: RoverGrid, rovers: list[Cell], points: list[Cell], values: list[float] | None = None) -> RoverState:
    """A state made by hand, one row."""
    worth = torch.tensor([values or [1.0] * len(points)], dtype=torch.float64)
    paid = torch.zeros(1, len(points), dtype=torch.bool)
    return RoverState(torch.zeros(1, dtype=torch.int64), torch.tensor([rovers]), torch.tensor([points]), worth, paid)


def everyone(game: RoverGrid, value: float = 1.0) -> Tensor:
    return torch.full((1, game.n_agents), value, dtype=torch.float64)


def stay(game: RoverGrid) -> Tensor:
    return torch.zeros(1, game.n_agents, dtype=torch.int64)


def scripted_return(game: RoverGrid, first: Tensor) -> tuple[Tensor, Tensor]:
    """(return of the script, sum of the values), [B] each."""
    state = game.reset(first)
    total = torch.zeros(len(first), dtype=first.dtype)
    for _ in range(game.horizon):
        outcome = game.step(state, game.scripted_action(state), first[:, :0])
        state, total = outcome.state, total + outcome.reward
    return total, state.value.sum(1)


def least_steps(n: int, size: int, points: Sequence[Cell], coupling: int, radius: int) -> list[float]:
    """[2^P] fewest steps to exactly each set of points (inf if never without more): breadth first over joint cells."""
    start = ((size // 2, size // 2),) * n
    best = [float("inf")] * (1 << len(points))
    best[0] = 0
    game = RoverGrid(size=size, radius=0, n_points=1)
    seen, front, steps = {(start, 0)}, [(start, 0)], 0
    while best[-1] == float("inf"):
        steps, later = steps + 1, []
        for cells, paid in front:
            for moved in product(*({after(game, cell, a) for a in range(5)} for cell in cells)):
                joint, now = tuple(sorted(moved)), paid
                for p, point in enumerate(points):
                    now |= (sum(near(cell, point, radius) for cell in joint) >= coupling) << p
                best[now] = min(best[now], steps)
                if (joint, now) not in seen:
                    seen.add((joint, now))
                    later.append((joint, now))
        front = later
    return best


# The rules.


@pytest.mark.parametrize(
    "knobs", [{}, {"n_agents": 6, "size": 5, "n_points": 3, "coupling": 3}, {"radius": 0, "coupling": 1}], ids=str
)
def test_rules_in_plain_numbers(knobs: dict[str, Any]) -> None:
    """Cells, pay, equal shares and clones of random play, against loops over rovers and points."""
    game = RoverGrid(**knobs)
    noise, plan = brute.noise_of(game, 8), brute.random_plan(game, 8)
    copies = torch.randint(0, 4, plan.shape, generator=torch.Generator().manual_seed(1))
    state, paid_at_all = game.reset(noise[0]), 0
    for t in range(game.horizon):
        outcome = game.step(state, plan[t], noise[1][:, t])
        shares = game.local_rewards(state, plan[t], noise[1][:, t])
        cloned = game.reward_with(state, plan[t], noise[1][:, t], copies[t])
        for b in range(8):
            cells = [after(game, c, a) for c, a in zip(state.rover[b].tolist(), plan[t, b].tolist(), strict=True)]
            assert [list(cell) for cell in cells] == outcome.state.rover[b].tolist()
            reward, with_copies, share = 0.0, 0.0, [0.0] * game.n_agents
            for p, point in enumerate(state.point[b].tolist()):
                here = [i for i, cell in enumerate(cells) if near(cell, point, game.radius)]
                value, fresh = float(state.value[b, p]), not bool(state.paid[b, p])
                if fresh and len(here) >= game.coupling:
                    reward, paid_at_all = reward + value, paid_at_all + 1
                    for i in here:
                        share[i] += value / len(here)
                if fresh and sum(int(copies[t, b, i]) for i in here) >= game.coupling:
                    with_copies += value
                assert bool(outcome.state.paid[b, p]) == (not fresh or len(here) >= game.coupling)
            assert (float(outcome.reward[b]), float(cloned[b])) == (reward, with_copies)
            assert shares[b].tolist() == pytest.approx(share, abs=1e-12)
            assert float(shares[b].sum()) == pytest.approx(reward, abs=1e-12)
        state = outcome.state
    assert paid_at_all > 3


def test_observations_in_plain_numbers() -> None:
    """Own cell; each point's offset, value / 3, paid; the others' offsets; the critic's absolute view and clock."""
    game = RoverGrid(3, 5, 2, 2, 1, 10)
    state = scene(game, [(0, 4), (2, 2), (3, 1)], [(4, 4), (1, 0)], [3.0, 1.0])
    state = state._replace(paid=torch.tensor([[False, True]]), t=torch.tensor([4]))
    seen = (game.observe(state)[0, 1] * 4).tolist()
    assert seen == pytest.approx([2, 2, 2, 2, 4, 0, -1, -2, 4 / 3, 4, -2, 2, 1, -1])
    view = (game.critic_view(state)[0] * 4).tolist()
    assert view == pytest.approx([0, 4, 2, 2, 3, 1, 4, 4, 1, 0, 4, 0, 4 / 3, 4, 1.6])


def test_beginnings() -> None:
    """Every ordered layout of distinct far cells and every values equally often; nothing due before anyone moves."""
    game = RoverGrid(2, 4, 2, 1, 1, 3)
    cases = game.reset_atoms()
    state = game.reset(cases.noise)
    layouts = [tuple(map(tuple, row)) for row in state.point.tolist()]
    cells = far_cells(4, 1)
    expected = {(a, b): 9 for a in cells for b in cells if a != b}
    assert len(cells) == 7 and {layout: layouts.count(layout) for layout in layouts} == expected
    assert torch.allclose(cases.probability, torch.tensor(1 / (7 * 6 * 9), dtype=torch.float64))
    assert state.value.mean() == 2 and set(state.value.flatten().tolist()) == {1.0, 2.0, 3.0}
    assert (state.rover == 2).all() and not game._near(state.rover, state).any()
    assert game.step_atoms().noise.shape == (1, 0)
    for beyond in combinations(far_cells(5, 0), 1):
        assert beyond[0] != (2, 2)
    with pytest.raises(ValueError, match="size=8, radius=1, n_points=4 has 663,0"):
        RoverGrid().reset_atoms()


def test_a_point_next_to_the_start_pays_in_the_first_step() -> None:
    """At distance radius + 1 one move is enough; the second visit pays nothing."""
    game = RoverGrid(2, 7, 1, 2, 1, 5)
    state = scene(game, [(3, 3), (3, 3)], [(5, 3)], [3.0])
    one, both = torch.tensor([[2, 0]]), torch.tensor([[2, 2]])
    assert float(game.step(state, one, NOTHING).reward) == 0
    outcome = game.step(state, both, NOTHING)
    assert float(outcome.reward) == 3 and bool(outcome.state.paid)
    back = game.step(outcome.state, torch.tensor([[1, 1]]), NOTHING).state
    assert float(game.step(back, both, NOTHING).reward) == 0


# Clones and removals.


@pytest.mark.parametrize("needed", [1, 2, 4, 6])
def test_threshold_identities(needed: int) -> None:
    """k of n = coupling rovers near a point worth V: D = V at k = n, else 0; n - k clones of one give D++ = V/(n-k)."""
    game, value = RoverGrid(6, 9, 1, needed, 1, 5), 3.0
    for k in range(1, 7):
        state = scene(game, [(1, 1)] * k + [(7, 7)] * (6 - k), [(1, 2)], [value])
        keep = everyone(game)
        reward = float(game.reward_with(state, stay(game), NOTHING, keep))
        assert reward == float(game.step(state, stay(game), NOTHING).reward) == (value if k >= needed else 0)
        for i in range(6):
            gone, cloned = keep.clone(), keep.clone()
            gone[0, i] = 0
            difference = reward - float(game.reward_with(state, stay(game), NOTHING, gone))
            assert difference == (value if k == needed and i < k else 0)
            if k >= needed:
                continue
            for clones in range(1, needed + 1):
                cloned[0, i] = 1 + clones
                gain = (float(game.reward_with(state, stay(game), NOTHING, cloned)) - reward) / clones
                enough = i < k and clones >= needed - k
                assert gain == pytest.approx(value / clones if enough else 0)  # V/(n-k) with the first that helps


def test_dplusplus_sees_what_differences_do_not() -> None:
    """With coupling 3 and one rover near a point, every difference is 0 and D++ names that rover (negative control: 2
    clones are needed, and one of a rover far away never helps)."""
    game = RoverGrid(4, 8, 2, 3, 1, 5)
    state = scene(game, [(1, 1), (5, 5), (5, 4), (3, 3)], [(0, 0), (7, 0)], [2.0, 3.0])
    rewards = {}
    for i, copies in product(range(4), (0, 1, 2, 3)):
        counts = everyone(game)
        counts[0, i] = copies
        rewards[i, copies] = float(game.reward_with(state, stay(game), NOTHING, counts))
    assert {key for key, reward in rewards.items() if reward} == {(0, 3)} and rewards[0, 3] / 2 == 1.0


def test_removed_is_absent_and_cloned_is_one_more() -> None:
    """One step's reward equals that of a smaller or larger team in the same cells; what was paid before stays paid."""
    game = RoverGrid(4, 5, 3, 2, 1, 12)
    noise, plan = brute.noise_of(game, 30), brute.random_plan(game, 30)
    recorded = brute.record(game, noise, plan)
    moved = 0
    for t in range(game.horizon):
        state = RoverState(*(x[t] for x in recorded.state))
        for i in range(4):
            others = [j for j in range(4) if j != i]
            for copies, cast in ((0, others), (2, [0, 1, 2, 3, i]), (4, [0, 1, 2, 3, i, i, i])):
                team = RoverGrid(len(cast), 5, 3, 2, 1, 12)
                there = team.step(state._replace(rover=state.rover[:, cast]), plan[t][:, cast], noise[1][:, t])
                counts = torch.ones(30, 4)
                counts[:, i] = copies
                asked = game.reward_with(state, plan[t], noise[1][:, t], counts)
                assert torch.equal(asked, there.reward)
                moved += int((asked != recorded.reward[t]).sum())
    assert moved > 10


# What is known of the returns.


@pytest.mark.parametrize(
    "game",
    [
        RoverGrid(1, 3, 2, 1, 0, 4),  # alone, some layouts are too far
        RoverGrid(2, 3, 2, 2, 0, 2),  # all together
        RoverGrid(2, 3, 2, 1, 0, 2),  # a group for each point
        RoverGrid(2, 2, 3, 1, 0, 2),  # fewer groups than points
        RoverGrid(1, 2, 3, 1, 0, 3),  # every layout in time
        RoverGrid(3, 2, 2, 2, 0, 2),  # one to spare, radius 0
        RoverGrid(2, 4, 1, 2, 1, 2),
        RoverGrid(2, 2, 1, 3, 0, 2),  # too few
    ],
    ids=repr,
)
def test_optimum_and_chance_equal_enumeration(game: RoverGrid) -> None:
    """Over every plan and every beginning: the mean of the best returns, and the mean of all."""
    plans = brute.every_joint_action(game)
    first = game.reset_atoms().noise
    best, mean = [], []
    for noise in first:
        rows = noise.expand(plans.shape[1], -1), torch.zeros(plans.shape[1], game.horizon, 0, dtype=torch.float64)
        returns = brute.frozen_return(game, rows, plans)
        best.append(float(returns.max()))
        mean.append(float(returns.mean()))
    assert game.optimal_return == pytest.approx(sum(best) / len(best), abs=1e-12)
    assert game.random_return == pytest.approx(sum(mean) / len(mean), abs=1e-12)
    earned, _ = scripted_return(game, first)
    assert earned.tolist() == best


@pytest.mark.parametrize(
    ("n", "coupling", "size", "radius", "n_points"),
    [(1, 1, 5, 1, 4), (1, 1, 6, 0, 5), (2, 1, 4, 0, 3), (2, 2, 4, 0, 3), (3, 2, 3, 0, 3), (3, 1, 3, 0, 4)],
)
def test_no_play_is_faster_than_the_plan(n: int, coupling: int, size: int, radius: int, n_points: int) -> None:
    """Breadth first over joint cells: every set of points takes as many steps as the planner says, layout by layout."""
    layouts = list(combinations(far_cells(size, radius), n_points))
    groups = min(n // coupling, n_points)
    for points in layouts[:: max(1, len(layouts) // 4)]:
        start = torch.full((1, groups, 2), size // 2)
        length, _ = walks(start, torch.tensor([points]), radius)
        planned = (module.split(length)[0] // module._SECOND)[0].tolist()
        best = least_steps(n, size, points, coupling, radius)
        assert all(
            min(best[wide] for wide in range(len(best)) if wide & k == k) == planned[k] for k in range(len(best))
        )


def test_optimum_is_unknown_where_swapping_groups_helps() -> None:
    """Three rovers, coupling 2: one group needs 4 steps for these points, three that change partners need 3."""
    points = [(1, 4), (3, 0), (4, 1)]
    length, _ = walks(torch.tensor([[[2, 2]]]), torch.tensor([points]), 1)
    assert int(length[0, 0, -1]) == 4
    assert least_steps(3, 5, points, 2, 1)[-1] == 3
    assert RoverGrid(3, 5, 3, 2, 1, 3).optimal_return is None
    assert RoverGrid(3, 5, 3, 3, 1, 3).optimal_return is not None
    assert RoverGrid(2, 12, 4, 2, 1, 20).optimal_return is None  # too many layouts to look at
    assert RoverGrid(2, 8, 7, 2, 1, 20).optimal_return is None  # too many orders to try


def test_published_optimum() -> None:
    """The sum of all values, 2P on average, where N >= coupling and there is time; the script earns it to the point."""
    assert RoverGrid().optimal_return == 8 and RoverGrid().reachable_return is None
    assert RoverGrid(coupling=5).optimal_return == 0 == RoverGrid(coupling=5).random_return
    games = [
        RoverGrid(),
        RoverGrid(2, 12, 4, 1),
        RoverGrid(7, 8, 3, 3),
        RoverGrid(5, 8, 8, 2, 2),
        RoverGrid(4, 8, 4, 4),
    ]
    for game in games:
        assert game.optimal_return == 2 * game.n_points
        earned, values = scripted_return(game, brute.noise_of(game, 300)[0])
        assert torch.equal(earned, values)


def test_tight_horizon_is_used_best() -> None:
    """Where not everything is in reach, the script's mean over all beginnings is the enumerated optimum."""
    for game in (RoverGrid(2, 4, 2, 2, 0, 4), RoverGrid(2, 4, 3, 1, 1, 1), RoverGrid(1, 5, 2, 1, 1, 4)):
        earned, _ = scripted_return(game, game.reset_atoms().noise)
        assert game.optimal_return is not None and game.optimal_return < 2 * game.n_points
        assert float(earned.mean()) == pytest.approx(game.optimal_return, abs=1e-12)


def test_worst_layout() -> None:
    """The worst shortest walk over all layouts is exact: one step less and some layout cannot be paid in full."""
    size, radius, n_points = 5, 1, 3
    layouts = torch.tensor(list(combinations(far_cells(size, radius), n_points)))
    length, _ = walks(torch.full((len(layouts), 1, 2), size // 2), layouts, radius)
    worst = int(length[:, 0, -1].max())
    assert worst < sweep_bound(size, radius, n_points)
    assert RoverGrid(2, size, n_points, 2, radius, worst).optimal_return == 6
    less = RoverGrid(2, size, n_points, 2, radius, worst - 1).optimal_return
    assert less is not None and 5 < less < 6


def test_sweep_keeps_its_bound() -> None:
    """Many points, taken by rising x: always done within the bound, and in a wrong order not."""
    game = RoverGrid(4, 8, 9, 2, 1, sweep_bound(8, 1, 5))
    earned, values = scripted_return(game, brute.noise_of(game, 400)[0])
    assert torch.equal(earned, values) and game.optimal_return == 18
    short = RoverGrid(4, 8, 9, 2, 1, game.horizon // 2)
    earned, values = scripted_return(short, brute.noise_of(short, 400)[0])
    assert bool((earned < values).any()) and short.optimal_return is None


def test_script_recovers_from_anywhere() -> None:
    """After twenty random steps groups are scattered; their members still meet at every point that is left."""
    for game in (RoverGrid(5, 8, 4, 2, 1, 60), RoverGrid(3, 8, 8, 3, 0, 200)):
        noise, plan = brute.noise_of(game, 200), brute.random_plan(game, 200)
        state = game.reset(noise[0])
        for t in range(game.horizon):
            action = plan[t] if t < 20 else game.scripted_action(state)
            state = game.step(state, action, noise[1][:, t]).state
        assert bool(state.paid.all())


@pytest.mark.parametrize(("n", "coupling", "size", "horizon"), [(2, 2, 5, 12), (3, 1, 5, 6), (2, 1, 6, 9)])
def test_estimated_chance_agrees_with_exact(
    n: int, coupling: int, size: int, horizon: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sampled coverage lies within 4.5 of its standard errors of the exact one; that one claims no error."""
    exact, none = random_coverage.__wrapped__(n, size, coupling, 1, horizon)
    assert none == 0 and 0 < exact < 1
    monkeypatch.setattr(module, "EPISODES", 4000)
    monkeypatch.setattr(module, "_is_small", lambda *_: False)
    sampled, error = random_coverage.__wrapped__(n, size, coupling, 1, horizon)
    assert 0 < error < 0.01 and abs(sampled - exact) < 4.5 * error


def test_default_chance() -> None:
    """Estimated: its standard error is as small as the docstring says, and asking twice gives the same number."""
    game = RoverGrid()
    _, error = random_coverage(game.n_agents, game.size, game.coupling, game.radius, game.horizon)
    assert 0 < 2 * game.n_points * error < 0.005
    assert game.random_return == RoverGrid().random_return


# For people.


def test_pictures_and_words() -> None:
    """The map in words; pictures of any size of game, which show a rover's move and a payment."""
    game = RoverGrid(3, 4, 2, 2, 1, 9)
    state = scene(game, [(0, 0), (2, 2), (2, 2)], [(3, 0), (0, 3)], [2.0, 3.0])
    state = state._replace(paid=torch.tensor([[False, True]]))
    assert game.text(state).splitlines() == [
        "step 0 of 9, return 3 of 5; a point needs 2 of 3 rovers within 1",
        "(3) .  .  .",
        " .  . @2  .",
        " .  .  .  .",
        "@   .  .  2",
    ]
    picture = game.draw(state)
    assert picture.shape[1] == 456
    for other in (state._replace(paid=~state.paid), game.step(state, torch.tensor([[2, 1, 0]]), NOTHING).state):
        assert (game.draw(other) != picture).any()
    crowd = RoverGrid(40, 30, 20, 7, 2)
    assert crowd.draw(crowd.reset(brute.noise_of(crowd, 1)[0])).shape == picture.shape


@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        ({"n_agents": 0}, "n_agents=0 is not allowed"),
        ({"size": 1}, "size=1 is not allowed"),
        ({"size": 8.0}, "size=8.0 is not allowed"),
        ({"n_points": 0}, "n_points=0 is not allowed"),
        ({"n_points": 56}, "n_points=56 is not allowed; it must be at most 55, the cells farther than radius"),
        ({"coupling": 0}, "coupling=0 is not allowed"),
        ({"radius": -1}, "radius=-1 is not allowed"),
        ({"radius": 4}, r"radius=4 is not allowed; it must be in 0..3, so that points fit"),
        ({"horizon": 0}, "horizon=0 is not allowed"),
        ({"horizon": True}, "horizon=True is not allowed"),
    ],
)
def test_bad_knobs(knobs: dict[str, Any], words: str) -> None:
    """One sentence: the knob, its value, what is allowed."""
    with pytest.raises(KnobError, match=words):
        RoverGrid(**knobs)
