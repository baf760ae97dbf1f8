"""Is this game what it claims to be? `check_env` plays it and lists every broken promise with where and why.

    python -m envs.check walking_robot n_agents=3 delay=0

A game given as rules (an `Env`, or a ParallelEnv that carries `.unwrapped.rules`) is checked twice: its rules, and the
PettingZoo face against them. A plain ParallelEnv is checked for what a face alone can promise.
"""

from __future__ import annotations

import ast
import copy
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from pettingzoo import ParallelEnv

import envs
from envs.base import Env
from envs.check_face import FACE_CHECKS, FaceProbe
from envs.check_rules import RULES_CHECKS, RulesProbe, shapes
from envs.external import recipe
from envs.parallel import ParallelGame

PER_CHECK = 3  # failures of one check that are worth reading


class EnvError(AssertionError):
    """A game breaks its contract. `failures` holds 'check: where and why', one each."""

    def __init__(self, game: str, failures: list[str]) -> None:
        self.failures = failures
        super().__init__(f"{game} breaks its contract in {len(failures)} place(s):\n- " + "\n- ".join(failures))


def check_env(game: Env[Any] | ParallelEnv[Any, Any, Any] | str, **knobs: Any) -> None:
    """Play a game and hold it to its contract.

    Args:
        game: rules, a PettingZoo ParallelEnv (its own rules are checked too where it carries them), or a name:
            'walking_robot', any id registered with PettingZoo, or any other form that `--env` takes.
        knobs: of a game given by name.
    Raises:
        EnvError: lists every failure with where and why.
        ValueError: an unknown game or knob, or knobs for a game that is already made.
    """
    title, make, rules = _open(game, knobs)
    failures: list[str] = []
    if rules is not None:
        probe = RulesProbe(rules)
        failures += _run(shapes, probe)
        if not failures:  # nothing else can be read where shapes are wrong
            failures += [line for check in RULES_CHECKS for line in _run(check, probe)]
    if not any(line.startswith("shapes") for line in failures):
        face = FaceProbe(make, rules)
        failures += [line for check in FACE_CHECKS for line in _run(check, face)]
    if failures:
        raise EnvError(title, failures)


def _run(check: Callable[[Any], Iterator[str]], probe: Any) -> list[str]:
    """'check: sentence' for each failure; a crash of the game is one too."""
    found: list[str] = []
    try:
        for sentence in check(probe):
            found.append(f"{check.__name__}: {sentence}")
            if len(found) == PER_CHECK:
                break
    except Exception as error:
        found.append(f"{check.__name__}: the game raised {type(error).__name__}: {error}")
    return found


def _open(game: Any, knobs: dict[str, Any]) -> tuple[str, Callable[[], Any], Env[Any] | None]:
    """(title, how to make a face, the rules if any)."""
    if isinstance(game, str):
        if game.startswith("credit/") or not any(mark in game for mark in "./:"):
            return _open(envs.rules(game, **knobs), {})
        make = recipe(game, **knobs)
        face = make()
        if not isinstance(face, ParallelEnv):  # rules as they are, or no game
            return _open(face, {})
        return game, make, getattr(face.unwrapped, "rules", None)
    if knobs:
        raise ValueError(f"{', '.join(knobs)}: knobs belong to a game given by name, not to one already made")
    if isinstance(game, Env):
        return repr(game), lambda: ParallelGame(game), game
    if isinstance(game, ParallelEnv):
        rules = getattr(game.unwrapped, "rules", None)
        fresh = (lambda: copy.deepcopy(game)) if rules is not None else (lambda: game)
        return str(game), fresh, rules
    raise ValueError(f"{game!r} is no game: give an Env, a PettingZoo ParallelEnv or a name")


def main(arguments: list[str]) -> int:
    """The command line; returns 0 if every check passed, 1 if not, 2 if the question was wrong."""
    if not arguments or arguments[0].startswith("-"):
        print("usage: python -m envs.check NAME [knob=value ...]", file=sys.stderr)
        return 2
    try:
        check_env(arguments[0], **parse_knobs(arguments[1:]))
    except EnvError as error:
        print(error)
        return 1
    except (ValueError, TypeError, ImportError) as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{arguments[0]}: every check passed")
    return 0


def parse_knobs(arguments: Iterable[str]) -> dict[str, Any]:
    """['n_agents=3', 'safe=hold'] -> {'n_agents': 3, 'safe': 'hold'}: Python literals, else words.

    Raises:
        ValueError: an argument without "=", or a knob given twice.
    """
    knobs: dict[str, Any] = {}
    for argument in arguments:
        knob, equals, value = argument.partition("=")
        if not equals:
            raise ValueError(f"{argument!r} is not knob=value")
        if knob in knobs:
            raise ValueError(f"knob {knob!r} is given twice")
        knobs[knob] = _literal(value)
    return knobs


def _literal(value: str) -> Any:
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return value


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
