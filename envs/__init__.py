"""Cooperative games whose true credit is known. `import envs` registers each with PettingZoo as credit/<name>-v0."""

from __future__ import annotations

import re
from dataclasses import fields
from difflib import get_close_matches
from functools import partial
from importlib import import_module
from typing import Any

from pettingzoo import AECEnv, register
from pettingzoo.utils.conversions import parallel_to_aec

from envs.base import Env, KnobError
from envs.parallel import ParallelGame

GAMES: dict[str, str] = {
    "assembly_line": "envs.assembly_line:AssemblyLine",
    "cleanup": "envs.cleanup:Cleanup",
    "el_farol": "envs.el_farol:ElFarol",
    "gaussian_squeeze": "envs.gaussian_squeeze:GaussianSqueeze",
    "key_door": "envs.key_door:KeyDoor",
    "matrix_game": "envs.matrix_game:MatrixGame",
    "quorum": "envs.quorum:Quorum",
    "rover_grid": "envs.rover_grid:RoverGrid",
    "spread": "envs.spread:Spread",
    "walking_robot": "envs.walking_robot:WalkingRobot",
}
"""Every game, one line each: its name and where its class is (loaded when first asked for)."""

VERSIONS: dict[str, int] = {}
"""Games past version 0. Raise a game's version whenever its dynamics or reward change."""


def game_id(name: str) -> str:
    """'walking_robot' -> 'credit/walking_robot-v0', what `pettingzoo.make` knows it by."""
    return f"credit/{name}-v{VERSIONS.get(name, 0)}"


def rules(name: str, **knobs: Any) -> Env[Any]:
    """The game itself: pure, batched, without a PettingZoo face.

    Args:
        name: 'walking_robot' or 'credit/walking_robot-v0'.
        knobs: the constructor's keyword arguments.
    Raises:
        ValueError: an unknown game or version.
        KnobError: an unknown knob, or one out of range.
    """
    short = _short_name(name)
    module, _, attribute = GAMES[short].partition(":")
    game: type[Env[Any]] = getattr(import_module(module), attribute)
    known = [field.name for field in fields(game) if field.init]  # type: ignore[arg-type]
    for knob in knobs:
        if knob not in known:
            raise KnobError(f"{short} has no knob {knob!r}{_closest(knob, known)}; its knobs are {', '.join(known)}")
    return game(**knobs)


def parallel_env(name: str, *, render_mode: str | None = None, **knobs: Any) -> ParallelGame:
    """The game as a PettingZoo ParallelEnv; arguments and errors as `rules`."""
    short = _short_name(name)
    return ParallelGame(rules(short, **knobs), render_mode, f"{short}_v{VERSIONS.get(short, 0)}")


def aec_env(name: str, *, render_mode: str | None = None, **knobs: Any) -> AECEnv[str, Any, int | None]:
    """The game as a PettingZoo AECEnv, through PettingZoo's own wrapper; arguments and errors as `rules`."""
    return parallel_to_aec(parallel_env(name, render_mode=render_mode, **knobs))


def _short_name(name: str) -> str:
    """'credit/walking_robot-v0' or 'walking_robot' -> 'walking_robot', or one sentence on why not."""
    match = re.fullmatch(r"(?:credit/)?(\w+?)(?:[-_]v(\d+))?", name)
    short = match[1] if match else name
    if short not in GAMES:
        raise ValueError(f"there is no game {name!r}{_closest(short, list(GAMES))}; the games are {', '.join(GAMES)}")
    version = VERSIONS.get(short, 0)
    if match and match[2] is not None and int(match[2]) != version:
        raise ValueError(f"there is no version v{match[2]} of {short}; its version is v{version}")
    return short


def _closest(word: str, known: list[str]) -> str:
    close = get_close_matches(word, known, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def __getattr__(name: str) -> Any:
    """`envs.check` and the other modules load on first use, so that `import envs` stays light."""
    if name in {"check", "external", "drawing"}:
        return import_module(f"envs.{name}")
    raise AttributeError(f"module 'envs' has no attribute {name!r}")


for _name in GAMES:
    register("parallel", game_id(_name), partial(parallel_env, _name))
    register("aec", game_id(_name), partial(aec_env, _name))
