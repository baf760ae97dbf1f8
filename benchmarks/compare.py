"""Which credit works where? Team size x delay on walking_robot, one method a panel: the project's main job."""

from __future__ import annotations

import sys
from typing import Any

from benchmarks.cli import Question, main

METHODS = (
    "team + return",
    "team + recency",
    "team + TD",
    "team + GAE",
    "team + central GAE",
    "difference + return",
    "aristocrat + return",
    "COMA",
    "agent total",
    "first step aristocrat",
    "reference O8",
)


def settings(quick: bool) -> list[tuple[str, dict[str, Any]]]:
    """walking_robot over N x D. The window is held fixed: a longer delay would otherwise also shrink the stakes."""
    horizon, window = (60, 12) if quick else (100, 20)
    sizes, delays = ((3, 12), (0, 24, 48)) if quick else ((3, 6, 12, 24), (0, 20, 40, 80))
    return [
        ("credit/walking_robot-v0", {"n_agents": n, "delay": d, "horizon": horizon, "window": window})
        for n in sizes
        for d in delays
    ]


# COMA's critic is fitted so much longer than the others' that it alone would double a run of minutes.
QUICK = tuple(name for name in METHODS if name != "COMA")

QUESTION = Question("compare", "python -m benchmarks.compare", settings, METHODS, quick_methods=QUICK)

if __name__ == "__main__":
    sys.exit(main(QUESTION))
