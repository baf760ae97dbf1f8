"""Do the difficulty knobs do what they say? Random play and one simple learner along each knob of each game."""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

import envs
from benchmarks.cli import Question, main


class Sweep(NamedTuple):
    """Each knob in turn takes its values while the others keep the base's; every list holds the base's value."""

    base: dict[str, Any]
    knobs: dict[str, tuple[Any, ...]]  # knob -> values, from easy to hard


# Sizes at which one learner with whole returns can get somewhere within the budget, so that a knob has room to hurt.
SWEEPS: dict[str, Sweep] = {
    "matrix_game": Sweep({"payoff": "penalty", "penalty": -30.0}, {"penalty": (0.0, -10.0, -30.0, -100.0)}),
    "gaussian_squeeze": Sweep(
        {"n_agents": 10, "sigma": 10.0}, {"n_agents": (5, 10, 40, 160), "sigma": (20.0, 10.0, 4.0, 2.0)}
    ),
    "el_farol": Sweep(
        {"n_agents": 60, "capacity": 6.0}, {"n_agents": (20, 60, 120, 240), "capacity": (12.0, 6.0, 3.0)}
    ),
    "quorum": Sweep(
        {"n_agents": 8, "quorum": 4, "cost": 0.5},
        {"n_agents": (4, 8, 16, 32), "quorum": (2, 4, 6, 8), "cost": (0.1, 0.5, 0.9)},
    ),
    "key_door": Sweep(
        {"n_agents": 2, "keys_needed": 1, "horizon": 23, "apple_probability": 0.8, "treasure": 0.2},
        {
            "n_agents": (1, 2, 4, 8),
            "keys_needed": (1, 2),
            "horizon": (13, 23, 53, 103),
            "apple_probability": (0.0, 0.4, 0.8),
            "treasure": (1.0, 0.2, 0.05),
        },
    ),
    "assembly_line": Sweep(
        {"n_agents": 4, "spacing": 3, "inspection": 5, "horizon": 40, "n_cues": 3, "mode": "sum"},
        {
            "n_agents": (2, 4, 8),
            "spacing": (1, 3, 6),
            "inspection": (1, 5, 20),
            "n_cues": (2, 3, 6),
            "mode": ("sum", "and"),
        },
    ),
    "walking_robot": Sweep(
        {
            "n_agents": 6,
            "horizon": 60,
            "window": 12,
            "delay": 24,
            "n_decisive": 1,
            "joints_per_moment": 1,
            "decoys": 0,
            "n_actions": 3,
        },
        {
            "n_agents": (3, 6, 12, 24),
            "delay": (0, 24, 48),
            "n_decisive": (1, 2, 4),
            "joints_per_moment": (1, 2, 4),
            "decoys": (0, 12, 48),
            "n_actions": (2, 3, 6),
        },
    ),
    "rover_grid": Sweep(
        {"n_agents": 4, "size": 8, "n_points": 4, "coupling": 2, "radius": 1},
        {"n_agents": (8, 4, 2), "size": (6, 8, 12), "coupling": (1, 2, 3, 4), "radius": (2, 1)},
    ),
    "cleanup": Sweep(
        {"n_agents": 4, "waste": 8, "dirt_probability": 0.15, "growth": 0.6},
        {
            "n_agents": (2, 4, 8),
            "waste": (2, 8, 16),
            "dirt_probability": (0.0, 0.15, 0.4),
            "growth": (0.9, 0.6, 0.2),
        },
    ),
    "spread": Sweep({"n_agents": 3}, {"n_agents": (2, 3, 4, 6)}),
}


def settings(quick: bool) -> list[tuple[str, dict[str, Any]]]:
    """Every game's sweeps, the base once a game; quick: the ends of each list."""
    out: list[tuple[str, dict[str, Any]]] = []
    for name, sweep in SWEEPS.items():
        found = [sweep.base]
        for knob, values in sweep.knobs.items():
            kept = (values[0], values[-1]) if quick else values
            found += [sweep.base | {knob: value} for value in kept]
        out += [(envs.game_id(name), knobs) for k, knobs in enumerate(found) if knobs not in found[:k]]
    return out


QUESTION = Question(
    "difficulty",
    "python -m benchmarks.difficulty",
    settings,
    ("team + return",),
    seeds=(10, 3),
    episodes=(6400, 1600),
)

if __name__ == "__main__":
    sys.exit(main(QUESTION))
