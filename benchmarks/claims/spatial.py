"""Who did it: difference rewards, D++ and COMA against the team's reward, on equal budgets."""

from __future__ import annotations

from typing import Any

from benchmarks.claims.base import Below, Compared, Entry, Number, ahead
from benchmarks.claims.payoffs import WOLPERT

RAHMATTALABI = "Rahmattalabi, Agogino & Tumer 2016, D++"
FOERSTER = "Foerster et al. 2018, COMA"
TEAM, D, U, PLUS = "team + return", "difference + return", "aristocrat + return", "D++ + return"
FAR = 0.1  # of the way from random play to the best: what "by far" is taken to mean
CENTRAL = "team + central GAE"


def beats_team(game: str, knobs: dict[str, Any], updates: int, by: float) -> Entry:
    """Difference and aristocrat rewards against the team's, on equal budgets."""
    claim = f"{game}, {knobs['n_agents']} agents, {32 * updates} episodes: difference and aristocrat beat team"
    numbers = (ahead(D, TEAM, by), ahead(U, TEAM, by))
    return Entry(claim, WOLPERT, game, knobs, Compared(((D, TEAM), (U, TEAM)), updates), numbers)


def rovers(claim: str, n_points: int, size: int, updates: int) -> Entry:
    """D++ over D over team with 6 rovers, 4 of whom must watch a point together."""
    knobs = {"n_agents": 6, "coupling": 4, "n_points": n_points, "size": size, "horizon": 15}
    numbers = (ahead(PLUS, D, FAR), ahead(D, TEAM))
    return Entry(claim, RAHMATTALABI, "rover_grid", knobs, Compared(((PLUS, D), (D, TEAM)), updates), numbers)


def coma_one_shot(game: str, knobs: dict[str, Any], updates: int) -> Entry:
    """COMA against the team's reward where nothing is delayed."""
    claim = f"COMA beats team credit where nothing is delayed: T = 1, {knobs['n_agents']} agents, equal budgets"
    return Entry(claim, FOERSTER, game, knobs, Compared((("COMA", TEAM),), updates), (ahead("COMA", TEAM),))


ENTRIES: dict[str, Entry] = {
    "bar-20": beats_team("el_farol", {"n_agents": 20, "capacity": 2.0}, 40, 0.0),
    "bar-200": beats_team("el_farol", {"n_agents": 200, "capacity": 20.0}, 75, FAR),
    "squeeze-20": beats_team("gaussian_squeeze", {"n_agents": 20}, 10, 0.0),
    "squeeze-200": beats_team("gaussian_squeeze", {"n_agents": 200}, 10, FAR),
    "rovers-one-point": rovers("tight coupling: one point that 4 of 6 rovers must watch at once", 1, 8, 75),
    "rovers-two-points": rovers("tight coupling, two points: waiting at an unpaid point pays D++ too", 2, 6, 75),
    "rovers-on-episodes": Entry(
        "tight coupling on the default rover_grid: D++ of whole episodes (the paper's form) beats D of whole episodes "
        "and team",
        RAHMATTALABI,
        "rover_grid",
        {},
        Compared((("D++ on episodes", "agent total"), ("D++ on episodes", TEAM)), 100),
        (ahead("D++ on episodes", "agent total"), ahead("D++ on episodes", TEAM)),
    ),
    "coma-bar-40": coma_one_shot("el_farol", {"n_agents": 40, "capacity": 4.0}, 50),
    "coma-squeeze-40": coma_one_shot("gaussian_squeeze", {"n_agents": 40}, 50),
    "coma-squeeze-10": coma_one_shot("gaussian_squeeze", {"n_agents": 10}, 25),
    "coma-no-delay": Entry(
        "COMA beats team credit, with a central critic (the paper's central-V) and without one, at delay 0",
        FOERSTER,
        "walking_robot",
        {"n_agents": 3, "delay": 0, "horizon": 40, "window": 8},
        Compared((("COMA", CENTRAL), ("COMA", TEAM)), 40),
        (ahead("COMA", CENTRAL), ahead("COMA", TEAM)),
    ),
    "coma-long-delay": Entry(
        "COMA with lambda .8 cannot see 24 steps ahead (.8^24 = .005): it must fail there, and team credit not",
        "follows from TD(lambda)",
        "walking_robot",
        {"n_agents": 3, "delay": 24, "horizon": 40, "window": 8},
        Compared(((TEAM, "COMA"),), 40),
        (Number("COMA", "no learning", Below(0.2)), ahead(TEAM, "COMA", FAR)),
    ),
}
