"""Does it hold on games that we did not write? Learning curves on mpe2's spread, level-based foraging and pursuit.

These games are stepped one episode at a time (about .6, .6 and 2 milliseconds a step), so budgets are small and so are
the games: curves show who is ahead early, not where learning ends. Difference rewards take snapshots of the game and
step it once more for every agent.

    mpe2.simple_spread_v3   3 agents cover 3 landmarks; local_ratio 0: one shared reward
    envs.lbforaging         2 agents load food that may need both; the reward is the sum of their parts
    sisl/pursuit-v5         4 pursuers on 8 x 8 cells surround 4 evaders, 40 steps; one shared reward
"""

from __future__ import annotations

import sys
from typing import Any

from benchmarks.cli import Question, main

METHODS = ("team + return", "team + GAE", "difference + return", "COMA", "IPPO", "MAPPO", "VDN", "QMIX")
QUICK = ("team + return", "difference + return", "IPPO")
PURSUIT = {"x_size": 8, "y_size": 8, "n_pursuers": 4, "n_evaders": 4, "max_cycles": 40, "shared_reward": True}


def settings(quick: bool) -> list[tuple[str, dict[str, Any]]]:
    """The three games; the quick run takes the two that are stepped fastest."""
    games: list[tuple[str, dict[str, Any]]] = [
        ("mpe2.simple_spread_v3", {"local_ratio": 0}),
        ("envs.lbforaging", {"team_reward": "sum"}),
        ("sisl/pursuit-v5", PURSUIT),
    ]
    return games[:2] if quick else games


QUESTION = Question(
    "external",
    "python -m benchmarks.external",
    settings,
    METHODS,
    steps=(50_000, 6_400),
    seeds=(10, 3),
    quick_methods=QUICK,
)

if __name__ == "__main__":
    sys.exit(main(QUESTION))
