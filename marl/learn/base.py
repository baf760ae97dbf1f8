"""A learner turns batches of episodes and a signal into a policy; this is all that an experiment asks of one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor

from envs.base import Env
from marl.types import Policy, Trajectory


class Training(Protocol):
    """A population of S seeds on its way."""

    @property
    def policy(self) -> Policy:
        """Who plays while learning, exploration included."""

    @property
    def evaluated(self) -> Policy:
        """Who is judged: the sampled policy of a policy-gradient learner, the greedy one of a Q-learner."""

    def update(self, trajectory: Trajectory, signal: Tensor, update: int, done: float) -> None:
        """Learn from one batch. signal: of a kind that the learner follows; done: the part of training behind us."""

    def credit(self, trajectory: Trajectory) -> Tensor | None:
        """[T,B,N] the credit that the learner itself assigns; None: what its chain assigns."""

    def to(self, device: str) -> None:
        """Live there, before the first update."""

    def state(self) -> dict[str, Any]:
        """All that the next update depends on: tensors, numbers, and dictionaries and lists of them."""

    def load(self, state: dict[str, Any]) -> None:
        """Go on from such a state."""


class Learner(Protocol):
    """Settings, as a frozen dataclass."""

    @property
    def episodes(self) -> int:
        """Whole episodes per seed and update."""

    @property
    def follows(self) -> tuple[str, ...]:
        """The kinds of signal that it learns from, by name."""

    def begin(self, game: Env[Any], seeds: Sequence[int]) -> Training:
        """Untrained networks for these seeds."""
