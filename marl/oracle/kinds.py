"""What "which agent's which action did it?" can mean, definition by definition, and how each truth is had."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from envs.base import HasUnitDifferences, HasUnitShapley, MayRefuseBranches
from marl.oracle.closed import closed_difference, closed_shapley
from marl.oracle.exact import truth
from marl.oracle.induction import one_seed, solve
from marl.oracle.layers import STEPS, TooLarge, World, reach
from marl.oracle.remembered import Remembering
from marl.oracle.sampled import (
    Draw,
    Progress,
    advantage,
    agent_total,
    frozen_unit,
    given_all_actions,
    given_own_action,
    ledger,
    over_luck,
    reward_aristocrat,
    reward_difference,
    unit_effect,
)
from marl.oracle.shapley import EXACT
from marl.oracle.shares import reward_shapley, unit_shapley
from marl.policy import Actor
from marl.rollout import Simulator, remembers, some
from marl.types import Policy, Trajectory

PATIENCE = 1 << 22  # simulator steps, some seconds, after which "auto" samples rather than go on enumerating


class Question(NamedTuple):
    """All that an oracle is asked with."""

    kind: str
    simulator: Simulator
    policy: Policy
    trajectory: Trajectory
    baseline: Tensor  # [N] actions
    replays: int
    seed: int
    mixed: bool  # how="auto": an exact answer is welcome for part of a sampled one
    progress: Progress | None

    @property
    def outside(self) -> bool:
        """Is the game from outside, its luck its own?"""
        return isinstance(self.simulator.game, MayRefuseBranches)


class Answer(NamedTuple):
    """What an oracle found, and how."""

    values: Tensor  # [T,B,N]
    error: Tensor | None  # [T,B,N]; None: no error
    how: str  # in words


Ask = Callable[[Question], Answer]


@dataclass(frozen=True)
class Kind:
    """A definition of the truth, and the ways in which it can be had, best first."""

    words: str
    ways: Mapping[str, Ask]
    baseline: bool = False  # compares with an action that a baseline names
    reacts: bool = False  # asks what the policy would do
    fresh: bool = False  # a mean over luck that is drawn anew
    closed: type | None = None  # the capability that a closed form needs


# Given this episode's noise: replays leave nothing to chance, so that "exact" and "sampled" are the same replays.


def _replayed(find: Callable[[Question], Tensor]) -> dict[str, Ask]:
    def ask(q: Question) -> Answer:
        return Answer(find(q), None, "by replays with the recorded noise")

    return {"exact": ask, "sampled": ask}


def _difference_of_reward(q: Question) -> Tensor:
    return reward_difference(q.simulator, q.trajectory, q.baseline, q.progress)


def _aristocrat_of_reward(q: Question) -> Tensor:
    return reward_aristocrat(q.simulator, q.trajectory, q.progress)


def _unit_effect(q: Question) -> Tensor:
    return unit_effect(q.simulator, q.policy, q.trajectory, q.progress)


def _frozen_total(q: Question) -> Tensor:
    return agent_total(q.simulator, q.trajectory, q.baseline, None, q.progress)


def _reacting_total(q: Question) -> Tensor:
    return agent_total(q.simulator, q.trajectory, q.baseline, q.policy, q.progress)


def _frozen_unit(q: Question) -> Tensor:
    return frozen_unit(q.simulator, q.trajectory, q.baseline, q.progress)


def _closed(find: Callable[[Simulator, Trajectory, Tensor], Tensor]) -> dict[str, Ask]:
    return {"closed": lambda q: Answer(find(q.simulator, q.trajectory, q.baseline), None, "closed form")}


def _reward_shapley_exact(q: Question) -> Answer:
    if q.trajectory.action.shape[-1] > EXACT:
        raise TooLarge(f"{q.kind} asks about 2^N coalitions: exact to N = {EXACT}, sampled beyond")
    return Answer(*reward_shapley(q.simulator, q.trajectory, q.baseline, progress=q.progress))


def _reward_shapley_sampled(q: Question) -> Answer:
    return Answer(*reward_shapley(q.simulator, q.trajectory, q.baseline, q.replays, q.seed, q.progress))


def _unit_shapley_exact(q: Question) -> Answer:
    most = int((q.trajectory.action != q.baseline).flatten(2).sum((0, 2)).max())
    if most > EXACT:
        raise TooLarge(f"{q.kind} is exact to {EXACT} units off the baseline, and an episode has {most}; it is sampled")
    return Answer(*unit_shapley(q.simulator, q.trajectory, q.baseline, 0, progress=q.progress))


def _unit_shapley_sampled(q: Question) -> Answer:
    limit = EXACT if q.mixed else 0
    return Answer(*unit_shapley(q.simulator, q.trajectory, q.baseline, q.replays, q.seed, limit, q.progress))


# Means over luck.


def _enumerated(q: Question) -> Answer:
    """By enumeration, seed by seed; states are listed, and paid for, once, or once a seed where agents remember."""
    simulator, device = q.simulator, q.trajectory.action.device
    game, memory = simulator.game, simulator.memory
    world: World | None = None
    found = []
    for s, rows in enumerate(torch.arange(q.trajectory.action.shape[1], device=device).chunk(simulator.n_seeds)):
        policy, part = one_seed(q.policy, s) if isinstance(q.policy, Actor) else q.policy, some(q.trajectory, rows)
        if remembers(q.policy):
            own = Remembering(simulator.game, q.policy, s)
            game, policy, part, world = own, own.policy, own.recorded(part), None
        if world is None:
            world = reach(game, memory=memory, steps=PATIENCE if q.mixed else STEPS, device=device)
            simulator.steps = simulator.steps + world.cost * (torch.arange(simulator.n_seeds) == s)
        solution = solve(game, policy, memory=memory, world=world)
        found.append(truth(game, policy, part, q.kind, memory=memory, solution=solution).values)
    how = "exact by enumeration" + (", all coalitions" if q.kind == "O5" else "")
    return Answer(torch.cat(found, 1), None, how)


def _over_luck(draw: Callable[[Simulator, Policy], Draw], branches: Callable[[int, int], int], each: str = "") -> Ask:
    """Means over fresh luck; `branches` says how many a replay asks for at each step, from N and A."""

    def ask(q: Question) -> Answer:
        simulator, game = q.simulator, q.simulator.game
        width = branches(game.n_agents, game.n_actions)
        found = over_luck(
            simulator, q.policy, q.trajectory, draw(simulator, q.policy), width, q.replays, q.seed, q.progress
        )
        return Answer(*found, f"sampled, {q.replays} replays with fresh noise{each}")

    return ask


def _given_all_actions(q: Question) -> Answer:
    if q.outside:  # the game's luck after t cannot be drawn anew
        return Answer(_unit_effect(q), None, "one replay of each action, given the noise")
    return _over_luck(given_all_actions, lambda N, A: 1 + N * (A - 1))(q)


KINDS: dict[str, Kind] = {
    "O1 difference": Kind(
        "O1 difference: r_t minus r_t with a_it on its baseline, same state and noise",
        _replayed(_difference_of_reward),
        baseline=True,
    ),
    "O1 aristocrat": Kind(
        "O1 aristocrat: r_t minus its mean over a_it ~ pi_i, same state and noise", _replayed(_aristocrat_of_reward)
    ),
    "O1 Shapley": Kind(
        "O1 Shapley value of r_t over agents, absent ones on the baseline, same state and noise",
        {"exact": _reward_shapley_exact, "sampled": _reward_shapley_sampled},
        baseline=True,
    ),
    "O2": Kind(
        "O2 temporal: Q(s,a) - V(s), shared by agents",
        {"exact": _enumerated, "sampled": _over_luck(advantage, lambda N, A: 2)},
        reacts=True,
        fresh=True,
    ),
    "O3": Kind(
        "O3 space-time: mean of Q(s,a) over teammates' actions, minus V(s)",
        {"exact": _enumerated, "sampled": _over_luck(given_own_action, lambda N, A: 1 + N * (A - 1))},
        reacts=True,
        fresh=True,
    ),
    "O3 observed": Kind(
        "O3 observed: the mean of O3 given what the agent sees, E[O3 | o_i, a_i]",
        {"exact": _enumerated},
        reacts=True,
        fresh=True,
    ),
    "O4": Kind(
        "O4 given teammates' actions: Q(s,a) - sum_c pi_i(c) Q(s, a[i <- c])",
        {"exact": _enumerated, "sampled": _given_all_actions},
        reacts=True,
        fresh=True,
    ),
    "O5": Kind(
        "O5 ledger: Shapley value of Q(s,a) over agents, absent ones acting by pi",
        {
            "exact": _enumerated,
            "sampled": _over_luck(ledger, lambda N, A: N + 1, ", one order each"),
        },
        reacts=True,
        fresh=True,
    ),
    "O6": Kind(
        "O6 unit effect: G_t minus its mean over a_it ~ pi_i, same noise, everyone reacting (inverse CDF)",
        _replayed(_unit_effect),
        reacts=True,
    ),
    "O7": Kind(
        "O7 agent total: G minus G with the agent on its baseline throughout, the others frozen",
        _replayed(_frozen_total),
        baseline=True,
    ),
    "O7 reacting": Kind(
        "O7 agent total: G minus G with the agent on its baseline throughout, the others reacting (inverse CDF)",
        _replayed(_reacting_total),
        baseline=True,
        reacts=True,
    ),
    "O8": Kind(
        "O8 frozen unit: G_t minus G_t with a_it on its baseline, all other actions frozen",
        _closed(closed_difference) | _replayed(_frozen_unit),
        baseline=True,
        closed=HasUnitDifferences,
    ),
    "O8 simulated": Kind("O8 frozen unit", _replayed(_frozen_unit), baseline=True),
    "O8 Shapley": Kind(
        "O8 Shapley value over all (agent, step) units, absent ones on the baseline",
        _closed(closed_shapley) | {"exact": _unit_shapley_exact, "sampled": _unit_shapley_sampled},
        baseline=True,
        closed=HasUnitShapley,
    ),
}
