"""One page a run: figures, tables, the exact command, configuration and versions, in one file that opens offline."""

from __future__ import annotations

import base64
import io
import json
import struct
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO

import numpy as np
from numpy.typing import NDArray

from benchmarks.figures import Data, style
from marl import statistics
from marl.results import canonical, cell_id, provenance, write_file

if TYPE_CHECKING:
    import pandas as pd

NAME = "report.html"
BASELINE = "team + return"
HEADLINE = "phase_map"
NONE = "\N{EN DASH}"
PAGE = Path(__file__).with_name("report_page.html")
LONG = 40  # letters, from which words in a table may be broken into lines
DOTS = 200 / 2  # pixels of a PNG per CSS inch at which a figure is shown


class Picture(NamedTuple):
    """One figure of the page."""

    stem: str  # its file name
    caption: str  # the sentence that its file opens with
    png: Path
    headline: bool = False  # one that a single question draws


class Table(NamedTuple):
    """Words to be set as rows and columns."""

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


def write(
    target: Path, data: Data, pictures: Sequence[Picture], commands: Sequence[Mapping[str, str]], left: Sequence[str]
) -> Path:
    """Put the page at `target`/report.html, whole or not at all, and return its path.

    Args:
        pictures: figures drawn, PNG files.
        commands: the command lines that computed the cells, oldest first: "command" and "started" each.
        left: sentences about figures that were not drawn.
    Raises:
        ResultsError: the disk is full or the folder not writable.
    """
    write_file(target / NAME, page(data, pictures, commands, left).encode())
    return target / NAME


class Tee(io.StringIO):
    """What is printed, kept for a report and passed on."""

    def __init__(self, to: TextIO) -> None:
        super().__init__()
        self.to = to

    def write(self, text: str) -> int:
        """Keep it and pass it on, at once."""
        self.to.write(text)
        self.to.flush()
        return super().write(text)


def page(
    data: Data, pictures: Sequence[Picture], commands: Sequence[Mapping[str, str]], left: Sequence[str] = ()
) -> str:
    """The whole document. Nothing in it is loaded from anywhere."""
    question = str(data.configs[0].get("question"))
    dates = sorted(str(config["provenance"]["date"]) for config in data.configs)
    tables = [t for t in (summary(data), by_setting(data), differences(data), budgets(data)) if t is not None]
    games = len(style.settings(data))
    methods = len({config["method"]["name"] for config in data.configs})
    seeds = sorted({len(config["seeds"]) for config in data.configs if "seeds" in config})
    told = f"{games} game setting{'s' * (games != 1)}, {methods} method{'s' * (methods != 1)}"
    told += f", {' to '.join(map(str, seeds[:1] + seeds[1:][-1:]))} seeds" if seeds else ""
    shown = "\n".join(map(_table, tables))
    return document(
        question,
        f"{told}; computed {moment(dates[0])} to {moment(dates[-1])} UTC.",
        {
            "Command": _commands(commands),
            "Results": f"{shown}\n<details><summary>All metrics</summary>\n{_table(everything(data))}\n</details>",
            "Figures": _figures(pictures) + _items(left),
            "Configuration": f"<p>{escape(style.small_print(data, ''))}</p>\n{_configuration(data)}",
            "Versions": _table(versions(data.configs)),
        },
    )


def write_plain(
    target: Path,
    title: str,
    summary: str,
    commands: Sequence[Mapping[str, str]],
    said: Table | str,
    pictures: Sequence[Picture] = (),
    configs: Sequence[Mapping[str, Any]] | None = None,
) -> Path:
    """The page of a question that is no sweep of training: one table or what was printed, figures, command, versions.

    configs: of the cells that it is made of; None: the versions are those of now. Raises ResultsError as `write`.
    """
    parts = {
        "Command": _commands(commands),
        "Results": _table(said)
        if isinstance(said, Table)
        else f'<pre class="box wide" role="region" tabindex="0" aria-label="Results"><code>{escape(said)}</code></pre>',
        "Figures": _figures(pictures) if pictures else "",
        "Versions": _table(versions([{"provenance": provenance()}] if configs is None else configs)),
    }
    write_file(target / NAME, document(title, summary, parts).encode())
    return target / NAME


def document(title: str, summary: str, parts: Mapping[str, str]) -> str:
    """The whole page of {heading: HTML}; parts without content are left out."""
    there = {head: body for head, body in parts.items() if body}
    sections = [f'<section>\n<h2 id="{head.lower()}">{head}</h2>\n{body}\n</section>' for head, body in there.items()]
    return Template(PAGE.read_text(encoding="utf-8")).substitute(
        title=escape(title),
        summary=escape(summary),
        nav="".join(f'<a href="#{head.lower()}">{head}</a>' for head in there),
        parts="\n".join(sections),
    )


# --- what the tables say ----------------------------------------------------------------------------------------------


def summary(data: Data) -> Table | None:
    """Final score over all settings: IQM, median, optimality gap, each with its interval."""
    rows = data.rows[data.rows["metric"] == "final_score"]
    if style.metric(data, "final_score") is None:
        return None
    columns = {"IQM": statistics.iqm, "median": statistics.median, "optimality gap": statistics.optimality_gap}
    out = []
    for look in style.looks(rows):
        runs = style.table(rows[rows["method"] == look.name], "cell")
        found = [statistics.interval(runs, statistic) for statistic in columns.values()]
        out.append([look.label, look.family, *map(number, found), f"{found[0].runs}"])
    caption = (
        "Final score over all game settings (0 random play, 1 best reachable). In brackets: 95% stratified bootstrap "
        "intervals over seeds. Optimality gap: the mean of what is missing to score 1."
    )
    return Table(caption, ["method", "family", *columns, "runs"], out)


def by_setting(data: Data) -> Table | None:
    """Final score, or return where no optimum is known, of each method in each setting."""
    metric = style.metric(data, "final_score", "final_return")
    if metric is None:
        return None
    rows = data.rows[data.rows["metric"].isin(("final_score", "final_return"))]
    settings = style.settings(data)
    scored = {
        tuple(x) for x in rows.loc[rows["metric"] == "final_score", ["game", "knobs"]].drop_duplicates().to_numpy()
    }
    kind = {(game, knobs): "final_score" if (game, knobs) in scored else "final_return" for game, knobs, _ in settings}
    out = []
    for look in style.looks(rows):
        words = [look.label]
        for game, knobs, _ in settings:
            here = rows[(rows["game"] == game) & (rows["knobs"] == knobs) & (rows["metric"] == kind[game, knobs])]
            runs = here.loc[here["method"] == look.name, "value"].to_numpy()
            words.append(number(statistics.interval(runs)) if runs.size else NONE)
        out.append(words)
    head = [label + " (return)" * (kind[g, k] == "final_return" and bool(scored)) for g, k, label in settings]
    what = "Final score" if scored else "Final return"
    caption = f"{what} in each game setting: IQM over seeds, and its 95% bootstrap interval."
    return Table(caption, ["method", *head], out)


def differences(data: Data) -> Table | None:
    """Each method minus the baseline on the same seeds and settings."""
    metric = style.metric(data, "final_score", "final_return")
    rows = data.rows[data.rows["metric"] == metric]
    methods = style.looks(rows)
    base = next((look for look in methods if look.name == BASELINE), methods[0] if methods else None)
    if (
        metric is None
        or base is None
        or len(methods) < 2
        or (metric == "final_return" and len(style.settings(data)) > 1)
    ):
        return None
    runs = paired(rows)
    out = []
    for look in methods:
        if look.name == base.name:
            continue
        ours, theirs = runs[look.name], runs[base.name]
        difference = statistics.paired_difference(ours, theirs)
        share = statistics.paired_improvement(ours, theirs)
        out.append([look.label, number(difference), number(share), f"{difference.runs}"])
    caption = (
        f"Each method minus {base.label}, seed by seed: both met the same evaluation noise. IQM of the differences of "
        f"the {metric.replace('_', ' ')} with its 95% bootstrap interval over pairs; share of pairs that the method "
        "wins (ties count half) with Wilson's interval."
    )
    return Table(caption, ["method", f"difference from {base.label}", "share of pairs won", "pairs"], out)


def paired(rows: pd.DataFrame) -> dict[str, NDArray[np.float64]]:
    """{method: [seeds, settings]}, the same seeds and settings in the same order; NaN where a run is missing."""
    wide = rows.pivot_table(index="seed", columns=["method", "game", "knobs"], values="value", dropna=False)
    places = list(dict.fromkeys((game, knobs) for _, game, knobs in wide.columns))
    nothing = np.full(len(wide), np.nan)
    column = {key: wide[key].to_numpy(dtype=float) for key in wide.columns}
    names = dict.fromkeys(name for name, *_ in wide.columns)
    return {name: np.column_stack([column.get((name, *place), nothing) for place in places]) for name in names}


def budgets(data: Data) -> Table:
    """What each method cost: both kinds of steps and wall-clock."""
    out = []
    for look in style.looks(data.rows):
        last = (
            data.rows[data.rows["method"] == look.name]
            .groupby(["cell", "seed"])[["env_steps", "simulator_steps"]]
            .max()
        )
        seconds = data.rows[data.rows["method"] == look.name].groupby("cell")["seconds"].max()
        needs = next(c["method"].get("needs", []) for c in data.configs if c["method"]["name"] == look.name)
        spans = [span(last[name]) for name in ("env_steps", "simulator_steps")]
        out.append([look.label, *spans, f"{seconds.sum():,.1f}", f"{len(seconds)}", ", ".join(needs) or "nothing"])
    caption = (
        "Cost per seed. Simulator steps are counterfactual ones, beyond the environment steps. Seconds: wall-clock of "
        f"all cells of the method together, all seeds. {style.DAGGER} privileged: uses a simulator, hidden state or a "
        "known safe action."
    )
    head = ["method", "environment steps", "simulator steps", "seconds", "cells", "needs"]
    return Table(caption, head, out)


def everything(data: Data) -> Table:
    """Every metric at its last measurement, over all settings."""
    rows = data.rows
    last = rows.groupby(["cell", "metric"])["env_steps"].transform("max") == rows["env_steps"]
    looks = style.looks(rows)
    found = rows[last].groupby(["metric", "method"])["value"].agg(lambda v: float(statistics.iqm(v)))
    value = dict(zip(found.index, found, strict=True))
    names = sorted(set(rows["metric"]))
    out = [[name, *(plain(value.get((name, look.name), np.nan)) for look in looks)] for name in names]
    caption = "Every metric at the last point where it was measured: IQM over seeds and settings. A dash: undefined."
    return Table(caption, ["metric", *(look.label for look in looks)], out)


def versions(configs: Sequence[Mapping[str, Any]]) -> Table:
    """Version of every package and the commit, as stored with the cells."""
    stored = [config["provenance"] for config in configs]
    names = dict.fromkeys(name for one in stored for name in one)
    out = []
    for name in names:
        values = sorted({str(one.get(name)) for one in stored if one.get(name)})
        text = f"{values[0]} to {values[-1]}" if name == "date" and len(values) > 1 else ", ".join(values)
        out.append([name, text or "unknown"])
    return Table(
        "Versions that computed this; a commit with \N{NON-BREAKING HYPHEN}dirty had uncommitted changes.",
        ["what", "version"],
        out,
    )


# --- words and HTML ---------------------------------------------------------------------------------------------------


def number(found: statistics.Estimate) -> str:
    """0.71 [0.60, 0.80]; a dash where undefined."""
    words = plain(float(found.value))
    if np.isnan(found.low):
        return words
    return f"{words} [{plain(float(found.low))}, {plain(float(found.high))}]"


def plain(value: float) -> str:
    """Two decimals, or three digits where there are more before the point; a dash where undefined."""
    if np.isnan(value):
        return NONE
    return f"{value:z,.2f}" if abs(value) < 100 else f"{value:,.0f}"


def moment(stored: str) -> str:
    """2026-01-31T12:30:05+00:00 -> 2026-01-31 12:30."""
    return stored[:16].replace("T", " ")


def span(values: pd.Series[int]) -> str:
    """30,720, or 10,000 to 30,720."""
    low, high = int(values.min()), int(values.max())
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _table(table: Table) -> str:
    """A box that scrolls by itself where the page is narrow."""
    head = "".join(f'<th scope="col">{escape(word)}</th>' for word in table.head)
    rows = "\n".join(
        f'<tr><th scope="row">{escape(first)}</th>{"".join(map(_datum, rest))}</tr>' for first, *rest in table.rows
    )
    box = f'<div class="box" role="region" tabindex="0" aria-label="{escape(table.caption.split(".")[0])}">'
    inside = f"<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody>"
    return f'<p class="caption">{escape(table.caption)}</p>\n{box}<table>\n{inside}\n</table></div>'


def _datum(word: str) -> str:
    """Numbers stay on one line, sentences do not."""
    kind = ' class="long"' if len(word) > LONG else ""
    return f"<td{kind}>{escape(word)}</td>"


def _figures(pictures: Sequence[Picture]) -> str:
    note = "Every figure is also a file of its own. Where the page is narrow, figures and tables scroll sideways."
    drawn = "\n".join(map(_figure, sorted(pictures, key=_place)))
    return f"<p>{note}</p>\n{drawn}" if drawn else "<p>No figure could be drawn from these results.</p>"


def _place(picture: Picture) -> bool:
    """The main job's figure, and those that a single question draws, come before the rest."""
    return not (picture.headline or picture.stem == HEADLINE)


def _figure(picture: Picture) -> str:
    content = picture.png.read_bytes()
    width, height = struct.unpack(">II", content[16:24])  # of the PNG's header
    title = picture.stem.replace("_", " ")
    source = "data:image/png;base64," + base64.b64encode(content).decode("ascii")
    alt = f"Figure {title}: {picture.caption}"
    image = (
        f'<img src="{source}" alt="{escape(alt)}" width="{width}" height="{height}" '
        f'style="min-width: {min(width, 700)}px; max-width: min(100%, {round(width * 96 / DOTS)}px)">'
    )
    box = f'<div class="box" role="region" tabindex="0" aria-label="Figure {escape(title)}">{image}</div>'
    said = f"<figcaption><b>{escape(title)}.</b> {escape(picture.caption)}</figcaption>"
    return f'<figure id="{escape(picture.stem)}">{box}{said}</figure>'


def _commands(commands: Sequence[Mapping[str, str]]) -> str:
    if not commands:
        return "<p>The command was not stored with these results.</p>"
    # A line may end between words, but not within --an-option.
    words = [" ".join(f"<span>{escape(word)}</span>" for word in c["command"].split(" ")) for c in commands]
    return "\n".join(
        f"<pre><code>{line}</code></pre>\n<p>Started {escape(moment(c['started']))} UTC.</p>"
        for line, c in zip(words, commands, strict=True)
    )


def _items(sentences: Iterable[str]) -> str:
    items = "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences)
    box = f"<details><summary>Figures that these results do not support</summary><ul>{items}</ul></details>"
    return box if items else ""


def _configuration(data: Data) -> str:
    """What all cells share, then what each method is, then the list of cells."""
    bare = [{k: v for k, v in config.items() if k != "provenance"} for config in data.configs]
    shared = {k: v for k, v in bare[0].items() if all(k in c and canonical(c[k]) == canonical(v) for c in bare)}
    methods: dict[str, dict[str, Any]] = {}
    for config in bare:
        of_method: dict[str, Any] = {k: config[k] for k in ("method", "learner") if k in config and k not in shared}
        methods.setdefault(config["method"]["name"], of_method)
    cells = [
        [cell_id(c), c["method"]["name"], c["game"], " ".join(f"{k}={json.dumps(v)}" for k, v in c["knobs"].items())]
        for c in data.configs
    ]
    listed = Table("Every cell: its id is the name of its files.", ["cell", "method", "game", "knobs"], cells)
    seeds = sorted({canonical(c["seeds"]) for c in bare if "seeds" in c})
    return "\n".join(
        [
            f"<p>Seeds: {escape('; '.join(seeds) or 'none')}</p>",
            _json("What all cells share", shared),
            _json("Methods and learners", methods),
            f"<details><summary>Cells</summary>{_table(listed)}</details>",
        ]
    )


def _json(title: str, value: object) -> str:
    text = escape(json.dumps(value, indent=1, ensure_ascii=False))
    return f"<details><summary>{escape(title)}</summary><pre><code>{text}</code></pre></details>"
