"""One adapter shows any game as a real PettingZoo ParallelEnv, so that every multi-agent library can play it.

The rules stay pure; this face remembers where one episode stands and looks the noise up. `reset(seed=s)` is episode 0
of seed s and `reset()` the next one, with the noise that a batched rollout of (s, episode) meets.
"""

from __future__ import annotations

import re
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from pettingzoo import ParallelEnv
from torch import Tensor

from envs.base import Drawable, Env, HasActionMask
from envs.noise import uniform

Array = NDArray[np.float32]


@runtime_checkable
class HasBounds(Protocol):
    """The game knows between which numbers all its features lie."""

    @property
    def bounds(self) -> tuple[float, float]:
        """(low, high): every feature of `observe` and `critic_view`, whatever happens."""


def episode_noise(
    rules: Env[Any], seed: int, episode: int | Tensor, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """The luck of whole episodes: for `reset` [B, reset_noise_size], for `step` [B, horizon, step_noise_size]."""
    first = uniform("rollout/reset", seed, episode, (rules.reset_noise_size,), dtype)
    later = uniform("rollout/step", seed, episode, (rules.horizon, rules.step_noise_size), dtype)
    return first, later


def snake_case(name: str) -> str:
    """'WalkingRobot' -> 'walking_robot'."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


class ParallelGame(ParallelEnv[str, Array, int]):
    """A game as a PettingZoo ParallelEnv.

    Agents are agent_0 ... agent_{N-1}; actions Discrete(A); observations and `state()` float32. Every agent is given
    the team reward: who sums rewards over agents counts it N times. `infos` carry `action_mask` (int8) where the game
    has one. A real end is `terminated`, the horizon `truncated`; on the last step every agent still gets its reward
    and flags, then `agents` is empty. A copy taken mid-episode by deepcopy or pickle continues identically.

    Args:
        rules: the game; also `.unwrapped.rules`.
        render_mode: "rgb_array", "ansi", "human" (prints the text after every step) or None.
        name: for `metadata`; the class name in snake case if None.
    Raises:
        ValueError: a render mode that the game has not; a step before reset, after the end, or with wrong actions.
    """

    def __init__(self, rules: Env[Any], render_mode: str | None = None, name: str | None = None) -> None:
        self.rules = rules
        self.render_mode = render_mode
        self.metadata: dict[str, Any] = {
            "name": name or snake_case(type(rules).__name__),
            "render_modes": ["human", "ansi", "rgb_array"] if isinstance(rules, Drawable) else [],
            "render_fps": 10,
            "is_parallelizable": True,
        }
        self._refuse_render_mode()
        self.possible_agents = [f"agent_{i}" for i in range(rules.n_agents)]
        self.agents: list[str] = []
        low, high = rules.bounds if isinstance(rules, HasBounds) else (-np.inf, np.inf)
        self.state_space = spaces.Box(low, high, (rules.critic_size,), np.float32)
        self._observation_spaces = {
            agent: spaces.Box(low, high, (rules.obs_size,), np.float32) for agent in self.possible_agents
        }
        self._action_spaces = {agent: spaces.Discrete(rules.n_actions) for agent in self.possible_agents}
        self._seed, self._episode, self._time = 0, -1, 0
        self._state: Any = None
        self._noise = torch.empty(0)
        self._masked = rules if isinstance(rules, HasActionMask) else None  # asked once: protocols are slow to tell

    def observation_space(self, agent: str) -> spaces.Box:
        """The same object each time."""
        return self._observation_spaces[agent]

    def action_space(self, agent: str) -> spaces.Discrete:
        """The same object each time."""
        return self._action_spaces[agent]

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Array], dict[str, dict[str, Any]]]:
        """Begin episode 0 of `seed`, or the next episode (of seed 0 where none was ever given). Options are ignored."""
        if seed is not None:
            if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= seed < 2**63:
                raise ValueError(f"seed={seed!r} is not allowed; it must be None or a whole number in 0..2**63-1")
            self._seed, self._episode = int(seed), -1
        self._episode += 1
        self._time = 0
        self.agents = self.possible_agents[:]
        first, self._noise = episode_noise(self.rules, self._seed, self._episode)
        self._state = self.rules.reset(first)
        self._show()
        return self._observations(), self._infos()

    def step(
        self, actions: dict[str, int]
    ) -> tuple[dict[str, Array], dict[str, float], dict[str, bool], dict[str, bool], dict[str, dict[str, Any]]]:
        """Observations, team reward, terminated, truncated and infos, each keyed by agent."""
        joint = self._joint(actions)
        with torch.inference_mode():  # nobody differentiates through a face
            outcome = self.rules.step(self._state, joint, self._noise[:, self._time])
            self._state = outcome.state
            seen = self._observations()
        self._time += 1
        terminated = bool(outcome.done[0])
        truncated = not terminated and self._time == self.rules.horizon
        players = self.agents
        if terminated or truncated:
            self.agents = []
        self._show()
        return (
            seen,
            dict.fromkeys(players, outcome.reward.item()),
            dict.fromkeys(players, terminated),
            dict.fromkeys(players, truncated),
            self._infos(),
        )

    def state(self) -> Array:
        """[critic_size]: all that a central critic may see."""
        self._refuse_before_reset("state()")
        return np.array(self.rules.critic_view(self._state)[0], dtype=np.float32)

    def render(self) -> NDArray[np.uint8] | str | None:
        """A picture [height, width, 3], a text, or None after printing, as the render mode says."""
        self._refuse_before_reset("render()")
        if self.render_mode is None:
            raise ValueError(
                f"{self.metadata['name']}: render() has no render mode; make the game with render_mode set to "
                f"one of {', '.join(self.metadata['render_modes']) or 'none (this game has no picture)'}"
            )
        if self.render_mode == "rgb_array":
            picture: NDArray[np.uint8] = self.rules.draw(self._state)  # type: ignore[attr-defined]
            return picture
        text: str = self.rules.text(self._state)  # type: ignore[attr-defined]
        if self.render_mode == "ansi":
            return text
        print(text)
        return None

    def close(self) -> None:
        """Nothing is held open."""

    def _show(self) -> None:
        if self.render_mode == "human":
            self.render()

    def _observations(self) -> dict[str, Array]:
        table = self.rules.observe(self._state).numpy()[0].astype(np.float32)  # a copy, in one go for all agents
        return dict(zip(self.possible_agents, table, strict=True))

    def _infos(self) -> dict[str, dict[str, Any]]:
        if self._masked is None:
            return {agent: {} for agent in self.possible_agents}
        table = self._masked.action_mask(self._state)[0].numpy().astype(np.int8)
        return {agent: {"action_mask": mask} for agent, mask in zip(self.possible_agents, table, strict=True)}

    def _joint(self, actions: dict[str, int]) -> Tensor:
        """The actions as [1,N], or one sentence on what is wrong with them."""
        name = self.metadata["name"]
        self._refuse_before_reset("step()")
        if not self.agents:
            raise ValueError(f"{name}: the episode is over; call reset() before step()")
        if not isinstance(actions, dict):
            raise ValueError(f"{name}: step() takes a dict from agent to action, not a {type(actions).__name__}")
        if missing := [agent for agent in self.agents if agent not in actions]:
            raise ValueError(f"{name}: step() needs an action for every agent; {', '.join(missing)} got none")
        if strange := [str(agent) for agent in actions if agent not in self._action_spaces]:
            known = f"{self.agents[0]}..{self.agents[-1]}"
            raise ValueError(f"{name}: step() was given an action for {', '.join(strange)}; the agents are {known}")
        for agent, action in actions.items():
            plain = type(action) is int and 0 <= action < self.rules.n_actions  # quicker than asking the space
            if not plain and not self._action_spaces[agent].contains(action):
                allowed = f"a whole number in 0..{self.rules.n_actions - 1}"
                raise ValueError(f"{name}: action {action!r} of {agent} is not allowed; it must be {allowed}")
        return torch.tensor([[int(actions[agent]) for agent in self.agents]])

    def _refuse_before_reset(self, what: str) -> None:
        if self._state is None:
            raise ValueError(f"{self.metadata['name']}: call reset() before {what}")

    def _refuse_render_mode(self) -> None:
        name, mode, modes = self.metadata["name"], self.render_mode, self.metadata["render_modes"]
        if mode is not None and mode not in modes:
            allowed = f"None or one of {', '.join(modes)}" if modes else "None, as this game has no picture"
            raise ValueError(f"{name}: render_mode={mode!r} is not allowed; it must be {allowed}")
