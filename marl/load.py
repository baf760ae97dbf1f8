"""One door: any PettingZoo game by name, module or object; one that carries rules takes the fast road."""

from __future__ import annotations

from typing import Any

import envs
from envs.base import Env


def load(game: Any, **knobs: Any) -> Env[Any]:
    """The game behind any form of `--env`.

    game: a registered id ("credit/walking_robot-v0"), ...
    """
    return envs.rules(game, **knobs)
