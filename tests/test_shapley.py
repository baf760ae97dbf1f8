"""A division is Shapley's: all orders listed, axioms, known games; and sampled orders say how far off they may be."""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations
from typing import Any

import brute
import pytest
import torch
from honest import assert_honest
from tiny_mdp import TinyMdp
from torch import Tensor

from envs.base import map_state
from envs.el_farol import ElFarol
from envs.walking_robot import WalkingRobot
from marl.oracle import oracle, shapley
from marl.oracle.shares import reward_shapley, unit_shapley
from marl.rollout import Simulator, rollout

Worth = Callable[[Tensor], Tensor]


def random_game(players: int, rows: int = 4, seed: int = 0) -> tuple[Worth, Tensor]:
    """(worth, table [R,2^n]): any number for any coalition, the empty one included."""
    generator = torch.Generator().manual_seed(seed)
    table = torch.randn(rows, 1 << players, generator=generator, dtype=torch.float64)

    def worth(present: Tensor) -> Tensor:
        number = (present.long() << torch.arange(players)).sum(-1)
        return table.gather(1, number)

    return worth, table


def by_all_orders(table: Tensor, players: int) -> Tensor:
    """[R,n], by the definition: the mean marginal gain over all n! orders, one at a time, sets kept as bit masks."""
    share = torch.zeros(len(table), players, dtype=torch.float64)
    orders = list(permutations(range(players)))
    for order in orders:
        present = 0
        for i in order:
            share[:, i] += table[:, present | 1 << i] - table[:, present]
            present |= 1 << i
    return share / len(orders)


def airport(lengths: Tensor) -> tuple[Worth, Tensor]:
    """(worth, shares [n]): a runway costs what its longest user needs; each stretch is shared by those who need it."""

    def worth(present: Tensor) -> Tensor:
        return torch.where(present, lengths, 0.0).amax(-1)

    order = lengths.argsort()
    stretch = lengths[order].diff(prepend=lengths.new_zeros(1))
    share = (stretch / torch.arange(len(lengths), 0, -1)).cumsum(0)
    return worth, torch.zeros_like(lengths).scatter(0, order, share)


def random_orders(rows: int, players: int, how_many: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(rows, players, generator=generator).argsort(-1) for _ in range(how_many)]


@pytest.mark.parametrize("players", [1, 2, 3, 4, 5])
def test_exact_is_the_mean_over_all_orders(players: int) -> None:
    """All 2^n coalitions with Shapley's weights equal all n! orders, whatever the size of the pieces."""
    worth, table = random_game(players)
    truth = by_all_orders(table, players)
    for at_once in (1, 3, 1 << 12):
        found = shapley.exact(worth, 4, players, at_once)
        assert (found.values - truth).abs().max() < 1e-12
        assert found.how == f"all {1 << players} coalitions" and not found.error.any()
    if players > 2:  # the control: other weights (Banzhaf's, every coalition alike) give something else
        without = [c for c in range(1 << players) if not c & 1]
        banzhaf = torch.stack([table[:, c | 1] - table[:, c] for c in without]).mean(0)
        assert (banzhaf - truth[:, 0]).abs().max() > 0.01


def test_axioms() -> None:
    """Efficient, additive, alike to the alike, and exactly nothing to those who change nothing."""
    worth, table = random_game(8)
    other, _ = random_game(8, seed=1)
    whole = shapley.exact(worth, 4, 8).values
    assert (whole.sum(1) - (table[:, -1] - table[:, 0])).abs().max() < 1e-12
    both = shapley.exact(lambda present: worth(present) + 2 * other(present), 4, 8).values
    assert (both - whole - 2 * shapley.exact(other, 4, 8).values).abs().max() < 1e-12

    def idle_and_alike(present: Tensor) -> Tensor:
        """Player 0 is never heard; players 1 and 2 are only counted."""
        heard = present.clone()
        heard[..., 0] = False
        heard[..., 1] = present[..., 1] | present[..., 2]
        heard[..., 2] = present[..., 1] & present[..., 2]
        return worth(heard)

    for found in (
        shapley.exact(idle_and_alike, 4, 8).values,
        shapley.permutations(idle_and_alike, random_orders(4, 8, 3)).values,
    ):
        assert not found[:, 0].any() and found[:, 1:].abs().min() > 0
    alike = shapley.exact(idle_and_alike, 4, 8).values
    assert (alike[:, 1] - alike[:, 2]).abs().max() < 1e-12


def test_known_game_to_the_last_player_and_beyond() -> None:
    """The airport game (Littlechild & Owen 1973): 12 players exactly, 13 by orders, and the answer says which."""
    for players, how in ((12, "all 4096 coalitions"), (13, "400 orders in 200 antithetic pairs")):
        worth, truth = airport(torch.linspace(1, 3, players, dtype=torch.float64).flip(0))
        found = shapley.shapley(worth, 1, players, random_orders(1, players, 200), at_once=1000)
        assert found.how == how
        if players == 12:
            assert (found.values[0] - truth).abs().max() < 1e-12 and not found.error.any()
        else:
            assert bool(found.error.all()) and float(((found.values[0] - truth) / found.error).abs().max()) < 4
        assert (found.values.sum() - truth.sum()).abs() < 1e-12  # efficient in every order


@pytest.mark.parametrize("players", [1, 2, 4])
def test_orders_are_unbiased(players: int) -> None:
    """The mean of one order's gains, and of an antithetic pair's, over all orders is the value itself."""
    worth, table = random_game(players)
    orders = [torch.tensor(order).expand(4, -1) for order in permutations(range(players))]
    truth = by_all_orders(table, players)
    for gains in (shapley.gains, shapley.antithetic_gains):
        assert (torch.stack([gains(worth, order) for order in orders]).mean(0) - truth).abs().max() < 1e-12
    for order in orders:  # a pair is the mean of an order and its reverse, at the price of 2n answers
        pair = (shapley.gains(worth, order) + shapley.gains(worth, order.flip(-1))) / 2
        assert (shapley.antithetic_gains(worth, order) - pair).abs().max() < 1e-12


def test_rows_have_orders_of_their_own() -> None:
    """Row r follows order[r]: the same as asking row by row."""
    worth, table = random_game(5)
    order = random_orders(4, 5, 1)[0]
    found = shapley.gains(worth, order)
    for r in range(4):
        present = 0
        for i in order[r].tolist():
            assert float(found[r, i]) == pytest.approx(float(table[r, present | 1 << i] - table[r, present]), abs=1e-12)
            present |= 1 << i


def test_errors_are_honest_and_shrink() -> None:
    """At most 1% of shares outside 3 standard errors, none outside 6; four times the orders, half the error."""
    worth = random_game(6, rows=200)[0]
    truth = shapley.exact(worth, 200, 6).values
    few, many = (shapley.permutations(worth, random_orders(200, 6, m)) for m in (50, 200))
    for found in (few, many):
        assert_honest(found.values, found.error, truth)
    assert float(few.error.mean() / many.error.mean()) == pytest.approx(2, rel=0.05)
    assert float((few.values - truth).std() / (many.values - truth).std()) == pytest.approx(2, rel=0.2)
    with pytest.raises(ValueError, match="orders=1 is not allowed; it must be 2 or more"):
        shapley.permutations(worth, random_orders(200, 6, 1))


# Of rewards, over agents.


def test_reward_shapley_equals_all_orders() -> None:
    """O1 Shapley of a game stepped by hand, coalition by coalition, and by sampled orders within their errors."""
    game = TinyMdp(3, 3, 3, ends=0.3)
    tau = rollout(game, None, 30, dtype=torch.float64)
    baseline = torch.tensor([1, 0, 2])
    table = torch.zeros(3, 30, 8, dtype=torch.float64)
    for c in range(8):
        joined = torch.tensor([bool(c >> i & 1) for i in range(3)])
        for t in range(3):
            state = map_state(lambda x, t=t: x[t], tau.state)
            table[t, :, c] = game.step(state, torch.where(joined, tau.action[t], baseline), tau.noise[t]).reward
    truth = by_all_orders(table.flatten(0, 1), 3).reshape(3, 30, 3) * tau.alive[..., None]
    found = oracle(game, None, tau, "O1 Shapley", baseline.tolist())
    assert (found.values - truth).abs().max() < 1e-12 and not found.error.any()
    assert "all 8 coalitions" in found.definition and found.cost == 8 * int(tau.alive.sum())
    some = oracle(game, None, tau, "O1 Shapley", baseline.tolist(), how="sampled", replays=200)
    assert_honest(some.values, some.error, truth)
    assert "400 orders in 200 antithetic pairs" in some.definition
    assert some.cost == 200 * 2 * 3 * int(tau.alive.sum())


def test_reward_shapley_of_many_agents_is_sampled() -> None:
    """Beyond 12 agents the same call samples orders; el_farol's equal shares are within their errors."""
    game = ElFarol(14, 3, 2.0)
    tau = rollout(game, None, 20, dtype=torch.float64)
    found = oracle(game, None, tau, "O1 Shapley", replays=400)
    assert_honest(found.values, found.error, game.unit_shapley(tau, torch.zeros(14)))
    assert not found.values[tau.action == 0].any() and "800 orders" in found.definition
    with pytest.raises(ValueError, match=r"O1 Shapley asks about 2\^N coalitions: exact to N = 12"):
        oracle(game, None, tau, "O1 Shapley", how="exact")


def test_closed_exact_and_sampled_shapley_agree_on_el_farol() -> None:
    """One step makes O8 Shapley O1 Shapley; closed form, all coalitions and sampled orders are three routes to it."""
    game = ElFarol(6, 2, 2.0)
    tau = rollout(game, None, 40, dtype=torch.float64)
    closed, exact, some = (
        oracle(game, None, tau, "O8 Shapley", how=how, replays=200) for how in ("closed", "exact", "sampled")
    )
    assert (closed.values - exact.values).abs().max() < 1e-12
    assert (closed.values - oracle(game, None, tau, "O1 Shapley").values).abs().max() < 1e-12
    assert_honest(some.values, some.error, closed.values)


# Of returns, over (agent, step) units.


@pytest.mark.parametrize("limit", [12, 0], ids=["exact", "sampled"])
def test_unit_shapley_equals_all_orders_of_units(limit: int) -> None:
    """O8 Shapley by replays equals the mean over all orders of units, those after an early end included."""
    game = WalkingRobot(2, 6, 2, 4, 2, 1, temptation=0.3)
    noise, plan = brute.noise_of(game, 12), brute.random_plan(game, 12)
    baseline = torch.tensor([1, 0])
    stays = torch.rand(plan.shape, generator=torch.Generator().manual_seed(3)) < 0.5
    stays[3:] = True  # units left: at most 6, of the steps before and after the fall
    plan = torch.where(stays, baseline, plan)
    plan[5, :6, 0] = 2
    recorded = brute.record(game, noise, plan)
    episodes = [(slice(b, b + 1), (noise[0][b : b + 1], noise[1][b : b + 1])) for b in range(12)]
    truth = torch.cat([brute.unit_shapley(game, luck, plan[:, b], baseline) for b, luck in episodes], 1)
    tau = rollout(game, None, 12, dtype=torch.float64)._replace(**recorded._asdict())
    found = unit_shapley(Simulator(game), tau, baseline, 100, limit=limit)
    off = (found.values - truth).abs()
    assert not found.values[plan == baseline].any() and float(truth.abs().max()) > 0.1
    if limit:
        assert float(off.max()) < 1e-12 and not found.error.any() and found.how == "all coalitions"
    else:
        assert bool((off <= 4 * found.error + 1e-12).all()) and found.how == "200 orders in 100 antithetic pairs"


def test_sampled_unit_shapley_agrees_with_the_closed_form() -> None:
    """On walking_robot, where 2^36 coalitions could not be asked: at most 1% outside 3 errors, none outside 6."""
    game = WalkingRobot(3, 12, 4, 5, 2, 2, n_cues=3, decoys=2, stagger=2, temptation=0.3)
    tau = rollout(game, None, 8, dtype=torch.float64)
    closed, some = (oracle(game, None, tau, "O8 Shapley", how=how, replays=60) for how in ("closed", "sampled"))
    assert_honest(some.values, some.error, closed.values)
    assert (some.values.sum((0, 2)) - closed.values.sum((0, 2))).abs().max() < 1e-12  # both share the whole difference
    units = (tau.action != torch.tensor(game.safe_action)).flatten(2).sum((0, 2))
    assert closed.cost == int(((1 + units) * tau.alive.sum(0)).sum())
    assert 0 < some.cost < 60 * 2 * 12 * int(units.sum())  # plans that fall end early


def test_few_units_are_divided_exactly_and_many_by_orders() -> None:
    """One call, episode by episode; the definition counts them, and says so of none and of all."""
    game = TinyMdp(2, 8, ends=0.0)
    tau = rollout(game, None, 30, dtype=torch.float64)
    tau = tau._replace(action=tau.action * (torch.arange(30) % 2)[:, None])  # every other plan is all zeros
    units = tau.action.flatten(2).sum((0, 2))
    assert 0 < int((units <= 6).sum()) < 30
    simulator = Simulator(game)
    found = unit_shapley(simulator, tau, torch.tensor([0, 0]), 3, limit=6)
    few = units <= 6
    assert (
        found.how == f"all coalitions in {int(few.sum())} of 30 episodes, 6 orders in 3 antithetic pairs in the others"
    )
    assert not found.error[:, few].any() and bool(found.error[:, ~few][tau.action[:, ~few] > 0].any())
    cost = sum(8 * (2**u if u <= 6 else 3 * 2 * u) for u in units.tolist() if u)
    assert int(simulator.steps) == cost


def test_pieces_change_nothing() -> None:
    """Little memory, the same shares and the same bill."""
    game = TinyMdp(3, 4, 3, ends=0.3)
    tau = rollout(game, None, 9, dtype=torch.float64)
    baseline = torch.tensor([0, 1, 2])
    asks: list[Callable[[Simulator], Any]] = [
        lambda s: reward_shapley(s, tau, baseline),
        lambda s: reward_shapley(s, tau, baseline, 4),
        lambda s: unit_shapley(s, tau, baseline, 4),
        lambda s: unit_shapley(s, tau, baseline, 4, limit=0),
    ]
    for ask in asks:
        big, small = Simulator(game), Simulator(game, memory=5000)
        whole, parts = ask(big), ask(small)
        assert (whole.values - parts.values).abs().max() < 1e-12 and (whole.error - parts.error).abs().max() < 1e-12
        assert int(big.steps) == int(small.steps) > 0
