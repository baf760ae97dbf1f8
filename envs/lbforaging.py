"""Level-based foraging as a PettingZoo ParallelEnv: food that only several players can lift, and who earned it?

The game is lbforaging 2.0, unchanged: players walk a grid and load food that together they are strong enough to lift.
Its tuples become dictionaries, and its one flag for "all eaten" and "time is up" becomes two.

    python -m benchmarks.compare --env envs.lbforaging --env-args players=3 cooperative=true team_reward=sum
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from pettingzoo import ParallelEnv

from envs.base import real, refuse_knob, whole
from envs.external_face import GameError

ACTIONS = ("none", "north", "south", "west", "east", "load")

Array = NDArray[np.float32]


class Foraging(ParallelEnv[str, Array, int]):
    """lbforaging's `Foraging-{size}x{size}-{players}p-{foods}f-v3` and its variants.

    When the players in a set S next to a food of level f load it at once and their levels l_j add up to f or more, it
    is eaten and each i in S is paid

        r_i = l_i f / (sum_{j in S} l_j  *  F),    F = the level of all food at the start,

    else each in S pays `penalty`. So the team's reward is the sum over players: the share of the food that was eaten,
    and an episode's return is 1 when nothing is left (penalty 0). Open it with `team_reward=sum`.

    Actions: none, north, south, west, east, load. A move or a load that is not possible counts as none; of players who
    want the same cell none moves. Observations: (row, column, level) of each food in sight, then of the player itself,
    then of the others in sight; absent ones are (-1, -1, 0). With limited sight rows and columns count from the corner
    of what is seen. `state()` shows all food and all players, in fixed order, and the share of time played.
    An end is `terminated` when all food is eaten, `truncated` when time is up.

    Args:
        players: N, 1 or more, at most half the cells.
        size: the field has size x size cells, 5 or more.
        foods: at most so many are placed, none beside another (5 x 5 cells have room for two).
        sight: how far a player sees, in cells; 0 means the whole field.
        cooperative: every food needs the three weakest players together (all, if there are fewer).
        horizon: steps until time is up.
        max_level: players' levels are drawn from 1..max_level; a food's from 1 to the sum of the three lowest.
        penalty: what a load that fails costs each who took part.
    Raises:
        KnobError: a knob out of its range.
        GameError: lbforaging is not installed; an action that is missing or impossible, a step outside an episode.
    Source: Papoudakis et al. 2021, "Benchmarking Multi-Agent Deep Reinforcement Learning Algorithms in Cooperative
    Tasks" (NeurIPS Datasets and Benchmarks), and the package lbforaging 2.0.0.
    """

    metadata = {"name": "lbforaging_v3", "render_modes": [], "is_parallelizable": True}

    def __init__(
        self,
        players: int = 2,
        size: int = 8,
        foods: int = 2,
        sight: int = 0,
        cooperative: bool = False,
        horizon: int = 50,
        max_level: int = 2,
        penalty: float = 0.0,
    ) -> None:
        self.players, self.size, self.foods, self.sight = players, size, foods, sight
        self.cooperative, self.horizon, self.max_level, self.penalty = cooperative, horizon, max_level, penalty
        whole(self, 5, None, "size")
        whole(self, 1, size * size // 2, "players")
        whole(self, 1, None, "foods", "horizon", "max_level")
        whole(self, 0, None, "sight")
        real(self, 0.0, None, "penalty")
        if not isinstance(cooperative, bool):
            refuse_knob(self, "cooperative", "True or False")
        self.max_cycles = horizon  # the name that PettingZoo's own games and tests have for it
        self.game = _game(self)
        self.possible_agents = [f"player_{i}" for i in range(players)]
        self.agents: list[str] = []
        self._seen, self._acts = self.game.observation_space[0], spaces.Discrete(len(ACTIONS))
        low, high = self._seen.low, self._seen.high
        self.state_space = spaces.Box(np.append(low, np.float32(0)), np.append(high, np.float32(1)), dtype=np.float32)

    def observation_space(self, agent: str) -> spaces.Space[Any]:
        return self._seen

    def action_space(self, agent: str) -> spaces.Space[Any]:
        return self._acts

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Array], dict[str, dict[str, Any]]]:
        """Begin an episode. All luck (places and levels) is drawn here, from `seed` or from where the last one left."""
        for player in self.game.players:
            player.position = None  # else nobody could begin where the last episode ended, whatever the seed
        seen, _ = self.game.reset(seed=seed)
        self.agents = self.possible_agents[:]
        return dict(zip(self.agents, seen, strict=True)), {agent: {} for agent in self.agents}

    def step(
        self, actions: Mapping[str, int]
    ) -> tuple[dict[str, Array], dict[str, float], dict[str, bool], dict[str, bool], dict[str, dict[str, Any]]]:
        """One step of all players."""
        acting = self.agents
        self._refuse_actions(actions)
        seen, rewards, over, _, _ = self.game.step([int(actions[agent]) for agent in acting])
        eaten = not self.game.field.any()
        self.agents = [] if over else acting
        return (
            dict(zip(acting, seen, strict=True)),
            {agent: float(reward) for agent, reward in zip(acting, rewards, strict=True)},
            dict.fromkeys(acting, eaten),
            dict.fromkeys(acting, over and not eaten),
            {agent: {} for agent in acting},
        )

    def state(self) -> Array:
        """[3 foods + 3 N + 1]: (row, column, level) of all food and of all players, and time / horizon."""
        lying = np.argwhere(self.game.field)
        food = np.tile((-1, -1, 0), (self.foods, 1))
        food[: len(lying), :2], food[: len(lying), 2] = lying, self.game.field[tuple(lying.T)]
        players = [[*player.position, player.level] for player in self.game.players]
        time = [self.game.current_step / self.horizon]
        return np.concatenate([food.ravel(), np.ravel(players), time]).astype(np.float32)

    def _refuse_actions(self, actions: Mapping[str, int]) -> None:
        if not self.agents:
            raise GameError("lbforaging: there is no episode to step; call reset first")
        for agent in self.agents:
            if agent not in actions or not self._acts.contains(actions[agent]):
                raise GameError(
                    f"lbforaging: action {actions.get(agent)!r} of {agent} is not allowed; it must be a whole number "
                    f"in 0..{len(ACTIONS) - 1} ({', '.join(ACTIONS)})"
                )


def _game(knobs: Foraging) -> Any:
    """lbforaging's own game, made as its registered ids make it."""
    try:
        from lbforaging.foraging import ForagingEnv  # on use: importing it registers two thousand ids
    except ImportError as error:
        raise GameError(
            "envs.lbforaging needs the package lbforaging, which is not installed; "
            "pip install 'credit-sandbox[external]'"
        ) from error
    return ForagingEnv(
        players=knobs.players,
        min_player_level=1,
        max_player_level=knobs.max_level,
        min_food_level=1,
        max_food_level=None,
        field_size=(knobs.size, knobs.size),
        max_num_food=knobs.foods,
        sight=knobs.sight or knobs.size,
        max_episode_steps=knobs.horizon,
        force_coop=knobs.cooperative,
        penalty=knobs.penalty,
    )


parallel_env = Foraging
