"""Payoff tables and the bar: exact numbers of the games, and what independent learners make of a steep optimum."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from benchmarks.claims.base import Above, Below, Entry, Found, Number, final, near
from envs.base import Env
from envs.el_farol import ElFarol, best_attendance
from envs.matrix_game import MatrixGame

CLAUS = "Claus & Boutilier 1998"
WOLPERT = "Wolpert & Tumer 2001; HolmesParker et al. 2014"


@dataclass(frozen=True)
class Payoffs:
    """Exact numbers of a payoff table: what each action of agent 0 pays under a uniform partner."""

    exact: ClassVar[bool] = True

    def __call__(self, game: Env[Any], seeds: Sequence[int]) -> Found:
        assert isinstance(game, MatrixGame)
        means = np.asarray(game.payoffs[0], dtype=np.float64).mean(1)
        return {f"row_{k}": np.array([mean]) for k, mean in enumerate(means)}


@dataclass(frozen=True)
class BestWeek:
    """Exact best returns of the bar problem, by dynamic programming over nights."""

    exact: ClassVar[bool] = True

    def __call__(self, game: Env[Any], seeds: Sequence[int]) -> Found:
        assert isinstance(game, ElFarol)
        attend = best_attendance(game.n_agents, game.n_nights, game.capacity)[-1]
        return {"all_attend": np.array([attend]), "home_allowed": np.array([game.optimal_return])}


@dataclass(frozen=True)
class FindsOptimum:
    """1 for a seed whose greedy play after training is the best there is, else 0; `share` of seeds in the table."""

    exact: ClassVar[bool] = False
    method: str
    updates: int = 200

    def __call__(self, game: Env[Any], seeds: Sequence[int]) -> Found:
        score = final(game, self.method, seeds, self.updates, greedy=True)
        return {"share": (score > 1 - 1e-6).astype(np.float64)}


ENTRIES: dict[str, Entry] = {
    "climbing-rows": Entry(
        "climbing: what each action is worth beside a uniform partner",
        CLAUS,
        "matrix_game",
        {"payoff": "climbing"},
        Payoffs(),
        (
            near("row_0", -19 / 3, 1e-6, "-6.33"),
            near("row_1", -17 / 3, 1e-6, "-5.67"),
            near("row_2", 5 / 3, 1e-6, "1.67"),
        ),
    ),
    "climbing": Entry(
        "climbing: independent learners over-generalise, few find the optimum",
        CLAUS,
        "matrix_game",
        {"payoff": "climbing"},
        FindsOptimum("IQL"),
        (Number("share", "rarely", Below(0.5)),),
    ),
    "penalty": Entry(
        "penalty -100: independent learners settle on the safe action",
        CLAUS,
        "matrix_game",
        {"payoff": "penalty", "penalty": -100.0},
        FindsOptimum("IQL"),
        (Number("share", "rarely", Below(0.5)),),
    ),
    "no-penalty": Entry(
        "penalty 0: the same learners find an optimum",
        CLAUS,
        "matrix_game",
        {"payoff": "penalty", "penalty": 0.0},
        FindsOptimum("IQL"),
        (Number("share", "nearly always", Above(0.5)),),
    ),
    "bar-attendance": Entry(
        "el_farol, 168 agents, c = 6: the best week if all must attend, and if home is allowed",
        WOLPERT,
        "el_farol",
        {"n_agents": 168},
        BestWeek(),
        (near("all_attend", 13.2437, 1e-4), near("home_allowed", 15.4509, 1e-4)),
    ),
}
