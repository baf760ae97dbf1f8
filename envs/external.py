"""The one door: whatever a researcher calls a game, `open_game` finds it and makes it playable.

A game that carries rules of ours (`.unwrapped.rules`) takes the fast road; any other PettingZoo ParallelEnv is played
through `External`.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pkgutil import iter_modules
from types import ModuleType
from typing import Any, TypeAlias

import pettingzoo
from pettingzoo import ParallelEnv
from pettingzoo.env_registry.exceptions import FailedToImport, PettingZooRegistryError

from envs.base import Env
from envs.external_env import External, ExternalState
from envs.external_face import Game, GameError
from envs.external_games import CounterfactualError
from envs.snapshots import Snapshot, load, save

__all__ = ["CounterfactualError", "External", "ExternalState", "GameError", "open_game", "recipe"]

OURS = ("team_reward", "horizon", "default_action", "max_games")  # knobs of External, unless the game has them itself

Source: TypeAlias = str | Env[Any] | Game | Callable[..., Any] | ModuleType


@dataclass(frozen=True)
class Recipe:
    """How to make a game: a name or a callable, and its knobs. Can be sent to another process."""

    source: Any
    knobs: dict[str, Any] = field(default_factory=dict)

    def __call__(self) -> Any:
        return _factory(self.source)(**self.knobs)

    def __str__(self) -> str:
        knobs = ", ".join(f"{knob}={value!r}" for knob, value in self.knobs.items())
        return _title(self.source) + (f" ({knobs})" if knobs else "")


@dataclass(frozen=True)
class CopyOf:
    """How to make more games like one that was given as an object."""

    title: str
    snapshot: Snapshot = field(repr=False)

    def __call__(self) -> Any:
        return load(self.snapshot)

    def __str__(self) -> str:
        return self.title


def open_game(source: Source, **knobs: Any) -> Env[Any]:
    """A game, ready to roll out.

    Args:
        source: `ns/name-vN`, an id registered with PettingZoo; `module:ns/name-vN`, import the module first;
            `module:callable`, which makes the game; a module with `parallel_env`, such as `mpe2.simple_spread_v3`;
            or, in Python, a ParallelEnv, a callable that makes one, or an Env.
        knobs: the game's own arguments; for a game from outside also `team_reward`, `horizon`, `default_action` and
            `max_games` (see `External`), as far as the game has no argument of that name.
    Returns:
        The game's own rules if it carries any, else `External`.
    Raises:
        GameError: an unknown id, module or knob, or a game that cannot be played; one sentence.
        KnobError: a knob out of its range.
    """
    ours = {knob: knobs[knob] for knob in OURS if knob in knobs}
    if isinstance(source, Env | ParallelEnv):
        game: Any = source
        theirs = {knob: value for knob, value in knobs.items() if knob not in ours}
        if theirs or (ours and _rules(game)):
            raise GameError(f"{', '.join(theirs or ours)}: knobs belong to a game that is yet to be made")
        make: Callable[[], Any] = partial(_copies, source)
    else:
        make, game, ours = _make(source, knobs, ours)
    rules = _rules(game)
    if rules is not None:
        if ours:
            raise GameError(f"{_title(source)} has rules of its own, so {', '.join(ours)} cannot be chosen")
        return rules
    if not isinstance(game, ParallelEnv):
        raise GameError(f"{_title(source)} made a {type(game).__name__}, which is not a PettingZoo ParallelEnv")
    return External(make() if isinstance(make, partial) else make, **ours)


def recipe(name: str, **knobs: Any) -> Recipe:
    """How to make the game behind a name of any form that `open_game` takes, as its author made it.

    Raises:
        GameError: an unknown id, module or knob.
    """
    found = Recipe(name, knobs)
    _first(found)
    return found


def _rules(game: Any) -> Env[Any] | None:
    if isinstance(game, Env):
        return game
    rules = getattr(getattr(game, "unwrapped", None), "rules", None)
    return rules if isinstance(rules, Env) else None


def _copies(game: Game) -> CopyOf:
    try:
        return CopyOf(str(game), save(game))
    except Exception as error:
        raise GameError(
            f"{game} cannot be copied ({type(error).__name__}: {error}), and more than one game is needed; give a "
            "function that makes it instead of the object"
        ) from error


def _make(source: Source, knobs: dict[str, Any], ours: dict[str, Any]) -> tuple[Recipe, Any, dict[str, Any]]:
    """(recipe, a first game, the knobs left for External)."""
    left = {knob: value for knob, value in ours.items() if knob != "horizon"}
    recipe = Recipe(source, {knob: value for knob, value in knobs.items() if knob not in left})
    try:
        return recipe, _first(recipe), left
    except UnknownKnob as error:
        if "horizon" not in knobs or error.knob != "horizon":
            raise
    recipe = Recipe(source, {knob: value for knob, value in knobs.items() if knob not in ours})
    return recipe, _first(recipe), ours


class UnknownKnob(GameError):
    """The game takes no argument of that name."""

    def __init__(self, title: str, knob: str, known: list[str]) -> None:
        self.knob = knob
        listed = f"; its knobs are {', '.join(known)}" if known else ""
        super().__init__(f"{title} has no knob {knob!r}{_closest(knob, known)}{listed}")


def _first(recipe: Recipe) -> Any:
    """Make a game; what its constructor complains of becomes one sentence."""
    factory = _factory(recipe.source)
    try:
        return factory(**recipe.knobs)
    except TypeError as error:
        match = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        if match is None:
            raise GameError(f"{recipe} could not be made: {error}") from error
        raise UnknownKnob(_title(recipe.source), match[1], _known(factory)) from error
    except ValueError:
        raise  # a game of ours, or one that says in its own words what is wrong
    except FailedToImport as error:
        raise GameError(f"{recipe} could not be made: {error}") from error
    except Exception as error:
        raise GameError(f"{recipe} could not be made: {type(error).__name__}: {error}") from error


def _known(factory: Callable[..., Any]) -> list[str]:
    """Names of a factory's arguments; those of the game inside where the factory passes all on."""
    for target in (factory, _inner(factory)):
        parameters = inspect.signature(target).parameters.values() if target is not None else ()
        if parameters and all(p.kind is not p.VAR_KEYWORD for p in parameters):
            return [p.name for p in parameters if p.name != "self"]
    return []


def _inner(factory: Callable[..., Any]) -> Any:
    try:
        return type(factory().unwrapped).__init__
    except Exception:  # it cannot be made without arguments: then there is nothing to list
        return None


def _factory(source: Any) -> Callable[..., Any]:
    """What makes the game that a source names."""
    if isinstance(source, str):
        return _named(source)
    if isinstance(source, ModuleType):
        return _parallel_env(source)
    if callable(source):
        return source
    raise GameError(
        f"{source!r} is no game: give a name, a PettingZoo ParallelEnv, a function that makes one, or an Env"
    )


def _named(name: str) -> Callable[..., Any]:
    module, colon, inside = name.partition(":")
    if colon and "/" in inside:
        _import(module, name)
        return _registered(inside)
    if colon:
        found: Any = _import(module, name)
        for part in inside.split("."):
            if not hasattr(found, part):
                near = _closest(part, [word for word in dir(found) if not word.startswith("_")])
                raise GameError(f"{name}: {module} has no {inside!r}{near}")
            found = getattr(found, part)
        if not callable(found):
            raise GameError(f"{name}: {inside} is a {type(found).__name__}, not a function that makes a game")
        return found
    if "/" in name:
        return _registered(name)
    if f"credit/{name}-v0" in pettingzoo.parallel_registry:
        return _registered(f"credit/{name}-v0")
    return _parallel_env(_import(name, name))


def _registered(name: str) -> Callable[..., Any]:
    try:
        pettingzoo.spec("parallel", name)
    except PettingZooRegistryError:
        known = list(pettingzoo.parallel_registry)
        try:
            pettingzoo.spec("aec", name)
        except PettingZooRegistryError:
            near = _closest(name.replace("_v", "-v"), known)
            raise GameError(f"there is no game {name!r}{near}; PettingZoo knows {len(known)}") from None
        raise GameError(f"{name} is turn-based (AEC) only; all agents must act at once (ParallelEnv)") from None
    return partial(pettingzoo.make, "parallel", name)


def _import(module: str, name: str) -> ModuleType:
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name and (module == error.name or module.startswith(error.name + ".")):
            raise GameError(f"{name}: there is no module {error.name!r}{_closest(name, _nearby(error.name))}") from None
        raise GameError(f"{name}: importing {module} failed: {error}") from error
    except (ImportError, TypeError, ValueError) as error:
        raise GameError(f"{name}: importing {module!r} failed: {error}") from error


def _nearby(missing: str) -> list[str]:
    """Names that a missing module may have been meant to be: its sisters, or a game of ours."""
    parent, _, _ = missing.rpartition(".")
    if parent:
        return [f"{parent}.{sister.name}" for sister in iter_modules(import_module(parent).__path__)]
    return [re.sub(r"^credit/|-v\d+$", "", known) for known in pettingzoo.parallel_registry]


def _parallel_env(module: ModuleType) -> Callable[..., Any]:
    found = getattr(module, "parallel_env", None)
    if not callable(found):
        wrapped = f"envs.{module.__name__}"  # a game that is no ParallelEnv may have an adapter of that name here
        near = f" (did you mean {wrapped!r}?)" if "." not in module.__name__ and find_spec(wrapped) else ""
        raise GameError(f"{module.__name__} has no parallel_env, so it names no game{near}; give module:callable")
    return found


def _title(source: Any) -> str:
    return source if isinstance(source, str) else str(getattr(source, "__name__", source))


def _closest(word: str, known: list[str]) -> str:
    close = get_close_matches(word, known, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
