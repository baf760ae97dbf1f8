"""One door: any PettingZoo game by name, module or object; one that carries rules takes the fast road."""

from __future__ import annotations

from typing import Any

import envs  # noqa: F401  registers our own games with PettingZoo
from envs.base import Env
from envs.external import open_game


def load(game: Any, **knobs: Any) -> Env[Any]:
    """The game behind any form of `--env`.

    Args:
        game: "ns/name-vN", an id registered with PettingZoo (ours are credit/NAME-v0); "module:ns/name-vN";
            "module:callable"; a module with `parallel_env`, such as "mpe2.simple_spread_v3"; or, in Python, a
            ParallelEnv, a callable that makes one, or an Env.
        knobs: the game's own arguments; see `envs.external.open_game` for those of games from outside.
    Raises:
        ValueError, one sentence: an unknown game or knob, or a knob out of its range.
    """
    return open_game(game, **knobs)
