"""RUDDER on its delayed task: episodes until four brands of watches are decided rightly.

As published: a table of Q with step .1, a tenth of random actions, one episode at a time (`tables.py`). And the same
task with this project's learners: REINFORCE on batches of 32 with the default step of Adam (.01, the best for MC of
.001 to .01 on seeds 100-103), until the chance of the right decision, mean over the last 750 episodes, is 90%.
"""

from __future__ import annotations

from benchmarks.claims.base import Above, Below, Entry, Number, near
from benchmarks.claims.decisions import LearningTime
from benchmarks.claims.tables import TableLearning
from benchmarks.claims.variants import WATCH_MC, WATCH_RUDDER, WATCH_TD

ARJONA = "Arjona-Medina et al. 2019, RUDDER, demonstration program"
WATCH = "benchmarks.claims.watch_repair:WatchRepair"
FAR = 2.0  # times as many episodes: what "far" is taken to mean
BUDGET, QUICK = 16_000, 5_000  # episodes of a seed in batches; whoever is slower counts as this

ENTRIES: dict[str, Entry] = {
    "watch-repair": Entry(
        "watch repair: RUDDER needs far fewer episodes than MC and TD until 95% of its decisions are right",
        ARJONA,
        WATCH,
        {},
        TableLearning((("RUDDER", 12_000), ("MC", 240_000), ("TD", 120_000))),
        (
            Number("RUDDER", "1,900 .. 3,800 episodes", Below(3_800)),
            near("TD", 71_850, 7_185, "71,800 .. 71,900 episodes"),
            Number("MC / RUDDER", "27,700 .. 240,000 episodes: 7 and more", Above(FAR)),
            Number("TD / RUDDER", "71,800 episodes: 19 and more", Above(FAR)),
        ),
        quick=TableLearning((("RUDDER", 6_000), ("MC", 30_000), ("TD", 90_000))),
    ),
    "watch-repair-batches": Entry(
        "watch repair: the same order with REINFORCE on batches of 32 episodes",
        ARJONA,
        WATCH,
        {},
        LearningTime(WATCH_RUDDER, (WATCH_MC, WATCH_TD), BUDGET),
        (
            Number(f"{WATCH_MC} / {WATCH_RUDDER}", "more than 1", Above(1.0)),
            Number(f"{WATCH_TD} / {WATCH_RUDDER}", "more than 1", Above(1.0)),
        ),
        quick=LearningTime(WATCH_RUDDER, (WATCH_MC, WATCH_TD), QUICK),
    ),
}
