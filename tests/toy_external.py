"""Small PettingZoo games, each with one property that an adapter easily gets wrong."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
from gymnasium import spaces
from pettingzoo import ParallelEnv


class Toy(ParallelEnv):
    """Two agents, three actions, `length` steps; everyone is paid the number of equal actions, drawn noise and all.

    Subclasses change one thing each.
    """

    metadata = {"name": "toy", "is_parallelizable": True}

    def __init__(self, length: int = 8) -> None:
        self.length = length
        self.possible_agents = ["left", "right"]
        self.agents: list[str] = []
        self.random = np.random.default_rng(0)
        self.time = 0
        self.score = 0.0

    @functools.cache  # noqa: B019 (PettingZoo asks for the same object each time)
    def observation_space(self, agent: str) -> spaces.Space[Any]:
        return spaces.Box(-np.inf, np.inf, (3,), np.float32)

    @functools.cache  # noqa: B019
    def action_space(self, agent: str) -> spaces.Space[Any]:
        return spaces.Discrete(3)

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict, dict]:
        if seed is not None:
            self.random = np.random.default_rng(seed)
        self.agents = self.possible_agents[:]
        self.time, self.score = 0, self.luck()
        return self.seen(self.agents), self.told(self.agents)

    def step(self, actions: dict[str, int]) -> tuple[dict, dict, dict, dict, dict]:
        assert set(actions) == set(self.agents), "every live agent acts, and no other"
        acting = self.agents
        self.time += 1
        self.score = 0.5 * self.score + self.luck() + sum((i + 1) * a for i, a in enumerate(actions.values()))
        rewards = self.pay(actions)
        ended, cut = self.ends(acting)
        self.agents = [a for a in acting if not (ended[a] or cut[a])]
        return self.seen(acting), rewards, ended, cut, self.told(acting)

    def luck(self) -> float:
        return float(self.random.random())

    def seen(self, agents: list[str]) -> dict[str, Any]:
        return {a: np.array([self.time, self.score, i], np.float32) for i, a in enumerate(agents)}

    def told(self, agents: list[str]) -> dict[str, dict[str, Any]]:
        return {a: {} for a in agents}

    def pay(self, actions: dict[str, int]) -> dict[str, float]:
        return dict.fromkeys(actions, self.score)

    def ends(self, agents: list[str]) -> tuple[dict[str, bool], dict[str, bool]]:
        return dict.fromkeys(agents, False), dict.fromkeys(agents, self.time >= self.length)


class LastStepPays(Toy):
    """Nothing is paid before the last step, on which `agents` is already empty; that end is real."""

    def pay(self, actions: dict[str, int]) -> dict[str, float]:
        return dict.fromkeys(actions, 1.0 + self.score if self.time == self.length else 0.0)

    def ends(self, agents: list[str]) -> tuple[dict[str, bool], dict[str, bool]]:
        return dict.fromkeys(agents, self.time >= self.length), dict.fromkeys(agents, False)


class LateEnvy(Toy):
    """Agents are paid alike until the last step of an episode in which they always did the same."""

    envious = True

    def pay(self, actions: dict[str, int]) -> dict[str, float]:
        self.envious = len(set(actions.values())) == 1 and (self.envious or self.time == 1)
        bonus = 1.0 if self.envious and self.time == self.length else 0.0
        return {"left": 1.0, "right": 1.0 + bonus}


class Crowd(Toy):
    """Unequal observations and action counts, masks in infos; agent k of three leaves after 2 + 2k steps."""

    def __init__(self, length: int = 6) -> None:
        super().__init__(length)
        self.possible_agents = ["a", "b", "c"]

    @functools.cache  # noqa: B019
    def observation_space(self, agent: str) -> spaces.Space[Any]:
        return spaces.Dict({"n": spaces.Discrete(4), "x": spaces.Box(-9, 9, (self.possible_agents.index(agent), 2))})

    @functools.cache  # noqa: B019
    def action_space(self, agent: str) -> spaces.Space[Any]:
        return spaces.Discrete(2 + self.possible_agents.index(agent), start=5)

    def seen(self, agents: list[str]) -> dict[str, Any]:
        index = self.possible_agents.index
        return {a: {"n": self.time % 4, "x": np.full((index(a), 2), self.time + 1, np.float32)} for a in agents}

    def told(self, agents: list[str]) -> dict[str, dict[str, Any]]:
        """The last agent may not do its last action at odd times."""
        return {"c": {"action_mask": np.array([1, 1, 1, self.time % 2 == 0], np.int8)}} if "c" in agents else {}

    def step(self, actions: dict[str, int]) -> tuple[dict, dict, dict, dict, dict]:
        assert all(self.action_space(a).contains(action) for a, action in actions.items())
        return super().step(actions)

    def ends(self, agents: list[str]) -> tuple[dict[str, bool], dict[str, bool]]:
        return {a: self.time >= 2 + 2 * self.possible_agents.index(a) for a in agents}, dict.fromkeys(agents, False)


class MaskInside(Toy):
    """The mask comes inside the observation, as in PettingZoo's classic games."""

    @functools.cache  # noqa: B019
    def observation_space(self, agent: str) -> spaces.Space[Any]:
        inner = spaces.Box(-np.inf, np.inf, (3,), np.float32)
        return spaces.Dict({"observation": inner, "action_mask": spaces.Box(0, 1, (3,), np.int8)})

    def seen(self, agents: list[str]) -> dict[str, Any]:
        mask = np.array([1, 0, self.time % 2], np.int8)
        return {a: {"observation": seen, "action_mask": mask} for a, seen in super().seen(agents).items()}


class HasState(Toy):
    """Brings its own snapshots and a `state()` that says more than the observations."""

    def get_state(self) -> dict[str, Any]:
        return {"random": self.random, "time": self.time, "score": self.score, "agents": self.agents}

    def set_state(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    def state(self) -> np.ndarray:
        return np.array([self.time, self.score, self.random.bit_generator.state["state"]["state"] % 1000], np.float32)


class ForgetsLuck(HasState):
    """Its own snapshots forget the random numbers; a deep copy does not."""

    def get_state(self) -> dict[str, Any]:
        return {"time": self.time, "score": self.score, "agents": self.agents}


class HoldsGenerator(Toy):
    """Its luck comes out of a running Python generator, which nothing can copy; a replay from the seed can."""

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict, dict]:
        self.stream = self.flow(seed)
        return super().reset(seed, options)

    def flow(self, seed: int | None) -> Iterator[float]:
        random = np.random.default_rng(seed)
        while True:
            yield float(random.random())

    def luck(self) -> float:
        return next(self.stream)


class LiesWhenCopied(Toy):
    """Copies without complaint and loses the score."""

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "score": 0.0}


class GlobalLuck(Toy):
    """Uses numpy's global random numbers, seeded in reset: right while it plays alone, never side by side."""

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict, dict]:
        if seed is not None:
            np.random.seed(seed)
        return super().reset(seed, options)

    def luck(self) -> float:
        return float(np.random.random())


class RemembersEpisodes(Toy):
    """An episode that came to its end changes the luck of those that follow, whatever their seed."""

    played = 0

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict, dict]:
        self.played += self.time >= self.length
        return super().reset(seed, options)

    def luck(self) -> float:
        return super().luck() + (self.played if self.time > 2 else 0)


class EndsByChance(Toy):
    """Ends by itself at a random time, which bounds nothing."""

    def ends(self, agents: list[str]) -> tuple[dict[str, bool], dict[str, bool]]:
        return dict.fromkeys(agents, self.random.random() < 0.3), dict.fromkeys(agents, False)


class Endless(Toy):
    def ends(self, agents: list[str]) -> tuple[dict[str, bool], dict[str, bool]]:
        return dict.fromkeys(agents, False), dict.fromkeys(agents, False)


class Continuous(Toy):
    def action_space(self, agent: str) -> spaces.Space[Any]:
        return spaces.Box(0, 1, (2,))


def pursuit(**knobs: Any) -> Any:
    """The real pursuit, small enough for a test."""
    import pettingzoo

    small = {"max_cycles": 12, "x_size": 8, "y_size": 8, "n_evaders": 4, "n_pursuers": 3, "obs_range": 5}
    return pettingzoo.make("parallel", "sisl/pursuit-v5", **{**small, **knobs})
