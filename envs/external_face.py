"""A PettingZoo game speaks in dictionaries keyed by agent; this reads them as arrays with one fixed order of agents.

What a game may do and this must survive: agents that leave early, observations of unequal size, unequal numbers of
actions, action masks in `infos` or inside observations, and a last step on which `agents` is already empty although
the reward has just been paid.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from pettingzoo import ParallelEnv

Game: TypeAlias = ParallelEnv[Any, Any, Any]
Maker: TypeAlias = Callable[[], Game]
Array = NDArray[Any]


class GameError(ValueError):
    """An external game cannot be opened or played as asked; the message says why and names the fix."""


class Frame(NamedTuple):
    """What a game shows after a reset or a step, in arrays."""

    obs: Array  # [N,O] float64; zeros for agents that have left
    mask: Array  # [N,A] bool, legal actions
    present: Array  # [N] bool: acts next
    acted: Array  # [N] bool: acted in the step that led here
    rewards: Array  # [N] float64, of the step that led here; 0 for agents that were not given one
    done: bool  # nobody is left
    truncated: bool  # ... because the game was cut off, not because it came to its end
    view: Array  # the game's own `state()`, flat; empty where it is not read


class Face:
    """The dictionaries of one kind of game as arrays.

    Args:
        game: one instance, to learn agents and spaces from.
    Raises:
        GameError: agents not known ahead, actions that are not discrete, observations that cannot be flattened.
    """

    def __init__(self, game: Game) -> None:
        self.agents = _agents(game)
        self.index = {agent: i for i, agent in enumerate(self.agents)}
        n = len(self.agents)
        actions = [_discrete(game, agent) for agent in self.agents]
        self.counts = np.array([int(space.n) for space in actions])
        self.starts = [int(space.start) for space in actions]
        self.spaces = [_observed(game.observation_space(agent)) for agent in self.agents]
        sizes = [_flat_size(agent, space) for agent, space in zip(self.agents, self.spaces, strict=True)]
        self.sizes = sizes
        self.n_agents, self.n_actions, self.obs_size = n, int(self.counts.max()), max(sizes)
        self.legal: Array = np.arange(self.n_actions) < self.counts[:, None]  # [N,A], what no mask can allow
        self.masked = bool((self.counts < self.n_actions).any())  # set too when the game first shows a mask
        self.view_size = 0  # of `state()`, where it is worth reading; decided by who plays the game first

    def reset(self, game: Game, seed: int) -> Frame:
        """Begin an episode."""
        answer = game.reset(seed=seed)
        if not isinstance(answer, tuple) or len(answer) != 2:
            raise GameError(f"{game}: reset must return (observations, infos), as PettingZoo's ParallelEnv does")
        obs, infos = answer
        present = self._flags(agent in game.agents for agent in self.agents)
        nobody, nothing = np.zeros(self.n_agents, bool), np.zeros(self.n_agents)
        seen, mask = self._seen(obs, infos, present)
        return Frame(seen, mask, present, nobody, nothing, not present.any(), False, self._view(game))

    def step(self, game: Game, action: Array) -> Frame:
        """One step; action [N] int, of which only those of present agents count."""
        actors = list(game.agents)
        try:
            given = {a: int(action[self.index[a]]) + self.starts[self.index[a]] for a in actors}
        except KeyError as error:
            raise GameError(f"{game}: agent {error} acts but is not among its possible_agents") from None
        obs, rewards, terminated, truncated, infos = game.step(given)
        ended = {a for a in self.agents if terminated.get(a) or truncated.get(a)}
        present = self._flags(a in game.agents and a not in ended for a in self.agents)
        acted = self._flags(a in given for a in self.agents)
        done = not present.any()
        cut = done and any(truncated.get(a) and not terminated.get(a) for a in actors)
        # Who has left shows nothing; but when all leave at once, what they saw last is what bootstrapping needs.
        seen, mask = self._seen(obs, infos, acted if done else present)
        paid = np.array([float(rewards.get(a) or 0.0) for a in self.agents])
        if not np.isfinite(paid).all():
            raise GameError(f"{game}: a reward is not a finite number: {dict(rewards)}")
        return Frame(seen, mask, present, acted, paid, done, cut, self._view(game))

    def _flags(self, flags: Any) -> Array:
        return np.fromiter(flags, bool, self.n_agents)

    def _seen(self, obs: Mapping[Any, Any], infos: Mapping[Any, Any], who: Array) -> tuple[Array, Array]:
        """Flat, padded observations of `who` and the masks that came with them."""
        seen, mask = np.zeros((self.n_agents, self.obs_size)), self.legal.copy()
        for i, agent in enumerate(self.agents):
            if not who[i] or agent not in obs:
                continue
            one, rule = obs[agent], (infos.get(agent) or {}).get("action_mask")
            if isinstance(one, Mapping) and "action_mask" in one:
                one, rule = one["observation"], one["action_mask"]
            flat = spaces.flatten(self.spaces[i], one)
            if flat.size != self.sizes[i]:
                raise GameError(f"{agent} was shown {flat.size} numbers where its space promises {self.sizes[i]}")
            seen[i, : self.sizes[i]] = flat
            if rule is not None:
                self.masked = True
                allowed = np.asarray(rule, bool)
                if allowed.any():  # an all-forbidding mask is how some games say that the agent has left
                    mask[i] = False
                    mask[i, : allowed.size] = allowed
        return seen, mask

    def joined(self, frame: Frame) -> Array:
        """All observations side by side, without padding."""
        return np.concatenate([frame.obs[i, :size] for i, size in enumerate(self.sizes)])

    def _view(self, game: Game) -> Array:
        if not self.view_size:
            return np.empty(0)
        view = read_state(game)
        if view.size != self.view_size:
            raise GameError(f"{game}: state() has {view.size} numbers where it had {self.view_size} before")
        return view


def read_state(game: Game) -> Array:
    """The game's `state()` as a flat float64 array; empty where it has none."""
    try:
        return np.asarray(game.state(), np.float64).reshape(-1)
    except (NotImplementedError, AttributeError, TypeError, ValueError):
        return np.empty(0)


def _agents(game: Game) -> tuple[Any, ...]:
    agents = tuple(getattr(game, "possible_agents", ()))
    if not agents:
        raise GameError(f"{game}: its agents must be known ahead, but it has no possible_agents")
    return agents


def _discrete(game: Game, agent: Any) -> spaces.Discrete:
    space = game.action_space(agent)
    if not isinstance(space, spaces.Discrete):
        raise GameError(f"{game}: only discrete actions work here, but {agent} acts in {space}")
    return space


def _observed(space: Any) -> Any:
    """The part of an observation space that is seen (some games put the action mask beside it)."""
    if isinstance(space, spaces.Dict) and "action_mask" in space.spaces:
        return space["observation"]
    return space


def _flat_size(agent: Any, space: Any) -> int:
    if not space.is_np_flattenable:
        raise GameError(f"the observations of {agent} cannot be flattened to one array: {space}")
    return int(np.prod(spaces.flatten_space(space).shape))
