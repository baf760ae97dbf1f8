"""The games on a command line: what there is, one game in full, one episode as text or GIF.

python -m envs                                                         every game in a few lines
python -m envs show NAME [knob=value ...]                              one game in full
python -m envs play NAME [--policy random|optimal] [--gif out.gif]     one episode
                    [--seed 0] [--fps 4] [knob=value ...]
"""

from __future__ import annotations

import argparse
import inspect
import re
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

import envs
from envs.base import CAPABILITIES, Drawable, Env, capabilities
from envs.check import parse_knobs
from envs.play import POLICIES, describe, frames, name_of, play

WIDTH = 100
NEEDLESS = "None (not lower than the optimal return, or not known)"


def main(arguments: Sequence[str] = ()) -> int:
    """The command line; returns 0, or 2 after one line on stderr if the question was wrong."""
    commands = {"show": _show, "play": _play}
    try:
        if not arguments:
            print("\n\n".join(_summary(name) for name in envs.GAMES))
        elif arguments[0] in ("-h", "--help"):
            print(__doc__)
        elif arguments[0] in commands:
            commands[arguments[0]](arguments[1:])
        else:
            raise ValueError(f"there is no command {arguments[0]!r}; give none to list the games, or show or play")
    except (ValueError, OSError) as error:
        print(f"python -m envs: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


class _Parser(argparse.ArgumentParser):
    """One sentence instead of a usage page."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def _parser(command: str) -> _Parser:
    parser = _Parser(f"python -m envs {command}", allow_abbrev=False)
    parser.add_argument("name", metavar="NAME", help="walking_robot, or credit/walking_robot-v0")
    parser.add_argument(
        "knobs", metavar="knob=value", nargs="*", default=[], help="of the game: python -m envs show NAME"
    )
    return parser


def _game(asked: argparse.Namespace) -> Env[Any]:
    """The game that NAME and its knobs name; ValueError if there is none such."""
    knobs = parse_knobs(asked.knobs)
    try:
        return envs.rules(asked.name, **knobs)
    except TypeError as error:  # a value of a kind that the knob's check did not foresee
        raise ValueError(f"{asked.name}: {' '.join(asked.knobs)} is not allowed; {error}") from error


# --- what there is -------------------------------------------------------------------------------------------------


def _entry(title: str, words: str, column: int = 16) -> str:
    """'  title   words', wrapped, the words aligned at a column; names with their values stay whole."""
    first, later = f"  {title}".ljust(column), " " * column
    return textwrap.fill(words, WIDTH, initial_indent=first, subsequent_indent=later, break_on_hyphens=False)


def _summary(name: str) -> str:
    """A game in a few lines."""
    game = envs.rules(name)
    known = {"optimal": game.optimal_return, "reachable": game.reachable_return, "random": game.random_return}
    returns = ", ".join(f"{k} {v:.5g}" for k, v in known.items() if v is not None) or "not known"
    sizes = f"N={game.n_agents} agents, A={game.n_actions} actions, O={game.obs_size} features, T={game.horizon}"
    says = (type(game).__doc__ or "").strip().splitlines()[0]
    lines = [
        envs.game_id(name),
        textwrap.fill(says, WIDTH, initial_indent="  ", subsequent_indent="  "),
        _entry("knobs", ", ".join(f"{k}={v!r}".replace(" ", "") for k, v in _knobs(game).items())),
        _entry("sizes", sizes),
        _entry("returns", returns),
        _entry("capabilities", ", ".join(capabilities(game)) or "none"),
    ]
    return "\n".join(lines)


def _knobs(game: Env[Any]) -> dict[str, Any]:
    return {field.name: getattr(game, field.name) for field in fields(game) if field.init}  # type: ignore[arg-type]


# --- one game ------------------------------------------------------------------------------------------------------


def _show(arguments: Sequence[str]) -> None:
    """Print one game in full."""
    game = _game(_parser("show").parse_intermixed_args(arguments))
    module = inspect.getdoc(inspect.getmodule(type(game))) or ""
    print(f"{envs.game_id(name_of(game))}\n\n{module}\n\n{inspect.getdoc(type(game)) or ''}\n")
    print(
        "\n".join([*_knob_lines(game), "", *_size_lines(game), "", *_return_lines(game), "", *_capability_lines(game)])
    )


def _knob_lines(game: Env[Any]) -> list[str]:
    """Each knob, its value, its default if another, and what its game's source says is allowed."""
    ranges, values = _ranges(type(game)), _knobs(game)
    defaults = _knobs(type(game)())
    shown = {
        knob: repr(value) + ("" if value == defaults[knob] else f" (default {defaults[knob]!r})")
        for knob, value in values.items()
    }
    name, wide = max(map(len, shown)), min(28, max(map(len, shown.values())))
    return ["knobs", *(f"  {k:<{name}}  {v:<{wide}}  {ranges.get(k, '')}".rstrip() for k, v in shown.items())]


def _ranges(game: type) -> dict[str, str]:
    """{knob: what is allowed}: the comment behind its default, else its entry in the module's table of knobs."""
    comments = re.findall(r"^ {4}(\w+): .*= .*?  # (.*)$", inspect.getsource(game), re.MULTILINE)
    # Entries "name  meaning, allowed", in one or two columns that stand three spaces or more apart.
    table = re.findall(
        r"(?:^| {3,})(\w+) {2,}(.+?)(?= {3,}|$)", sys.modules[game.__module__].__doc__ or "", re.MULTILINE
    )
    return {**dict(table), **dict(comments)}


def _size_lines(game: Env[Any]) -> list[str]:
    default = game.default_action
    sizes = {
        "agents": game.n_agents,
        "actions": game.n_actions,
        "default action": default if isinstance(default, int) else " ".join(map(str, default)),
        "horizon": game.horizon,
        "observation": f"{game.obs_size} features an agent",
        "critic view": f"{game.critic_size} features",
        "noise": f"{game.reset_noise_size} uniform numbers a reset, {game.step_noise_size} a step",
    }
    return ["sizes", *(f"  {title:<15} {size}" for title, size in sizes.items())]


def _return_lines(game: Env[Any]) -> list[str]:
    def line(title: str, value: float | None, missing: str) -> str:
        return f"  {title:<15} {missing if value is None else f'{value:.6g}'}"

    return [
        "returns",
        line("optimal", game.optimal_return, "None (not known)"),
        line("reachable", game.reachable_return, NEEDLESS),
        line("random", game.random_return, "None (not known)"),
    ]


def _capability_lines(game: Env[Any]) -> list[str]:
    has = capabilities(game)
    lines = [f"  {name:<17}{(CAPABILITIES[name].__doc__ or '').splitlines()[0]}" for name in has]
    without = ", ".join(name for name in CAPABILITIES if name not in has)
    return ["capabilities", *lines, _entry("without", without or "nothing", 19)]


# --- one episode ---------------------------------------------------------------------------------------------------


def _play(arguments: Sequence[str]) -> None:
    """Print one episode, or write it as a GIF."""
    parser = _parser("play")
    parser.add_argument("--policy", default="random", metavar="|".join(POLICIES), help="who acts")
    parser.add_argument("--seed", type=int, default=0, help="the episode is the first of this seed")
    parser.add_argument("--gif", type=Path, metavar="FILE", help="write pictures here; without it, text is printed")
    parser.add_argument("--fps", type=float, default=4.0, help="frames a second of the GIF")
    asked = parser.parse_intermixed_args(arguments)
    game = _game(asked)
    if not isinstance(game, Drawable):
        raise ValueError(f"{name_of(game)} cannot be shown; it has no text and no picture")
    if asked.gif is None:
        for state, caption in frames(game, play(game, asked.policy, asked.seed)):
            print(describe(game, state, caption), end="\n\n")
        return
    from envs.animation import FASTEST, picture, save, whole_file

    if not 0 < asked.fps <= FASTEST:
        raise ValueError(f"fps={asked.fps:g} is not allowed; it must be above 0 and at most {FASTEST}")
    with whole_file(asked.gif) as file:
        shown = frames(game, play(game, asked.policy, asked.seed))
        save(file, [picture(game, state, caption) for state, caption in shown], asked.fps)
    print(f"{asked.gif}: {len(shown)} frames, {asked.gif.stat().st_size / 1e6:.2f} MB; {shown[-1][1].total}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
