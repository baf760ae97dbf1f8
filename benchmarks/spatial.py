"""What does team size cost? Score and credit quality of every spatial method against N, on equal numbers of episodes.

Each sweep keeps all but the team fixed in some sense, so that a falling line is the price of N:

    el_farol          capacity N/10: as N grows, the nights hold the same share of the agents
    gaussian_squeeze  target 3 N, width N (the game's own default): the same effort an agent, the same relative width
    quorum            k = N/2 at cost .5: the same share must contribute; the chance to be pivotal falls as 1/sqrt(N)
    rover_grid        one point that N/2 rovers must watch together, in T = 15 steps: one group is enough for any N

Some methods cost more than others as N grows. Beyond the N in CAPS they are left out of the sweep, not of the game:
`--methods` runs them at any N.
"""

from __future__ import annotations

import sys
from typing import Any

from benchmarks.cli import Question, main
from benchmarks.methods import METHODS

OTHERS = ("team + return", "team + GAE", "agent total", "D++ on episodes")  # yardsticks beside the spatial family
ASKED = OTHERS[:2] + tuple(name for name, method in METHODS.items() if method.family == "spatial") + OTHERS[2:]
QUICK = (
    "team + return",
    "difference + return",
    "aristocrat + return",
    "D++ + return",
    "Shapley + return",
    "COMA",
    "IQL on difference",
    "QMIX",
)

COMA, CRITIC, ORDERS, CLONES = (
    "asks its critic about N A actions, and reads all N actions for each: N^2",
    "reads N A numbers and is asked about N A actions: N^2 A^2",
    "16 orders of N + 1 coalitions of N actions: N^2",
    "up to N copies of each of N agents, N actions each: N^3 at worst",
)
CAPS: dict[str, tuple[int, str]] = {
    "COMA": (60, COMA),
    "COMA lambda 1": (20, COMA),
    "D++ + return": (60, CLONES),
    "D++ on episodes": (60, CLONES),
    "IPPO on own reward": (60, "sixteen passes over minibatches of N agents, two networks"),
    "Shapley + return": (60, ORDERS),
    "policy Shapley + return": (60, ORDERS),
    "Shapley of Q": (20, CRITIC),
    "QMIX credit": (20, CRITIC),
    "QPLEX credit": (20, CRITIC),
    "VDN credit": (60, CRITIC),
}
"""Method -> the largest N of the default sweep, and what grows."""


def settings(quick: bool) -> list[tuple[str, dict[str, Any]]]:
    """Every game's sweep over N."""
    sizes, rovers = ((8, 24), (2, 4)) if quick else ((10, 20, 60, 200), (2, 4, 6, 8))
    out: list[tuple[str, dict[str, Any]]] = []
    for n in sizes:
        out.append(("credit/el_farol-v0", {"n_agents": n, "capacity": n / 10}))
        out.append(("credit/gaussian_squeeze-v0", {"n_agents": n}))
        out.append(("credit/quorum-v0", {"n_agents": n, "quorum": n // 2}))
    grid = {"n_points": 1, "horizon": 15}
    return out + [("credit/rover_grid-v0", {"n_agents": n, "coupling": n // 2, **grid}) for n in rovers]


def too_much(game: str, knobs: dict[str, Any], method: str) -> str:
    """Why a method is left out of this setting, "" where it is not."""
    most, why = CAPS.get(method, (knobs["n_agents"], ""))
    return f"N = {knobs['n_agents']} is beyond {most}: {why}" if knobs["n_agents"] > most else ""


QUESTION = Question(
    "spatial",
    "python -m benchmarks.spatial",
    settings,
    ASKED,
    seeds=(10, 3),
    episodes=(3200, 800),
    quick_methods=QUICK,
    too_much=too_much,
)

if __name__ == "__main__":
    sys.exit(main(QUESTION))
