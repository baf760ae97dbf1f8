"""The random game of tests/tiny_mdp.py with the cases of its luck declared, so that its states can be listed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from tiny_mdp import MaskedTiny, TinyMdp, TinyState
from torch import Tensor

from envs.base import Step
from envs.noise import Atoms, atoms


class FiniteTiny(TinyMdp):
    """Three places to begin in and two cases a step; the return so far is nobody's business."""

    bookkeeping: ClassVar[tuple[str, ...]] = ("paid", "cut")

    def reset_atoms(self) -> Atoms:
        return atoms([k / self.n_places for k in range(1, self.n_places)])

    def step_atoms(self) -> Atoms:
        return atoms([k / self.atoms for k in range(1, self.atoms)])


class FiniteMasked(MaskedTiny):
    """The same with forbidden actions."""

    bookkeeping = FiniteTiny.bookkeeping
    reset_atoms = FiniteTiny.reset_atoms
    step_atoms = FiniteTiny.step_atoms


class Remembering(FiniteTiny):
    """States that differ only in the return so far are listed apart."""

    bookkeeping: ClassVar[tuple[str, ...]] = ()


@dataclass(frozen=True)
class Discounted(FiniteTiny):
    """Step t pays gamma^t times what it pays in the plain game: its returns are discounted to the first step."""

    gamma: float = 0.8

    def step(self, state: TinyState, action: Tensor, noise: Tensor) -> Step[TinyState]:
        outcome = super().step(state, action, noise)
        return outcome._replace(reward=outcome.reward * self.gamma ** state.t.to(outcome.reward.dtype))


def random_table(game: TinyMdp, seed: int = 0) -> Tensor:
    """[T,S,N,A] any stochastic policy, nothing near uniform."""
    shape = (game.horizon, game.n_places, game.n_agents, game.n_actions)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).mul(1.5).softmax(-1)
