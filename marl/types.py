"""The records that flow between rollouts, credit, learning and oracles, one line a field."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

from torch import Tensor

Policy: TypeAlias = Callable[[Tensor, Tensor | None], Tensor]
"""(obs [..., B, N, O], mask [..., B, N, A] or None) -> probabilities [..., B, N, A]; rows seed-major."""

Act: TypeAlias = Callable[[Tensor, Tensor | None, Tensor], tuple[Tensor, Tensor]]
"""(obs [B,N,O], mask [B,N,A] or None, u [B,N] in [0,1)) -> probabilities [B,N,A] and actions [B,N]; rows seed-major."""


class Noise(NamedTuple):
    """All that chance will decide in B episodes, drawn before they begin."""

    reset: Tensor  # [B, reset_noise_size]
    step: Tensor  # [T, B, step_noise_size]
    policy: Tensor  # [T, B, N] one uniform number an action, turned into it by inverse CDF


class Trajectory(NamedTuple):
    """Whole episodes, time first, with enough to replay them exactly. After an early end `alive` is False."""

    state: Any  # [T, B, ...] the state each step began in
    final: Any  # [B, ...] the state after the last step
    obs: Tensor  # [T, B, N, O]
    mask: Tensor | None  # [T, B, N, A] bool legal actions, None where all are
    action: Tensor  # [T, B, N] int64, at dead steps too: a plan is defined at all T steps
    probs: Tensor  # [T, B, N, A] of the behaviour policy, its exploration included
    noise: Tensor  # [T, B, step_noise_size] exogenous
    policy_noise: Tensor  # [T, B, N]
    reward: Tensor  # [T, B] team reward, 0 at dead steps
    done: Tensor  # [T, B] bool, the episode ended in this step or before
    alive: Tensor  # [T, B] bool, the episode had not ended before this step

    def __repr__(self) -> str:
        """Axes, not numbers."""
        T, B, N = self.action.shape
        return f"Trajectory(T={T}, B={B}, N={N}, mean return {self.reward.sum(0).mean().item():.3f})"


class Truth(NamedTuple):
    """What an oracle answers."""

    values: Tensor  # [T, B, N], 0 at dead steps (but for Shapley: a plan's units after an early end share the blame)
    error: Tensor  # [T, B, N] standard error of each value, 0 where exact
    cost: int  # simulator steps spent
    definition: str  # which oracle, in words, with its baseline and what was held fixed
