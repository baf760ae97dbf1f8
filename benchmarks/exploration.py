"""Does the others' exploration drown an agent's credit? Q-learners that explore at fixed levels, hot to cold.

Exploration is held at one level: Boltzmann at a temperature in units of return, or epsilon-greedy. Beside it stands
each method as it is listed, whose epsilon falls from 1 to .05. Policies are judged greedily, so what differs is what
was learned, and how well each agent's Q tells its own actions apart: a broadcast reward is measured in the thermal
noise of N - 1 others.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

from benchmarks.cli import Question, main
from benchmarks.methods import METHODS
from marl.experiment import Method
from marl.learn.q_learning import QLearning

BASES = ("IQL", "IQL on difference", "VDN")
LEVELS = {"boltzmann": (0.003, 0.01, 0.03, 0.1, 0.3, 1.0), "epsilon": (0.02, 0.05, 0.1, 0.2, 0.4, 0.8)}
WORDS = {"boltzmann": "temperature", "epsilon": "epsilon"}


def at_level(base: str, kind: str, level: float) -> Method:
    """The method with its exploration held at one level throughout."""
    method = METHODS[base]
    assert isinstance(method.learner, QLearning)
    return replace(method, learner=replace(method.learner, exploration=kind, start=level, end=level))


OWN = {
    f"{base}, {WORDS[kind]} {level:g}": at_level(base, kind, level)
    for base in BASES
    for kind, levels in LEVELS.items()
    for level in levels
}


def settings(quick: bool) -> list[tuple[str, dict[str, Any]]]:
    """A delayed game and two crowded ones, small enough that a Q-learner gets somewhere within the budget."""
    games: list[tuple[str, dict[str, Any]]] = [
        ("credit/walking_robot-v0", {"n_agents": 3, "delay": 12, "horizon": 30, "window": 6}),
        ("credit/el_farol-v0", {"n_agents": 30, "capacity": 6.0}),
    ]
    return games if quick else [*games, ("credit/quorum-v0", {"n_agents": 8, "quorum": 4})]


# Every other level of the temperature, and no epsilon.
QUICK = (*BASES, *(f"{base}, temperature {level:g}" for base in BASES for level in LEVELS["boltzmann"][::2]))

QUESTION = Question(
    "exploration",
    "python -m benchmarks.exploration",
    settings,
    (*BASES, *OWN),
    episodes=(6400, 1600),
    seeds=(30, 5),
    quick_methods=QUICK,
    own=OWN,
)

if __name__ == "__main__":
    sys.exit(main(QUESTION))
