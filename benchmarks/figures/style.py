"""One look for every figure: a method keeps its colour everywhere, and the small print says what one is looking at.

Families are told apart by hue and marker, methods within a family by lightness and dash: nothing rests on colour alone.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, ParamSpec

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from benchmarks.figures import Data
from marl import results

if TYPE_CHECKING:
    import pandas as pd

P = ParamSpec("P")

COLUMN, PAGE = 3.4, 7.1
"""Width in inches of one column of a paper, and of its page (or a slide)."""

# Hues after Okabe & Ito (2008); lightness differs within a family, so neighbours survive colour blindness and print.
# The numbers of colours and of dashes share no factor: a family of up to thirty never repeats a pair.
COLOURS = {
    "baseline": ("#6e6e6e", "#ababab", "#484848"),
    "spatial": ("#0072b2", "#56b4e9", "#00386b", "#4d7fff", "#8a6fd8", "#9ad0ff"),
    "temporal": ("#d55e00", "#e69f00", "#8c2d04", "#ff8f6b", "#b35c44", "#f5c56b"),
    "joint": ("#009e73", "#6fdcb5", "#004d38", "#1f6f78", "#5c8a2e", "#b4e09c"),
    "reference": ("#000000",),
}
MARKERS = {"baseline": "x", "spatial": "o", "temporal": "s", "joint": "^", "reference": "*"}
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.5, 1)), (0, (5, 1, 1.5, 1)), (0, (8, 2)))
UNKNOWN = "baseline"  # how a family that this table does not know is drawn
DAGGER = "\N{DAGGER}"

RC: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 7.0,
    "axes.titlesize": 7.0,
    "axes.labelsize": 7.0,
    "xtick.labelsize": 6.0,
    "ytick.labelsize": 6.0,
    "legend.fontsize": 6.5,
    "legend.frameon": False,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "lines.linewidth": 1.2,
    "pdf.fonttype": 42,
}
_PRINT_SIZE = 5.0  # points
_PRINT_LINE = 1.35 * _PRINT_SIZE / 72  # inches
_PRINT_LETTERS = 72 / (0.56 * _PRINT_SIZE)  # letters an inch


class Look(NamedTuple):
    """How one method appears in every figure."""

    name: str  # as in the column `method`
    label: str  # the name, with a dagger if privileged
    family: str
    rank: int  # position within its family
    privileged: bool

    @property
    def colour(self) -> str:
        ramp = COLOURS.get(self.family, COLOURS[UNKNOWN])
        return ramp[self.rank % len(ramp)]

    @property
    def dash(self) -> Any:
        return DASHES[self.rank % len(DASHES)]

    @property
    def marker(self) -> str:
        return MARKERS.get(self.family, MARKERS[UNKNOWN])

    @property
    def family_colour(self) -> str:
        return COLOURS.get(self.family, COLOURS[UNKNOWN])[0]

    def line(self, label: str | None = None, dash: Any = None) -> Line2D:
        """Its entry in a legend."""
        words, stroke = label or self.label, dash or self.dash
        return Line2D([], [], color=self.colour, linestyle=stroke, marker=self.marker, markersize=3.5, label=words)


def looks(rows: pd.DataFrame) -> list[Look]:
    """The methods of a table, by family, then rank."""
    methods = rows[["method", "family", "rank", "privileged"]].drop_duplicates("method")
    order = list(COLOURS)
    found = [
        Look(name, f"{name}\N{NO-BREAK SPACE}{DAGGER}" if privileged else name, family, int(rank), bool(privileged))
        for name, family, rank, privileged in methods.itertuples(index=False)
    ]
    place = {family: k for k, family in enumerate(order)}
    return sorted(found, key=lambda look: (place.get(look.family, len(order)), look.family, look.rank, look.name))


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Draw under this page's settings, whatever the caller's are."""

    @wraps(draw)
    def inside(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with mpl.rc_context(RC):
            return draw(*args, **kwargs)

    return inside


def page(width: float, height: float, data: Data, note: str) -> tuple[Figure, SubFigure]:
    """A figure and the part of it to draw on (inches); below that part stands the small print with `note`."""
    lines = textwrap.wrap(small_print(data, note), int(width * _PRINT_LETTERS), break_on_hyphens=False)
    block = len(lines) * _PRINT_LINE + 0.06
    figure = Figure(figsize=(width, height + block), layout="constrained")
    upper, lower = figure.subfigures(2, 1, squeeze=False, height_ratios=[height, block]).flat
    base = {"fontsize": _PRINT_SIZE, "color": "#555555", "va": "bottom", "linespacing": 1.2}
    lower.text(0.06 / width, 0.03 / block, "\n".join(lines), **base)
    return figure, upper


def small_print(data: Data, note: str) -> str:
    """What a reader must know to believe a figure, in one paragraph."""
    games = sorted({config["game"] for config in data.configs})
    seeds = sorted({len(config["seeds"]) for config in data.configs if "seeds" in config})
    steps = sorted({config["steps"] for config in data.configs if "steps" in config})
    parts = [f"{', '.join(games)}: {_knobs(data.configs)}" if _knobs(data.configs) else ", ".join(games)]
    if seeds:
        parts.append(f"{_range(seeds)} seed{'s' if seeds != [1] else ''}")
    if steps:
        parts.append(f"{_range(steps)} environment steps per seed")
    parts += [note.rstrip("."), _tuned(data.configs), _versions(data.configs)]
    if any(config["method"]["privileged"] for config in data.configs):
        parts.append(f"{DAGGER}\N{NO-BREAK SPACE}privileged: uses a simulator, hidden state or a known safe action")
    return ". ".join(part for part in parts if part) + "."


def _tuned(configs: Sequence[dict[str, Any]]) -> str:
    """How many methods do not have their own settings, and whose they have; empty where all do."""
    searches = sorted({config["tuned"] for config in configs if "tuned" in config})
    if not searches:
        return ""
    every, mine = ({c["method"]["name"] for c in configs if "tuned" in c or not only} for only in (False, True))
    whose = f"{len(mine)} of {len(every)} methods" if mine != every else "All methods" if len(every) > 1 else "Method"
    return f"{whose} with tuned settings (search {', '.join(searches)})"


def settings(data: Data) -> list[tuple[str, str, str]]:
    """(game, knobs as JSON text, a short label that names what varies) of every game setting, in order of its knobs."""
    found = {(config["game"], results.canonical(config["knobs"])): config for config in data.configs}
    games = {game for game, _ in found}
    vary = {game: varying([config for config in data.configs if config["game"] == game]) for game in games}
    names, several = varying(data.configs), len(games) > 1

    def label(game: str, knobs: dict[str, Any]) -> str:
        words = [f"{name}={short(knobs[name])}" for name in vary[game]]
        return ", ".join(([game.removeprefix("credit/")] if several or not words else []) + words)

    def key(item: tuple[tuple[str, str], dict[str, Any]]) -> tuple[Any, ...]:
        (game, text), config = item
        return (game, *(order(config["knobs"].get(name)) for name in names), text)

    return [(game, text, label(game, config["knobs"])) for (game, text), config in sorted(found.items(), key=key)]


def varying(configs: Sequence[dict[str, Any]]) -> list[str]:
    """Knobs with more than one value in these cells."""
    values: dict[str, set[str]] = {}
    for config in configs:
        for name, value in config["knobs"].items():
            values.setdefault(name, set()).add(json.dumps(value))
    return [name for name, seen in values.items() if len(seen) > 1]


def short(value: object) -> str:
    """A knob's value in few letters."""
    return f"{value:g}" if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


def metric(data: Data, *names: str) -> str | None:
    """The first of these metrics that is defined somewhere."""
    defined = set(data.rows.loc[data.rows["value"].notna(), "metric"])
    return next((name for name in names if name in defined), None)


def table(rows: pd.DataFrame, columns: str) -> NDArray[np.float64]:
    """Values as [seeds, columns], NaN where a run has none."""
    return rows.pivot_table(index="seed", columns=columns, values="value", dropna=False).to_numpy(dtype=float)


def save(figure: Figure, stem: Path) -> list[Path]:
    """Write `stem`.png (200 dpi) and `stem`.pdf and return their paths."""
    paths = [stem.with_name(f"{stem.name}.{kind}") for kind in ("png", "pdf")]
    with mpl.rc_context(RC):
        figure.savefig(paths[0], dpi=200)
        figure.set_layout_engine("none")  # what was laid out stays, and is not worked out again
        figure.savefig(paths[1], metadata={"CreationDate": None})
    return paths


def plain_line(label: str) -> Line2D:
    """A legend's entry for what is no method: a yardstick, drawn grey."""
    return Line2D([], [], color="#888888", linestyle=(0, (2, 1)), marker="o", markersize=3.5, label=label)


def wrap(text: str, letters: int) -> str:
    """A title on as many lines as it needs."""
    return "\n".join(textwrap.wrap(text, letters))


def _range(values: Sequence[int]) -> str:
    return f"{values[0]:,}" if len(values) == 1 else f"{values[0]:,} to {values[-1]:,}"


def _knobs(configs: Sequence[dict[str, Any]]) -> str:
    """Each knob with its values; those that vary first."""
    values: dict[str, list[Any]] = {}
    for config in configs:
        for name, value in config["knobs"].items():
            seen = values.setdefault(name, [])
            if value not in seen:
                seen.append(value)
    ordered = sorted(values.items(), key=lambda item: len(item[1]) == 1)
    return ", ".join(f"{name}={'/'.join(map(short, sorted(seen, key=order)))}" for name, seen in ordered)


def order(value: object) -> tuple[float, str]:
    """A sorting key for values of knobs: numbers by size, then everything else by its text."""
    return (value, "") if isinstance(value, int | float) else (float("inf"), str(value))


def _versions(configs: Sequence[dict[str, Any]]) -> str:
    """Package versions, the newest cell's where they differ (then said), and the commits."""
    stored = [config["provenance"] for config in configs]
    newest = max(stored, key=lambda p: str(p["date"]))
    names = ("credit-sandbox", "torch", "numpy", "pettingzoo", "python")
    words = [f"{name} {newest[name]}" for name in names if newest.get(name)]
    hashes = {str(p["commit"]) for p in stored if p.get("commit")}
    commits = sorted(commit[:7] + "-dirty" * commit.endswith("-dirty") for commit in hashes)
    if commits:
        words.insert(1, f"commit {commits[0]}" if len(commits) == 1 else f"{len(commits)} commits, one {commits[0]}")
    return ", ".join(words)
