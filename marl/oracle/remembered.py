"""With agents that remember, s includes their memory: a game in whose state it stands, so that enumeration stays exact.

(s_t, m_t) is the state of a game in which nobody needs to remember: reset gives (s_0, m_0), a step goes from (s, m) to
(s', m') with m' = remember(o(s'), m), agents are shown (o, m), and the policy reads m alone. Its luck, rewards and
actions are those of the game itself.
"""

from __future__ import annotations

from collections import namedtuple
from functools import cache
from typing import Any

import torch
from torch import Tensor

from envs.base import Env, HasActionMask, HasFiniteNoise, Step
from envs.noise import Atoms, atoms
from marl.oracle.states import DeclaresBookkeeping
from marl.rollout import Remembers, recall
from marl.types import Policy, Trajectory


@cache
def _with_memory(bare: Any) -> Any:
    """The type of a state with the fields of `bare` and what agents remember, [B,N,H], behind them."""
    fields = namedtuple("Remembered", (*bare._fields, "remembered"))  # type: ignore[misc]
    return type("Remembered", (fields,), {"bare": bare})


class Remembering(Env[Any]):
    """A game and one seed of a policy that remembers, in float64, as a game in which nobody needs to."""

    def __init__(self, game: Env[Any], policy: Remembers, seed: int = 0) -> None:
        self.game, self.remembers = game, policy.alone(seed)

    n_agents = property(lambda self: self.game.n_agents)
    n_actions = property(lambda self: self.game.n_actions)
    obs_size = property(lambda self: self.game.obs_size + self.remembers.memory)
    critic_size = property(lambda self: self.game.critic_size)
    horizon = property(lambda self: self.game.horizon)
    reset_noise_size = property(lambda self: self.game.reset_noise_size)
    step_noise_size = property(lambda self: self.game.step_noise_size)
    default_action = property(lambda self: self.game.default_action)

    def __repr__(self) -> str:
        return f"{self.game!r} with what its agents remember"

    @property
    def policy(self) -> Policy:
        """The policy in this game: a function of what it shows."""

        def policy(obs: Tensor, mask: Tensor | None) -> Tensor:
            return self.remembers.act(obs[..., self.game.obs_size :], mask)

        return policy

    def recorded(self, trajectory: Trajectory) -> Trajectory:
        """Episodes of the game itself as episodes of this one: agents look again, in float64."""
        memories: list[Tensor] = []
        for obs in (*trajectory.obs, self.game.observe(trajectory.final)):
            memories.append(recall(self.remembers, obs.double(), memories[-1] if memories else None).detach())
        kept = torch.stack(memories[:-1])
        return trajectory._replace(
            state=self._state(trajectory.state, kept),
            final=self._state(trajectory.final, memories[-1]),
            obs=torch.cat((trajectory.obs.double(), kept), -1),
        )

    def reset(self, noise: Tensor) -> Any:
        """The first state, and what agents remember of it."""
        return self._look(self.game.reset(noise), None)

    def step(self, state: Any, action: Tensor, noise: Tensor) -> Step[Any]:
        """The game's step; then agents look."""
        step = self.game.step(self._bare(state), action, noise)
        return Step(self._look(step.state, state.remembered), step.reward, step.done)

    def observe(self, state: Any) -> Tensor:
        """[B,N,O+H]: what an agent sees, and what it remembers, this step included."""
        return torch.cat((self.game.observe(self._bare(state)).double(), state.remembered), -1)

    def critic_view(self, state: Any) -> Tensor:
        """The game's own."""
        return self.game.critic_view(self._bare(state))

    def action_mask(self, state: Any) -> Tensor:
        """The game's own; all True where it has none."""
        if isinstance(self.game, HasActionMask):
            return self.game.action_mask(self._bare(state))
        shape = (len(state.remembered), self.n_agents, self.n_actions)
        return torch.ones(shape, dtype=torch.bool, device=state.remembered.device)

    def reset_atoms(self) -> Atoms:
        """The game's own. Raises ValueError where it declares none and needs some."""
        return self.game.reset_atoms() if isinstance(self.game, HasFiniteNoise) else self._no_luck()

    def step_atoms(self) -> Atoms:
        """The game's own. Raises ValueError where it declares none and needs some."""
        return self.game.step_atoms() if isinstance(self.game, HasFiniteNoise) else self._no_luck()

    @property
    def bookkeeping(self) -> tuple[str, ...]:
        """The game's own."""
        return self.game.bookkeeping if isinstance(self.game, DeclaresBookkeeping) else ()

    def _no_luck(self) -> Atoms:
        if self.reset_noise_size or self.step_noise_size:
            raise ValueError(f"{type(self.game).__name__} reads random numbers and declares no finite list of cases")
        return atoms()

    def _look(self, state: Any, before: Tensor | None) -> Any:
        return self._state(state, recall(self.remembers, self.game.observe(state).double(), before))

    def _state(self, state: Any, memory: Tensor) -> Any:
        kind: Any = type(state)
        return _with_memory(kind)(*state, memory)

    def _bare(self, state: Any) -> Any:
        return type(state).bare(*state[:-1])
