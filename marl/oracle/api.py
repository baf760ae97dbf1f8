"""One call for every oracle: which agent's which action did it, as far as anyone can know?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from envs.base import Env, HasSafeAction, HasUnitShapley, default_actions
from marl.oracle.closed import unit_difference
from marl.oracle.sampled import agent_total, frozen_unit, unit_effect
from marl.rollout import Simulator, uniform_policy
from marl.types import Policy, Trajectory, Truth

Ask = Callable[[Simulator, Policy, Trajectory, Tensor], Tensor]


def _shapley(simulator: Simulator, policy: Policy, trajectory: Trajectory, baseline: Tensor) -> Tensor:
    if not isinstance(simulator.game, HasUnitShapley):
        raise ValueError(f"{type(simulator.game).__name__} knows no closed form of the Shapley value over units")
    return simulator.game.unit_shapley(trajectory, baseline)  # units after an early end share the blame too


KINDS: dict[str, tuple[str, Ask]] = {
    "O6": (
        "O6 unit effect: G_t minus its mean over a_it ~ pi_i, same noise, everyone reacting (inverse CDF)",
        lambda s, p, t, c: unit_effect(s, p, t),
    ),
    "O7": (
        "O7 agent total: G minus G with the agent on its baseline throughout, the others frozen",
        lambda s, p, t, c: agent_total(s, t, c),
    ),
    "O8": (
        "O8 frozen unit: G_t minus G_t with a_it on its baseline, all other actions frozen",
        lambda s, p, t, c: unit_difference(s, t, c),
    ),
    "O8 simulated": (
        "O8 frozen unit, by replays",
        lambda s, p, t, c: frozen_unit(s, t, c),
    ),
    "O8 Shapley": ("Shapley value over all (agent, step) units, absent ones on the baseline, closed form", _shapley),
}


def baseline_of(game: Env[Any], baseline: str | Sequence[int], device: torch.device | str = "cpu") -> Tensor:
    """[N]: "default", "safe" (privileged), or the actions themselves. Raises ValueError for anything else."""
    if baseline == "default":
        return default_actions(game, device)
    if baseline == "safe" and isinstance(game, HasSafeAction):
        return torch.tensor(game.safe_action, device=device)
    if isinstance(baseline, str) or len(baseline) != game.n_agents:
        safe = ", 'safe'" if isinstance(game, HasSafeAction) else ""
        raise ValueError(f"baseline={baseline!r} is not allowed; it must be 'default'{safe} or {game.n_agents} actions")
    return torch.tensor(list(baseline), device=device)


def natural_baseline(game: Env[Any]) -> str:
    """The baseline that the truth is told against: the safe actions where a game knows them, else the default."""
    return "safe" if isinstance(game, HasSafeAction) else "default"


def oracle(
    game: Env[Any],
    policy: Policy | None,
    trajectory: Trajectory,
    kind: str = "O8",
    baseline: str | Sequence[int] | None = None,
) -> Truth:
    """True credit of every (agent, step) of recorded episodes.

    Args:
        policy: who reacts in O6 (None: uniformly random).
        kind: one of KINDS.
        baseline: what "instead" means in O7 and O8: "default", "safe", or N actions (None: `natural_baseline`).
    Returns: Truth(values [T,B,N], error, cost in simulator steps, definition).
    Raises: ValueError, one sentence, for an unknown kind or baseline, or a closed form that the game does not know.
    """
    if kind not in KINDS:
        raise ValueError(f"there is no oracle {kind!r}; the oracles are: {', '.join(KINDS)}")
    named = natural_baseline(game) if baseline is None else baseline
    definition, ask = KINDS[kind]
    simulator = Simulator(game)
    instead = baseline_of(game, named, trajectory.action.device)
    values = ask(simulator, policy or uniform_policy(game.n_actions), trajectory, instead)
    return Truth(values, torch.zeros_like(values), int(simulator.steps.sum()), f"{definition}; baseline {named}")
