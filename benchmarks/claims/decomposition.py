"""Value decomposition on the two-step game: what VDN cannot say of two actions, and QMIX can."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from benchmarks.claims.base import Entry, Found, Number, near, trained
from envs.base import Env
from marl.experiment import Method, final_measure
from marl.learn.q_learning import QLearning, QTraining, values

RASHID = "Rashid et al. 2018, QMIX, table 2"


@dataclass(frozen=True)
class TwoStep:
    """Greedy return and Q_tot of a value decomposition on the two-step game, learned from uniformly random play."""

    exact: ClassVar[bool] = False
    mixer: str
    updates: int = 300
    gamma: float = 0.99

    def __call__(self, game: Env[Any], seeds: Sequence[int]) -> Found:
        how = QLearning(mixer=self.mixer, gamma=self.gamma, start=1.0, end=1.0)
        experiment, last = trained(game, Method((), "spatial", how), seeds, self.updates)
        table = q_total(last.training, game).numpy().astype(np.float64)
        first, b = table[:, 0].mean(2), table[:, 2]  # agent 1's first action does nothing
        found = {"greedy_return": np.asarray(final_measure(experiment, last.actor)["final_return"], dtype=np.float64)}
        found |= {f"first_{a}": first[:, k] for k, a in enumerate("AB")}
        return found | {f"state_2B_{i}{j}": b[:, i, j] for i in range(2) for j in range(2)}


def q_total(training: Any, game: Env[Any]) -> Tensor:
    """[S, 3, A, A] Q_tot of two agents' actions in the first step, in state 2A and in 2B, of the two-step game."""
    assert isinstance(training, QTraining) and training.mixer is not None
    A, S = game.n_actions, len(training.seeds)
    action = torch.cartesian_prod(torch.arange(A), torch.arange(A)).repeat(3 * S, 1)
    view = torch.eye(3).repeat_interleave(A * A, 0).repeat(S, 1)
    with torch.no_grad():
        q = values(training.net, view[:, None].expand(-1, game.n_agents, -1))
        taken = q.gather(-1, action[..., None])[..., 0]
        return training.mixer(taken, q.amax(-1), view, action).reshape(S, 3, A, A)


def two_step(mixer: str, numbers: tuple[Number, ...]) -> Entry:
    """VDN or QMIX on the two-step game."""
    claim = f"{mixer.upper()} on the two-step game, gamma .99"
    return Entry(claim, RASHID, "matrix_game", {"payoff": "two_step"}, TwoStep(mixer), numbers)


ENTRIES: dict[str, Entry] = {
    "two-step-vdn": two_step(
        "vdn",
        (
            near("greedy_return", 7, 0.05),
            near("state_2B_00", -1.87, 0.5),
            near("state_2B_01", 2.31, 0.5),
            near("state_2B_10", 2.33, 0.5),
            near("state_2B_11", 6.51, 0.5),
        ),
    ),
    "two-step-qmix": two_step(
        "qmix", (near("greedy_return", 8, 0.05), near("first_A", 6.93, 0.1), near("first_B", 7.92, 0.1))
    ),
}
