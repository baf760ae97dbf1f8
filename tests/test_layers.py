"""States are listed once each, whatever the rounding or the chunk; what cannot be listed is refused in a sentence."""

from __future__ import annotations

from itertools import product
from typing import Any, ClassVar

import brute
import pytest
import torch
from tiny_atoms import FiniteMasked, FiniteTiny, Remembering
from tiny_mdp import TinyMdp, TinyState
from torch import Tensor

from envs.base import Env, Step, map_state
from envs.el_farol import ElFarol
from envs.noise import atoms
from envs.spread import Spread
from envs.walking_robot import WalkingRobot
from marl.oracle import layers
from marl.oracle.exact import TooLarge, expected_return, reach, solve, truth
from marl.oracle.states import Columns, columns, find, merge
from marl.rollout import rollout

ROBOT = WalkingRobot(2, 5, 2, 3, n_decisive=2, n_cues=3, stagger=1, temptation=0.3)


class Tenths(Remembering):
    """Pays tenths, whose sums depend in the last bits on their order; the return so far tells states apart."""

    def step(self, state: TinyState, action: Tensor, noise: Tensor) -> Step[TinyState]:
        outcome = super().step(state, action, noise)
        reward = outcome.reward * 0.4
        return outcome._replace(reward=reward, state=outcome.state._replace(paid=state.paid + reward))


# One of each.


@pytest.mark.parametrize("game", [FiniteTiny(2, 3), FiniteMasked(2, 3), ROBOT, ElFarol(3, 2)], ids=repr)
def test_every_state_of_a_play_is_there_once(game: Env[Any]) -> None:
    """Brute force: the live states that many random plays pass through are those listed, none twice."""
    noise, plan = brute.noise_of(game, 8000), brute.random_plan(game, 8000)
    world = reach(game)
    played = brute.record(game, noise, plan)
    for t, layer in enumerate(world.layers):

        def rows(state: Any) -> list[tuple[float, ...]]:
            whole, real = columns(game, state)
            return [tuple(row) for row in torch.cat((whole.double(), real), 1).tolist()]

        listed, met = rows(layer.state), set(rows(map_state(lambda x, t=t: x[t, played.alive[t]], played.state)))
        assert len(set(listed)) == len(listed)
        assert met == set(listed) if not isinstance(game, FiniteMasked) else met >= set(listed)


def test_what_flows_on_sums_to_one() -> None:
    """Each legal (state, joint action) leads on with a probability of at most 1, of exactly 1 where nothing ends."""
    for game, lasting in (
        (FiniteTiny(3, 3, ends=0.3), False),
        (FiniteTiny(2, 3, ends=0.0), True),
        (FiniteMasked(), False),
    ):
        world = reach(game)
        assert float(world.start.sum()) == pytest.approx(1, abs=1e-12)
        for layer in world.layers[:-1]:
            total = layer.ahead(torch.ones(int(layer.next.max()) + 1, dtype=torch.float64))
            assert bool((total <= 1 + 1e-12).all()) and not total[~layer.legal].any()
            assert not lasting or (total - 1).abs().max() < 1e-12
        alive = [float(x.sum()) for x in solve(game, None, world=world).occupancy]
        assert alive[0] == pytest.approx(1) and alive == sorted(alive, reverse=True)
        tau = rollout(game, None, 4000, dtype=torch.float64)
        assert alive == pytest.approx(tau.alive.double().mean(1).tolist(), abs=0.04)


def test_rounding_makes_no_new_states() -> None:
    """.1 + .2 and .3 are one number, .3 and .30001 two; a game that pays tenths has few states, in either precision."""
    real = torch.tensor([0.1 + 0.2, 0.3, 0.30001, 1e9, 1e9 * (1 + 1e-12), -0.0, 0.0], dtype=torch.float64)[:, None]
    first, code = merge(Columns(torch.zeros(7, 0, dtype=torch.int64), real))
    assert code.tolist() == [1, 1, 2, 3, 3, 0, 0] and first.tolist() == [5, 0, 2, 3]
    game = Tenths(2, 4, ends=0.0, seed=2)
    world = reach(game)
    for t, layer in enumerate(world.layers):
        tenths = (layer.state.paid * 10).round()
        assert (layer.state.paid * 10 - tenths).abs().max() < 1e-9
        pairs = torch.stack((layer.state.place, tenths.long()), 1)
        assert len(pairs.unique(dim=0)) == len(pairs), t
    double = rollout(game, None, 200, dtype=torch.float64)
    single = rollout(game, None, 200)
    assert not torch.equal(single.state.paid.double(), double.state.paid)
    assert torch.equal(world.places(single), world.places(double))
    one, two = (truth(game, None, tau, "O5").values for tau in (single, double))
    assert one.dtype == torch.float32 and (one - two).abs().max() < 1e-6


def test_codes_are_exact_however_wide_the_numbers() -> None:
    """Rows of huge whole numbers, more than one int64 can hold, are told apart as a plain comparison does."""
    g = torch.Generator().manual_seed(0)
    whole = torch.randint(-3, 3, (500, 12), generator=g) * (1 << 58)
    whole[250:] = whole[:250]
    first, code = merge(Columns(whole, torch.zeros(500, 0, dtype=torch.float64)))
    assert torch.equal(code[250:], code[:250]) and len(first) == len({tuple(row) for row in whole.tolist()})
    assert torch.equal(whole[first[code]], whole)


def test_find() -> None:
    """A near number is found, a far one is not, and one between two known ones is in doubt."""
    real = torch.tensor([[0.0], [0.5], [0.5], [0.50004]], dtype=torch.float64)
    known = Columns(torch.tensor([[1], [1], [2], [2]]), real)
    wanted = [(2, 0.499999), (1, 0.0), (1, 0.2), (2, 0.0), (2, 0.500039), (2, 0.50002)]
    asked = Columns(*(torch.tensor(x)[:, None] for x in zip(*wanted, strict=True)))
    place, clear = find(known, asked._replace(real=asked.real.double()), 1e-4)
    assert place[:5].tolist() == [2, 0, -1, -1, 3] and clear.tolist() == [True] * 5 + [False]


# A record in the layers.


def test_strange_records_are_refused() -> None:
    """Of another game, of a state that nobody reaches, and of two states that float32 does not tell apart."""
    tau = rollout(ROBOT, None, 5)
    other = WalkingRobot(2, 5, 2, 3, n_decisive=1, n_cues=3, stagger=1, temptation=0.3)
    with pytest.raises(ValueError, match="cannot reach"):
        truth(other, None, tau)
    beyond = tau._replace(state=tau.state._replace(fuse=tau.state.fuse + 9))
    with pytest.raises(ValueError, match=r"episode 0 is at step 0 in a state that WalkingRobot\(.*cannot reach"):
        truth(ROBOT, None, beyond)

    class Fine(Remembering):
        """Pays so little that float32 cannot tell."""

        def step(self, state: TinyState, action: Tensor, noise: Tensor) -> Step[TinyState]:
            outcome = super().step(state, action, noise)
            return outcome._replace(state=outcome.state._replace(paid=1 + (state.paid + outcome.reward) * 1e-7))

    game = Fine(2, 2, ends=0.0)
    with pytest.raises(ValueError, match=r"torch.float32 does not tell from another; roll out in float64"):
        truth(game, None, rollout(game, None, 30))
    truth(game, None, rollout(game, None, 30, dtype=torch.float64))


# Bounded work.


class Counted(FiniteTiny):
    """Counts the rows it steps."""

    rows: ClassVar[list[int]] = []

    def step(self, state: TinyState, action: Tensor, noise: Tensor) -> Step[TinyState]:
        self.rows.append(len(action))
        return super().step(state, action, noise)


def test_cost_is_counted_and_predicted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulator steps = sum over layers of legal (state, joint action) pairs x cases of luck, in chunks as asked."""
    game = Counted(2, 3, 3)
    Counted.rows.clear()
    world = reach(game)
    assert world.cost == sum(Counted.rows) == sum(int(layer.legal.sum()) * 2 for layer in world.layers)
    assert len(Counted.rows) == len(world.layers)
    monkeypatch.setattr(layers, "CHUNK", 8)
    Counted.rows.clear()
    pieces = reach(game)
    assert max(Counted.rows) == 8 and sum(Counted.rows) == world.cost == pieces.cost
    assert expected_return(game, None, world=pieces) == pytest.approx(
        float(expected_return(game, None, world=world)), abs=1e-12
    )


@pytest.mark.parametrize("game", [ROBOT, FiniteMasked(2, 3), Tenths(2, 3)], ids=repr)
def test_chunks_change_nothing(game: Env[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A world found in many small pieces has the same states and the same values."""
    whole = solve(game, None)
    monkeypatch.setattr(layers, "CHUNK", 32)
    parts = solve(game, None)
    assert parts.cost == whole.cost and len(parts.world.layers) == len(whole.world.layers)
    for t, (a, b) in enumerate(zip(whole.world.layers, parts.world.layers, strict=True)):
        place, _ = find(columns(game, a.state), columns(game, b.state), 1e-9)
        assert sorted(place.tolist()) == list(range(len(a.legal)))
        assert (whole.q[t][place] - parts.q[t]).abs().max() < 1e-12


def test_memory_is_a_bound() -> None:
    """Less memory means smaller chunks, until it is too little; what was needed and allowed is said."""
    game = WalkingRobot(3, 6, 2, 3, n_cues=4)
    assert float(solve(game, None, memory=1 << 25).value) == pytest.approx(game.random_return, abs=1e-12)
    largest = []
    for memory in (1 << 17, 1 << 30):
        Counted.rows.clear()
        reach(Counted(3, 3, 3), memory=memory)
        largest.append(max(Counted.rows))
    assert largest[0] < largest[1]
    with pytest.raises(TooLarge, match=r"WalkingRobot is too large .* step \d has .* MiB are allowed") as refused:
        reach(game, memory=1 << 16)
    assert "\n" not in str(refused.value)


class Endless(TinyMdp):
    """Its luck is not listed."""


@pytest.mark.parametrize(
    ("game", "words"),
    [
        (
            ElFarol(60),
            r"8\^60 = about 10\^54 joint actions, which takes about 10\^51 MiB of memory or more where 1,024",
        ),
        (ElFarol(1000), r"8\^1000 = about 10\^903 joint actions"),
        (
            WalkingRobot(),
            "step 0 has 84,564 states x 729 joint actions x 729 cases of luck, which takes 2,8.. MiB of memory",
        ),
        (WalkingRobot(3, 8, 3, 4), "which takes .* simulator steps or more where 1,048,576 are allowed"),
        (WalkingRobot(wobble=0.5), "WalkingRobot cannot be listed state by state: wobble=0.5 is a real number"),
        (WalkingRobot(24), "walking_robot can begin in .* ways"),
        (Spread(), "reads 12 random numbers a reset and 0 a step, and declares no finite list .* ask a sampled oracle"),
        (Endless(), "reads 1 random numbers a reset and 1 a step"),
    ],
    ids=lambda x: repr(x) if isinstance(x, Env) else "",
)
def test_what_is_too_large_says_so(game: Env[Any], words: str) -> None:
    """One sentence, quickly: what is too large, its size, what is allowed, what to do instead."""
    with pytest.raises(TooLarge, match=words) as refused:
        reach(game, steps=1 << 20)
    assert "\n" not in str(refused.value) and "sampled oracle" in str(refused.value)


def test_too_many_cases_of_luck_are_refused() -> None:
    """A list that no memory holds is not begun."""
    assert len(atoms(*[[0.5]] * 10).noise) == 1024
    with pytest.raises(ValueError, match=r"1,073,741,824 cases of 30 numbers"):
        atoms(*[[0.5]] * 30)
    with pytest.raises(ValueError, match=r"about 10\^47 cases"):
        atoms(*[[0.25, 0.5]] * 100)


def test_the_luck_of_a_robot_is_listed_whole() -> None:
    """Every schedule, set of decoys and first cues: as many as there are, all equally likely, none twice."""
    game = WalkingRobot(2, 5, 1, 2, n_decisive=2, n_cues=3, decoys=1)
    noise, probability = game.reset_atoms()
    state = game.reset(noise)
    seen = {tuple(row) for row in torch.cat((state.danger, state.decoy), 1).tolist()}
    schedules = {(i, 2 + j, unit) for i, j, unit in product(range(2), range(2), range(4)) if unit not in (i, 2 + j)}
    assert seen == schedules and len(noise) == len(schedules) * 2**2
    assert torch.equal(probability, torch.full_like(probability, 1 / len(noise)))
    assert len(game.step_atoms().noise) == 4
