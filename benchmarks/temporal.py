"""What does delay cost? Score and culprit AUC of every temporal method against delay and length, for one agent.

One agent leaves no question of who. Each sweep moves one thing:

    walking_robot, delay     D at T = 100; the window, hence what a fall costs on average without delay, stays as it is
    walking_robot, horizon   T at D = 20: more that happens after the mistake and its fall
    key_door, horizon        T - 1 steps from the key to its pay, apples in between; the treasure grows as
                             sqrt(T - 2): it stays worth two standard deviations of the return from apples
"""

from __future__ import annotations

import sys
from math import sqrt
from typing import Any

from benchmarks.cli import Question, main
from benchmarks.methods import METHODS

BESIDE = ("team + return", "team + immediate")  # what waits for the end, and what never waits
LEFT_OUT = (
    "team + central GAE",
    "IPPO",
    "IPPO GRU",
    "MAPPO",
)  # one agent sees what a central critic sees; other learners
ASKED = (
    *BESIDE,
    *(name for name, m in METHODS.items() if m.family == "temporal" and name not in LEFT_OUT),
    "reference O8",
)
QUICK = ("team + return", "team + recency", "team + TD", "team + GAE", "IRCR + return", "reference O8")
APPLES = {"n_agents": 1, "apple_probability": 0.2}
LOUD = 2.0  # the treasure, in standard deviations of the return from apples
SPREAD = sqrt(0.2 * (0.1**2 + 0.9**2) / 2 - (0.2 * 0.5) ** 2)  # of what one step's apple is worth


def settings(quick: bool) -> list[tuple[str, dict[str, Any]]]:
    """The three sweeps."""
    delays, lengths, doors = [0, 10, 20, 40, 80], [40, 80], [10, 20, 40, 80]
    if quick:
        delays, lengths, doors = delays[::2], lengths, doors[::2]
    robot = {"n_agents": 1, "window": 20}
    out: list[tuple[str, dict[str, Any]]] = []
    out += [("credit/walking_robot-v0", {**robot, "horizon": 100, "delay": d}) for d in delays]
    out += [("credit/walking_robot-v0", {"n_agents": 1, "window": 10, "horizon": t, "delay": 20}) for t in lengths]
    out += [("credit/key_door-v0", {**APPLES, "horizon": t, "treasure": LOUD * SPREAD * sqrt(t - 2)}) for t in doors]
    return out


QUESTION = Question(
    "temporal",
    "python -m benchmarks.temporal",
    settings,
    ASKED,
    seeds=(10, 3),
    episodes=(1280, 640),
    quick_methods=QUICK,
    judges=5,
)

if __name__ == "__main__":
    sys.exit(main(QUESTION))
