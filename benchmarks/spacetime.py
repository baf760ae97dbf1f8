"""Do spatial and temporal credit compose? Every "who" with every "when" that its types allow, on three games.

WHO says how the team's reward is split over agents, WHEN what an action is told of the rewards that follow it. A
composition is named "who x when" and is built by one rule:

    estimators (immediate, recency, return, GAE, COCOA)   who, then estimate
    redistributions (IRCR, RUDDER, potential V), where who
        subtracts counterfactuals from the reward         who, redistribute each agent's stream, then the return
        is the team or a learned model                    redistribute, then who, then the return
        is a critic of the team's return                  redistribute, then the critic: its own estimate of the rest

What the rule builds may still not fit: a critic gives ADVANTAGE, and no estimator can follow. Such cells are in
FORBIDDEN, with the sentence in which the type system refuses them. Beside the grid stand YARDSTICKS: methods that ask
which agent's which action in one piece, and the truth.

The games are sized for minutes: small teams, delays of up to half of the episode, and about as many updates as part the
methods. On assembly_line station i is paid 4 (3 - i) steps later, so only the last one is paid at once.
"""

from __future__ import annotations

import sys
from functools import partial
from typing import Any, NamedTuple

from benchmarks.cli import Question, main
from marl.credit.base import ChainError, Operator, Signal, operator_class
from marl.credit.spatial.aristocrat import Aristocrat
from marl.credit.spatial.decomposition import Decomposition
from marl.credit.spatial.difference import Difference
from marl.credit.spatial.learned_reward import LearnedDifference
from marl.credit.spatial.potential import CounterfactualPotential
from marl.credit.spatial.shapley import Shapley
from marl.credit.spatial.team import Team
from marl.credit.temporal.cocoa import Cocoa
from marl.credit.temporal.gae import Gae
from marl.credit.temporal.immediate import Immediate
from marl.credit.temporal.ircr import Ircr
from marl.credit.temporal.monte_carlo import MonteCarlo
from marl.credit.temporal.potential import PotentialShaping
from marl.credit.temporal.rudder import Rudder
from marl.experiment import Method


class When(NamedTuple):
    """What becomes of a reward in time: first redistributed (None: left where it is), then summed by an estimator."""

    redistribution: Operator | None
    estimator: Operator


WHO: dict[str, Operator] = {
    "team": Team,
    "CaP": CounterfactualPotential,
    "difference": Difference,
    "aristocrat": Aristocrat,
    "Shapley": Shapley,
    "learned aristocrat": LearnedDifference,
    "VDN critic": partial(Decomposition, mixer="vdn"),
}
WHEN: dict[str, When] = {
    "immediate": When(None, Immediate),
    "recency": When(None, partial(MonteCarlo, discount=0.9)),
    "GAE": When(None, Gae),
    "return": When(None, MonteCarlo),
    "COCOA": When(None, Cocoa),
    "IRCR": When(Ircr, MonteCarlo),
    "RUDDER": When(Rudder, MonteCarlo),
    "potential V": When(PotentialShaping, MonteCarlo),
}
YARDSTICKS = (
    "STAS + return",
    "TAR2 + return",
    "agent COCOA",
    "agent total",
    "first step aristocrat",
    "aristocrat on Q",
    "light cone",
    "reference O8",
)


def chain(who: Operator, when: When) -> tuple[Operator, ...]:
    """The operators of a composition, in the order that the rule above gives; they need not fit."""
    takes = operator_class(who).signals
    if when.redistribution is None:
        return who, when.estimator
    if Signal.TEAM not in takes:  # a simulator's counterfactual is subtracted from the environment's own reward only
        return who, when.redistribution, when.estimator
    if takes[Signal.TEAM] is Signal.AGENT:
        return when.redistribution, who, when.estimator
    return when.redistribution, who


def compose() -> tuple[dict[str, Method], dict[str, str]]:
    """Every composition that fits, by name; and of every other the sentence that refuses it."""
    fits: dict[str, Method] = {}
    refused: dict[str, str] = {}
    for who, spatial in WHO.items():
        for when, temporal in WHEN.items():
            family = "spatial" if spatial is not Team else "temporal"
            name = f"{who} x {when}"
            try:
                fits[name] = Method(chain(spatial, temporal), family)
            except ChainError as error:
                refused[name] = str(error)
    return fits, refused


COMPOSITIONS, FORBIDDEN = compose()
FEW_WHO = ("team", "difference", "learned aristocrat", "VDN critic")
FEW_WHEN = ("immediate", "GAE", "return", "potential V")
FEW = tuple(name for name in COMPOSITIONS if name in {f"{who} x {when}" for who in FEW_WHO for when in FEW_WHEN})


def settings(quick: bool) -> list[tuple[str, dict[str, Any]]]:
    """A sparse failure, many overlapping rewards, and an action that is only ever paid through the state."""
    return [
        ("credit/walking_robot-v0", {"n_agents": 4, "horizon": 40, "delay": 20, "window": 10}),
        ("credit/assembly_line-v0", {"n_agents": 4, "spacing": 4, "inspection": 0, "horizon": 32, "n_cues": 4}),
        ("credit/cleanup-v0", {"n_agents": 4, "horizon": 30}),
    ]


QUESTION = Question(
    "spacetime",
    "python -m benchmarks.spacetime",
    settings,
    (*COMPOSITIONS, *YARDSTICKS),
    seeds=(10, 3),
    episodes=(1920, 960),
    quick_methods=(*FEW, "light cone", "reference O8"),
    own=COMPOSITIONS,
    judges=10,
)

if __name__ == "__main__":
    sys.exit(main(QUESTION))
