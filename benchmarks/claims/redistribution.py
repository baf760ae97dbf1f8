"""RUDDER on its delayed task: episodes until four brands of watches are decided rightly.

As published: the task (`watch_repair.py`), and RUDDER's redistributed reward used at once. The authors play one episode
at a time with a table of Q, step .1 and a tenth of random actions, and stop when 95% of the last 750 decisions were
right. Here all three methods are REINFORCE on batches of 32 with the default step of Adam (.01, the best for MC of
.001 to .01 on seeds 100-103), and stop when the chance of the right decision, mean over the last 750 episodes, is 90%.
"""

from __future__ import annotations

from benchmarks.claims.base import Above, Below, Entry, Number
from benchmarks.claims.decisions import LearningTime
from benchmarks.claims.variants import WATCH_MC, WATCH_RUDDER, WATCH_TD

ARJONA = "Arjona-Medina et al. 2019, RUDDER, demonstration program"
BUDGET, QUICK = 16_000, 5_000  # episodes of a seed; whoever is slower counts as this
FAR = 2.0  # times as many episodes: what "far" is taken to mean

ENTRIES: dict[str, Entry] = {
    "watch-repair": Entry(
        "watch repair: RUDDER needs far fewer episodes than MC and TD until 90% of its decisions are right",
        ARJONA,
        "benchmarks.claims.watch_repair:WatchRepair",
        {},
        LearningTime(WATCH_RUDDER, (WATCH_MC, WATCH_TD), BUDGET),
        (
            Number(WATCH_RUDDER, "1,900 .. 3,800 episodes", Below(3_800)),
            Number(f"{WATCH_MC} / {WATCH_RUDDER}", "more than 1", Above(1.0)),
            Number(f"{WATCH_MC} / {WATCH_RUDDER}", "27,700 .. 240,000 episodes: 7 and more", Above(FAR)),
            Number(f"{WATCH_TD} / {WATCH_RUDDER}", "71,800 episodes: 19 and more", Above(FAR)),
        ),
        quick=LearningTime(WATCH_RUDDER, (WATCH_MC, WATCH_TD), QUICK),
    ),
}
