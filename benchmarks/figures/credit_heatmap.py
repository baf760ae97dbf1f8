"""Who and when: the credit of each (agent, step) by each method, beside the truth, on one failed walk."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import PatchCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import ScaledTranslation
from numpy.typing import NDArray

from benchmarks.figures import Data, style
from marl import results

if TYPE_CHECKING:
    import pandas as pd

CROWD = 16  # panels from which on they stand in four columns
EPS = 0.05  # a culprit's truth is below -EPS of the episode's largest (marl.metrics says the same of scores)


class Walk(NamedTuple):
    """One episode as one method sees it."""

    seed: int
    episode: int
    value: NDArray[np.float64]  # [T, N] credit, NaN after the end
    truth: NDArray[np.float64]  # [T, N]

    @property
    def end(self) -> int:
        """How many steps were alive."""
        return int(np.sum(~np.isnan(self.value).all(axis=1)))

    @property
    def culprits(self) -> NDArray[np.bool_]:
        """[T, N]."""
        truth = np.where(np.isnan(self.value), 0.0, np.nan_to_num(self.truth))
        return truth < -EPS * max(np.abs(truth).max(), 1e-12)


class Panel(NamedTuple):
    """One map on the page."""

    title: str
    colour: str  # of the title
    walk: Walk
    values: NDArray[np.float64]  # [T, N] what is drawn: the walk's credit or its truth


def needs(data: Data) -> str:
    """Credit maps of at least one failed episode."""
    if data.credit.empty:
        return "needs credit maps"
    return "" if _choose(data.credit, {})[2] else "needs a failed episode among the credit maps"


@style.styled
def draw(
    data: Data,
    n_agents: int | None = None,
    delay: int | None = None,
    seed: int | None = None,
    episode: int | None = None,
    columns: int | None = None,
) -> Figure:
    """Panels [N, T], each divided by its own largest |value|; where methods saw different walks, truths alternate.

    Left open, the setting is the largest delay with a failed episode at the middle team size, and the walk the first
    failed one that the most methods share; columns: 2, or 4 for many panels. Raises ValueError when no failed episode
    fits what was asked for.
    """
    wanted = {"n_agents": n_agents, "delay": delay, "seed": seed, "episode": episode}
    asked = {key: value for key, value in wanted.items() if value is not None}
    game, knobs, chosen = _choose(data.credit, asked)
    if not chosen:
        raise ValueError(f"no failed episode with credit maps fits {asked}")
    label = {(g, k): words for g, k, words in style.settings(data)}[game, knobs]
    here = data.credit[(data.credit["game"] == game) & (data.credit["knobs"] == knobs)]
    walks = [(look, chosen[look.name]) for look in style.looks(here) if look.name in chosen]
    shared = all(_same(walks[0][1].truth, walk.truth) for _, walk in walks)
    panels: list[Panel] = []
    for look, walk in walks:
        if not (panels and shared):
            panels.append(Panel(f"truth, seed {walk.seed}, episode {walk.episode}", "black", walk, walk.truth))
        panels.append(Panel(look.label, look.family_colour, walk, walk.value))
    absent = [look.name for look in style.looks(here) if look.name not in chosen]
    shown = [c for c in data.configs if c["game"] == game and results.canonical(c["knobs"]) == knobs]
    return _page(
        data._replace(configs=shown),
        panels,
        min(columns or (2 if len(panels) <= CROWD else 4), len(panels)),
        label,
        absent,
    )


def failed_walk(credit: pd.DataFrame) -> dict[str, Walk]:
    """{method: the failed walk that most methods share}, of one game setting; empty where no episode failed."""
    return _choose(credit, {})[2]


def _page(data: Data, panels: list[Panel], columns: int, label: str, absent: list[str]) -> Figure:
    deep = -(-len(panels) // columns)
    tallest = max(panel.values.shape[1] for panel in panels)
    note = (
        "Red: blamed, blue: credited; each panel is divided by its own largest |value|: compare patterns, not sizes. "
        "Box and star: a culprit; line: the end of the episode, grey beyond it. One episode, no interval"
    )
    if absent:
        note += f". No failed episode, so not shown: {', '.join(absent)}"
    height = deep * (0.34 + min(1.0, max(0.36, 0.07 * tallest))) + 0.5
    figure, body = style.page(style.PAGE, height, data, note)
    grid = body.subplots(deep, columns, squeeze=False, sharex=True, sharey=True)
    colours = ScalarMappable(Normalize(-1.0, 1.0), "RdBu")
    for k, axes in enumerate(grid.flat):
        if k >= len(panels):
            axes.set_axis_off()
            continue
        panel = panels[k]
        _panel(axes, panel, colours)
        axes.set_title(panel.title, color=panel.colour, fontweight="bold", fontsize=6.5, pad=2)
        below = k // columns == deep - 1
        axes.tick_params(labelbottom=below)
        axes.set_xlabel("step" if below else "")
        axes.set_ylabel("agent" if k % columns == 0 else "")
    bar = body.colorbar(colours, ax=grid, aspect=30, shrink=0.8, pad=0.02)
    bar.set_label("credit / largest |credit| of the panel")
    bar.outline.set_linewidth(0.4)
    body.suptitle(f"{label}: credit of each agent at each step of one failed episode", fontsize=7)
    return figure


def _panel(axes: Axes, panel: Panel, colours: ScalarMappable) -> None:
    """One map with its stars and its end."""
    walk, steps = panel.walk, len(panel.values)
    living = np.where(np.isnan(walk.value), np.nan, panel.values)
    largest = np.nanmax(np.abs(living), initial=0.0)
    scaled = living / largest if largest > 0 else living
    axes.set_facecolor("#d9d9d9")
    axes.imshow(scaled.T, cmap=colours.cmap, vmin=-1.0, vmax=1.0, aspect="auto", interpolation="nearest")
    if walk.end < steps:
        axes.axvline(walk.end - 0.5, color="#222222", linewidth=0.9)
    t, agent = np.nonzero(walk.culprits)
    right = ScaledTranslation(4.5 / 72, 0, axes.figure.dpi_scale_trans)
    beside = axes.transData + right
    cells = [Rectangle((x - 0.5, y - 0.5), 1, 1) for x, y in zip(t, agent, strict=True)]
    axes.add_collection(PatchCollection(cells, facecolor="none", edgecolor="black", linewidth=0.4))
    axes.scatter(
        t + 0.5, agent, 22, "#ffd700", marker="*", edgecolors="black", linewidths=0.5, zorder=5, transform=beside
    )
    axes.set_xlim(-0.5, steps - 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
    axes.spines[:].set_visible(False)


def _same(a: NDArray[np.float64], b: NDArray[np.float64]) -> bool:
    return a.shape == b.shape and bool(np.allclose(a, b, equal_nan=True, atol=1e-9))


def _choose(credit: pd.DataFrame, asked: dict[str, int]) -> tuple[str, str, dict[str, Walk]]:
    """(game, knobs, {method: walk}) of one game setting; no walks where no episode failed."""
    for name, value in asked.items():
        credit = credit[credit[name] == value] if name in credit else credit.iloc[:0]
    failed = credit if credit.empty else _failed(credit)
    if failed.empty:
        return "", "", {}
    game, knobs = _setting(failed)
    failed = failed[(failed["game"] == game) & (failed["knobs"] == knobs)]
    shared = failed.groupby(["seed", "episode"])["method"].nunique()
    most = shared[shared == shared.max()].index[0]
    chosen = {}
    for method, own in failed.groupby("method"):
        walks = list(own[["seed", "episode"]].itertuples(index=False, name=None))
        chosen[str(method)] = _walk(credit, game, knobs, str(method), *(most if most in walks else walks[0]))
    return game, knobs, chosen


def _failed(credit: pd.DataFrame) -> pd.DataFrame:
    """The (setting, method, seed, episode) that ended early; where none did, those with a negative truth."""
    keys = ["game", "knobs", "method", "seed", "episode"]
    keys += [name for name in ("n_agents", "delay") if name in credit]
    frame = credit.assign(dead=credit["value"].isna(), blame=credit["truth"].fillna(0.0))
    episodes = frame.groupby(keys, dropna=False).agg(dead=("dead", "any"), low=("blame", "min"), high=("blame", "max"))
    episodes = episodes.reset_index()
    guilty = episodes["low"] < -EPS * episodes["high"].clip(lower=0)
    early = episodes["dead"] & guilty
    return episodes[early if early.any() else guilty]


def _setting(failed: pd.DataFrame) -> tuple[str, str]:
    """The game and knobs with the largest delay and, there, the middle number of agents."""
    if "delay" in failed and failed["delay"].notna().any():
        failed = failed[failed["delay"] == failed["delay"].max()]
    if "n_agents" in failed and failed["n_agents"].notna().any():
        sizes = sorted(failed["n_agents"].dropna().unique())
        failed = failed[failed["n_agents"] == sizes[(len(sizes) - 1) // 2]]
    first = failed.sort_values(["game", "knobs"]).iloc[0]
    return str(first["game"]), str(first["knobs"])


def _walk(credit: pd.DataFrame, game: str, knobs: str, method: str, seed: int, episode: int) -> Walk:
    own = credit[(credit["game"] == game) & (credit["knobs"] == knobs) & (credit["method"] == method)]
    own = own[(own["seed"] == seed) & (own["episode"] == episode)]
    value, truth = (own.pivot(index="t", columns="agent", values=v).to_numpy(float) for v in ("value", "truth"))
    return Walk(seed, episode, value, truth)


FIGURES = {"credit_heatmap": draw}
