"""Every figure is drawn from files alone, says what it shows, and has no text that is clipped or overlaps."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from itertools import combinations, product
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from benchmarks import figures, plot
from benchmarks.figures import (
    aggregate,
    bars,
    credit_heatmap,
    credit_training,
    difficulty,
    exploration,
    improvement,
    learning_curves,
    performance_profile,
    phase_map,
    radar,
    style,
    td_error,
)
from marl import results, statistics
from marl.results import Row

# name, family, rank, privileged, how much slower with N, how much slower with delay, counterfactual steps per step
METHODS: tuple[tuple[str, str, int, bool, float, float, float], ...] = (
    ("team + return", "baseline", 0, False, 1.0, 0.0, 0.0),
    ("difference + return", "spatial", 0, False, 0.5, 0.8, 3.0),
    ("difference (safe) + return", "spatial", 1, True, 0.4, 0.2, 3.0),
    ("aristocrat + return", "spatial", 2, False, 0.3, 9.0, 6.0),
    ("COMA", "spatial", 3, False, 0.6, 3.0, 0.0),
    ("immediate", "temporal", 0, False, 0.8, 9.0, 0.0),
    ("recency .9", "temporal", 1, False, 0.8, 4.0, 0.0),
    ("TD(0)", "temporal", 2, False, 0.8, 6.0, 0.0),
    ("GAE", "temporal", 3, False, 0.8, 1.0, 0.0),
    ("agent total", "joint", 0, False, 0.4, 0.2, 50.0),
    ("first-step repair", "joint", 1, False, 0.6, 0.3, 6.0),
    ("reference O8", "reference", 0, True, 0.1, 0.0, 90.0),
)


def settings(sizes: Sequence[int], delays: Sequence[int], horizon: int = 60) -> list[dict[str, Any]]:
    """Knobs of walking_robot over team size x delay."""
    return [{"n_agents": n, "delay": d, "horizon": horizon, "window": 12} for n, d in product(sizes, delays)]


def configuration(knobs: dict[str, Any], method: tuple[Any, ...], **changes: Any) -> dict[str, Any]:
    """A cell as an experiment would describe it."""
    name, family, rank, privileged, *_ = method
    about = {"name": name, "family": family, "rank": rank, "privileged": privileged, "needs": [], "chain": []}
    seeds, steps = {"seeds": [0, 1, 2, 3, 4]}, {"steps": 200_000, "evaluation": {"episodes": 32}}
    where = {"question": "compare", "game": "credit/walking_robot-v0", "knobs": knobs, "method": about}
    return {**where, **seeds, **steps, "threads": 1, "device": "cpu", "learner": {"name": "reinforce"}} | changes


def rows(knobs: dict[str, Any], method: tuple[Any, ...], seeds: Sequence[int], points: int = 8) -> list[Row]:
    """Learning curves that saturate more slowly with team size and delay."""
    _, _, rank, _, with_n, with_delay, asks = method
    difficulty = 0.15 + with_n * knobs["n_agents"] / 30 + with_delay * knobs["delay"] / 60
    out = []
    for seed in seeds:
        rng = np.random.default_rng([seed, rank, knobs["n_agents"], knobs["delay"]])
        for steps in np.linspace(0, 200_000, points).astype(int):
            score = 1.05 * (1 - np.exp(-steps / 200_000 / difficulty * rng.uniform(0.7, 1.4))) - 0.05 * rng.random()
            spent = (int(steps), int(steps * asks), 1e-5 * steps)
            out.append(Row(seed, *spent, "score", float(score)))
            out.append(Row(seed, *spent, "return", float(1.3 * score - 0.2)))
            out.append(Row(seed, *spent, "culprit_auc", float(np.clip(score, 0, 1))))
        out.append(Row(seed, *spent, "final_score", float(score)))
        out.append(Row(seed, *spent, "final_return", float(1.3 * score - 0.2)))
    return out


def maps(knobs: dict[str, Any], method: tuple[Any, ...], walk_of_its_own: bool = False) -> dict[str, np.ndarray]:
    """Credit maps of three walks: the second fails by agent 1 at step 7, `delay` steps before its end."""
    steps, team, delay = knobs["horizon"], knobs["n_agents"], knobs["delay"]
    rng = np.random.default_rng(method[2] + (hash_of(method[0]) if walk_of_its_own else 0))
    when = 7 + (int(rng.integers(4)) if walk_of_its_own else 0)
    alive = np.ones((steps, 3), dtype=bool)
    alive[when + delay + 1 :, 1] = False
    truth = 1e-3 * (np.random.default_rng(1).random((steps, 3, team)) < 0.3)
    truth[when, 1, 1] = -1.5
    noise = np.random.default_rng(2).normal(size=truth.shape)
    recent = np.minimum(0, -(0.9 ** np.abs(when + delay - np.arange(steps)))[:, None, None]) * (1 + 0 * truth)
    blind = (
        0.3 * noise + recent if method[1] == "temporal" else np.broadcast_to(noise.mean(2, keepdims=True), truth.shape)
    )
    value = truth + (0.0 if method[1] == "reference" else 0.4) * blind
    return results.credit_columns(0, np.arange(3), value, truth, alive)


def hash_of(name: str) -> int:
    """A number that is the same in every process."""
    return sum(map(ord, name))


def fill(folder: Path, cells: Sequence[dict[str, Any]], methods: Sequence[tuple[Any, ...]], own: bool = False) -> None:
    """A finished comparison, through the same door as a real one."""
    results.prepare(folder)
    for knobs, method in product(cells, methods):
        config = configuration(knobs, method)
        results.write_cell(folder, config, rows(knobs, method, config["seeds"]), maps(knobs, method, own))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small comparison: 2 x 2 cells, five methods, every family."""
    path = tmp_path_factory.mktemp("compare")
    fill(path, settings([3, 12], [0, 24]), [METHODS[k] for k in (0, 2, 6, 9, 11)])
    return path


def words(figure: Figure) -> dict[str, list[Any]]:
    """Every text that is really drawn, with its boxes in pixels."""
    canvas = FigureCanvasAgg(figure)
    drawn: list[Text] = []
    draw = Text.draw

    def record(text: Text, renderer: Any) -> None:
        if text.get_visible() and text.get_text().strip():
            drawn.append(text)
        draw(text, renderer)

    with mock.patch.object(Text, "draw", record):
        canvas.draw()
    found: dict[str, list[Any]] = {}
    for text in drawn:
        found.setdefault(text.get_text(), []).append(text.get_window_extent(canvas.get_renderer()))
    return found


def check_text(figure: Figure) -> str:
    """No text leaves the page and none lies on another; returns all of it, on one line."""
    drawn = words(figure)
    boxes = [(name, box) for name, found in drawn.items() for box in found]
    width, height = figure.get_size_inches() * figure.dpi
    for name, box in boxes:
        inside = box.x0 >= -0.5 and box.y0 >= -0.5 and box.x1 <= width + 0.5 and box.y1 <= height + 0.5
        assert inside, f"{name!r} is clipped"
    for (a, p), (b, q) in combinations(boxes, 2):
        across = min(p.x1, q.x1) - max(p.x0, q.x0)
        up = min(p.y1, q.y1) - max(p.y0, q.y0)
        assert across < 1 or up < 1, f"{a!r} lies on {b!r}"
    return " ".join(" ".join(drawn).split())


@pytest.mark.parametrize("name", plot.available("compare"))
def test_every_figure_is_legible_and_says_what_it_shows(folder: Path, name: str) -> None:
    """Game, knobs, seeds, budget, interval, versions, privileged mark are on each; text is neither cut nor covered."""
    needs, draw = plot.available()[name]
    data = figures.load(folder)
    assert needs(data) == ""
    figure = draw(data)
    said = check_text(figure)
    for part in (
        "credit/walking_robot-v0",
        "horizon=60",
        "5 seeds",
        "200,000",
        "torch",
        "reference O8 †",
        "† privileged",
    ):
        assert part in said, part
    assert "bootstrap" in said or "no interval" in said


def test_text_check_notices_a_collision(folder: Path) -> None:
    """The control: the same check fails when a label is put on another or off the page."""
    for x, y in ((0.02, 0.01), (0.99, 0.5)):
        figure = bars.draw(figures.load(folder))
        figure.text(x, y, "a label too many", fontsize=6)
        with pytest.raises(AssertionError, match=r"lies on|is clipped"):
            check_text(figure)


def test_phase_map_prints_the_numbers_of_the_table(folder: Path) -> None:
    """What stands in a cell is the IQM of its runs; one colour scale from 0 to 1 serves all panels."""
    data = figures.load(folder)
    figure = phase_map.draw(data)
    table = data.rows[data.rows["metric"] == "final_score"]
    expected = [f"{statistics.iqm(runs['value']):z.2f}" for _, runs in table.groupby(["method", "n_agents", "delay"])]
    written = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert sorted(text for text in written if not text.startswith("±")) == sorted(expected)
    assert {image.get_clim() for axes in figure.axes[:5] for image in axes.images} == {(0.0, 1.0)}
    order = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert order[0] == "team + return" and order[-1] == "reference O8\N{NO-BREAK SPACE}†"


def test_curves_against_simulator_steps_charge_counterfactuals(folder: Path) -> None:
    """The reference, free against environment steps, ends 91 times further right when counterfactuals are charged."""
    data = figures.load(folder)
    ends = []
    for budget in ("env_steps", "total_steps"):
        figure = learning_curves.draw(data, budget=budget)  # type: ignore[arg-type]
        black = [line for line in figure.axes[0].lines if line.get_color() == "#000000"]
        ends.append(max(line.get_xdata()[-1] for line in black))
    assert ends == [200_000, 200_000 * 91]


def test_heatmap_stars_the_culprit_and_marks_the_end(folder: Path) -> None:
    """Of three walks the failed one is shown: once the truth, then every method, each scaled to its own largest."""
    data = figures.load(folder)
    figure = credit_heatmap.draw(data)
    panels = [axes for axes in figure.axes if axes.images]
    assert panels[0].get_title().startswith("truth") and len(panels) == 1 + 5
    for axes in panels:
        box, stars = axes.collections
        assert box.get_paths()[0].get_extents().bounds == (6.5, 0.5, 1, 1)
        np.testing.assert_allclose(stars.get_offsets(), [[7.5, 1]])
        assert axes.lines[0].get_xdata()[0] == 7 + 24 + 0.5  # delay 24, the largest
        assert np.nanmax(np.abs(axes.images[0].get_array())) == pytest.approx(1.0)
    with pytest.raises(ValueError, match="no failed episode"):
        credit_heatmap.draw(data, episode=0)
    assert "n_agents=12, delay=0" in check_text(credit_heatmap.draw(data, n_agents=12, delay=0))


def test_methods_on_walks_of_their_own_get_their_own_truth(tmp_path: Path) -> None:
    """A method is never shown beside the truth of an episode that it did not see."""
    fill(tmp_path, settings([3], [24]), METHODS[:4], own=True)
    figure = credit_heatmap.draw(figures.load(tmp_path))
    check_text(figure)
    titles = [axes.get_title() for axes in figure.axes if axes.images]
    stars = [axes.collections[1].get_offsets()[0, 0] for axes in figure.axes if axes.images]
    assert [title.startswith("truth") for title in titles] == [True, False] * 4
    assert stars[::2] == stars[1::2] and len({*stars}) > 1


def test_bars_use_games_as_strata(folder: Path) -> None:
    """A bar is the IQM over seeds and cells together, its interval that of `statistics.interval`."""
    data = figures.load(folder)
    figure = bars.draw(data)
    table = data.rows[(data.rows["metric"] == "final_score") & (data.rows["method"] == "team + return")]
    assert figure.axes[0].patches[0].get_width() == pytest.approx(statistics.iqm(table["value"]))


def test_a_method_has_one_colour_everywhere_and_no_two_look_alike() -> None:
    """Colour follows (family, rank), not who else is there; colour-blind readers still have dash and marker."""
    everyone = [style.Look(name, name, family, rank, False) for name, family, rank, *_ in METHODS]
    seen = {(look.colour, str(look.dash), look.marker) for look in everyone}
    assert len(seen) == len(everyone) == len({look.colour for look in everyone})
    crowd = [
        style.Look("", "", family, rank, False) for family in ("spatial", "temporal", "joint") for rank in range(30)
    ]
    assert len({(look.colour, str(look.dash)) for look in crowd}) == len(crowd)
    assert everyone[-1].colour == "#000000"
    for a, b in combinations(everyone, 2):
        assert a.family == b.family or a.marker != b.marker
        assert a.family != b.family or a.dash != b.dash


def test_aggregates_are_those_of_the_statistics(folder: Path) -> None:
    """IQM, median and optimality gap over all runs stand as bars, one panel each, with their numbers beside."""
    data = figures.load(folder)
    figure = aggregate.draw(data)
    table = data.rows[(data.rows["metric"] == "final_score") & (data.rows["method"] == "team + return")]
    summaries = (statistics.iqm, statistics.median, statistics.optimality_gap)
    for axes, summary in zip(figure.axes, summaries, strict=True):
        assert axes.patches[0].get_width() == pytest.approx(summary(table["value"].to_numpy()))
        assert axes.texts[0].get_text().startswith(f"{summary(table['value'].to_numpy()):z.2f}")


def test_profile_falls_from_all_runs_to_none(folder: Path) -> None:
    """The share above a threshold never rises with it; it is counted by hand at one."""
    data = figures.load(folder)
    line = performance_profile.draw(data).axes[0].lines[0]
    table = data.rows[(data.rows["metric"] == "final_score") & (data.rows["method"] == "team + return")]
    at, share = (np.asarray(values, dtype=float) for values in line.get_data())
    assert (np.diff(share) <= 0).all() and share[0] == 1 and share[-1] == 0
    assert share[100] == pytest.approx(np.mean(table["value"] > at[100]))


def test_improvement_is_antisymmetric_and_counted_by_hand(folder: Path) -> None:
    """P(X > Y) + P(Y > X) = 1; that the reference is ahead is clear of chance."""
    data = figures.load(folder)
    table = data.rows[data.rows["metric"] == "final_score"]
    names = [look.name for look in style.looks(table)]
    value, clear = improvement.matrix(table, names)
    off = ~np.eye(len(names), dtype=bool)
    np.testing.assert_allclose((value + value.T)[off], 1.0)
    runs = {key: part["value"].to_numpy() for key, part in table.groupby(["method", "knobs"])}
    shares = [np.mean(runs[names[1], knobs][:, None] > runs[names[0], knobs]) for knobs in data.rows["knobs"].unique()]
    assert value[1, 0] == pytest.approx(np.mean(shares))
    assert clear[-1, 0] and value[-1, 0] > 0.5
    assert improvement.needs(data._replace(rows=data.rows[data.rows["method"] == names[0]])).startswith("needs two")


def test_radar_counts_solved_seeds() -> None:
    """A spoke is the share of defined seeds at .9 or above; no cell is no point, not a zero."""
    table = pd.DataFrame({"game": "g", "knobs": ["a"] * 4 + ["b"], "value": [0.95, 0.9, 0.89, np.nan, np.nan]})
    shares = radar.solved(table, [("g", "a", ""), ("g", "b", ""), ("g", "c", "")])
    np.testing.assert_allclose(shares, [2 / 3, np.nan, np.nan])


def test_a_curve_ends_with_its_shortest_run(tmp_path: Path) -> None:
    """Runs of unequal length: no point rests on the survivors alone; single runs go on, and the small print says so."""
    knobs = settings([3], [0])[0]
    for method, cut in ((METHODS[0], 100_000), (METHODS[11], 200_000)):
        config = configuration(knobs, method)
        kept = [r for r in rows(knobs, method, config["seeds"]) if r.seed or r.env_steps <= cut]
        results.write_cell(tmp_path, config, kept)
    data = figures.load(tmp_path)
    figure = learning_curves.draw(data)
    ends = [line.get_xdata()[np.isfinite(line.get_ydata())].max() for line in figure.axes[0].lines]
    assert ends[0] <= 100_000 and ends[1] == 200_000
    longest = max(path.vertices[:, 0].max() for path in figure.axes[0].collections[0].get_paths())
    assert longest == 200_000
    assert "a line ends with its shortest run" in check_text(figure)
    whole = data._replace(rows=data.rows[data.rows["method"] == "reference O8"])
    assert "shortest" not in check_text(learning_curves.draw(whole))


def test_credit_over_training_is_drawn_from_the_points_of_evaluation(folder: Path) -> None:
    """The last point of a line is the IQM of the last evaluation's culprit AUC."""
    data = figures.load(folder)
    line = credit_training.draw(data).axes[0].lines[0]
    table = data.rows[(data.rows["metric"] == "culprit_auc") & (data.rows["method"] == "team + return")]
    table = table[(table["n_agents"] == 3) & (table["delay"] == 24) & (table["env_steps"] == 200_000)]
    assert np.asarray(line.get_ydata(), dtype=float)[-1] == pytest.approx(statistics.iqm(table["value"]))


def test_exploration_puts_levels_on_a_scale_and_judges_the_end(tmp_path: Path) -> None:
    """One line a method over its temperatures; a level's AUC is the mean of the last quarter of training."""
    for rank, level in enumerate((0.01, 0.1, 1.0)):
        method = (f"IQL, temperature {level:g}", "spatial", rank, False, 0.5, level, 0.0)
        how = {"name": "QLearning", "exploration": "boltzmann", "start": level, "end": level}
        config = configuration(settings([3], [24])[0], method, question="exploration", learner=how)
        results.write_cell(tmp_path, config, rows(settings([3], [24])[0], method, config["seeds"]))
    data = figures.load(tmp_path)
    assert exploration.needs(data) == "" and "exploration" not in plot.available("compare")
    figure = exploration.draw(data)
    assert all(part in check_text(figure) for part in ("IQL", "temperature", "culprit AUC", "bootstrap"))
    line = figure.axes[0].lines[0]
    np.testing.assert_allclose(np.asarray(line.get_xdata(), dtype=float), [0.01, 0.1, 1.0])  # one line: not moved
    auc = data.rows[(data.rows["metric"] == "culprit_auc") & (data.rows["env_steps"] >= 150_000)]
    seeds = auc[auc["method"] == "IQL, temperature 0.1"].groupby("seed")["value"].mean()
    assert np.asarray(line.get_ydata(), dtype=float)[1] == pytest.approx(statistics.iqm(seeds))


def test_td_error_shows_the_walk_with_its_mistake(tmp_path: Path) -> None:
    """Bars are the signal of the failed walk, the star stands at the culprit's step, the line at the end."""
    knobs = settings([3], [24])[0]
    for rank, name in enumerate(td_error.ORDER):
        method = (name, "temporal", rank, rank == 0)
        config = configuration(knobs, method, question="td_error", seeds=[0])
        results.write_cell(tmp_path, config, [Row(0, 0, 0, 0.0, "walk_culprit_auc", 0.5)], maps(knobs, method))
    data = figures.load(tmp_path)
    assert td_error.needs(data) == "" and "td_error" not in plot.available("compare")
    figure = td_error.draw(data)
    assert all(part in check_text(figure) for part in (*td_error.ORDER[1:], "TD error of V* †", "no interval"))
    panel = figure.axes[0]
    walk = data.credit[(data.credit["method"] == td_error.ORDER[0]) & (data.credit["episode"] == 1)]
    mean = walk.groupby("t")["value"].mean().to_numpy()[: 7 + 24 + 1]
    np.testing.assert_allclose([bar.get_height() for bar in panel.patches], mean)
    assert [line.get_xdata()[0] for line in panel.lines if line.get_marker() == "*"] == [7]
    assert td_error.needs(data._replace(credit=data.credit.iloc[:0])) != ""


def test_one_run_or_missing_cells_are_drawn_honestly(tmp_path: Path) -> None:
    """A half-finished sweep with one seed gives figures without intervals and with gaps, not a crash."""
    results.prepare(tmp_path)
    for knobs, method in ((settings([3], [0])[0], METHODS[0]), (settings([12], [24])[0], METHODS[11])):
        results.write_cell(tmp_path, configuration(knobs, method, seeds=[0]), rows(knobs, method, [0], points=1))
    said: list[str] = []
    paths = plot.redraw(tmp_path, say=said.append)
    learned = {"bars", "learning_curves", "learning_curves_simulator", "phase_map"}
    assert {path.stem for path in paths} == {"aggregate", "performance_profile", "report", *learned}
    assert said == [
        "credit_heatmap is not drawn: it needs credit maps",
        "credit_training_auc is not drawn: it needs credit quality at two evaluation points or more",
        "credit_training_correlation is not drawn: it needs credit quality at two evaluation points or more",
        "improvement is not drawn: it needs two methods or more on one game setting",
        "radar is not drawn: it needs 3 to 16 game settings, not 2",
    ]
    figure = phase_map.draw(figures.load(tmp_path))
    assert "±" not in "".join(text.get_text() for axes in figure.axes for text in axes.texts)
    check_text(figure)


def test_a_game_without_known_optimum_gets_returns(tmp_path: Path) -> None:
    """No score, no delay: curves and bars of the return, and no phase map."""
    knobs = {"n_agents": 3}
    table = [
        Row(s, t, 0, 0.0, m, -20.0 + s + t)
        for s in range(3)
        for t in (0, 9)
        for m in ("return", "final_return")
        if t or m == "return"
    ]
    for method in METHODS[:3]:
        results.write_cell(tmp_path, configuration(knobs, method, game="mpe2/simple_spread-v3"), table)
    data = figures.load(tmp_path)
    drawn = [name for name, (needs, _) in plot.available("compare").items() if not needs(data)]
    assert drawn == ["bars", "improvement", "learning_curves", "learning_curves_simulator"]
    for name in drawn:
        check_text(plot.available()[name][1](data))


def test_difficulty_finds_the_knob_of_each_panel(tmp_path: Path) -> None:
    """Cells that differ from the commonest knobs in one knob alone make its panel, in the knob's order."""
    base = {"n_agents": 6, "delay": 24, "horizon": 60, "window": 12}
    changes: list[dict[str, Any]] = [{}, {"n_agents": 3}, {"n_agents": 12}, {"delay": 0}, {"delay": 48}]
    for change in changes:
        config = configuration(base | change, METHODS[0], question="difficulty", budget="6400 episodes")
        results.write_cell(tmp_path, config, rows(base | change, METHODS[0], config["seeds"], points=2))
    data = figures.load(tmp_path)
    assert [(knob, [value for value, _ in cells]) for _, knob, cells in difficulty.panels(data)] == [
        ("n_agents", [3, 6, 12]),
        ("delay", [0, 24, 48]),
    ]
    said = check_text(difficulty.draw(data))
    assert all(part in said for part in ("team + return", "before learning", "bootstrap", "delay", "n_agents"))
    needs, _ = plot.available("difficulty")["difficulty"]
    assert needs(data) == ""
    assert "difficulty" not in plot.available("compare")


def test_runs_of_different_protocols_do_not_share_an_axis(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a longer run in the same folder only that run is drawn, which is said; or exactly the cells asked for."""
    knobs, method = settings([3], [0])[0], METHODS[0]
    for steps in (100_000, 200_000):
        config = configuration(knobs, method, steps=steps)
        results.write_cell(tmp_path, config, rows(knobs, method, config["seeds"], points=2))
        path = tmp_path / f"{results.cell_id(config)}.json"
        path.write_text(path.read_text().replace('"date": "2', f'"date": "{steps}-2'))  # the same second, otherwise
    data = figures.load(tmp_path)
    assert [config["steps"] for config in data.configs] == [200_000] and data.left_out == 1
    said: list[str] = []
    monkeypatch.setattr(plot, "available", lambda question: {})  # what is said is the point here, not the pictures
    assert [path.name for path in plot.redraw(tmp_path, say=said.append)] == ["report.html"]
    assert said[0].startswith("1 cell of other runs")
    first = results.cell_id(configuration(knobs, method, steps=100_000))
    assert [config["steps"] for config in figures.load(tmp_path, [first]).configs] == [100_000]


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Paths on stdout; bad input, no results or nowhere to write is one line on stderr and exit status 2."""
    source, target, obstacle = tmp_path / "results", tmp_path / "new", tmp_path / "file"
    fill(source, settings([3], [24]), METHODS[:2])
    obstacle.write_text("in the way")
    assert plot.main([str(source), "--figures", str(target)]) == 0
    said, noted = capsys.readouterr()
    assert [line.split()[0] for line in noted.splitlines()] == ["phase_map", "radar"]
    assert sorted(map(Path, said.splitlines())) == sorted(target.iterdir()) and said.count("\n") == 2 * 9 + 1
    wrong = (
        [str(tmp_path / "none")],
        [str(target)],
        [str(source), "--figures", str(obstacle)],
        [],
        ["a", "--colour", "red"],
    )
    for arguments in wrong:
        assert plot.main(arguments) == 2
        out, error = capsys.readouterr()
        assert out == "" and error.startswith("error: ") and error.count("\n") == 1


def test_drawing_opens_no_window() -> None:
    """Figures are plain objects: pyplot, which opens windows and keeps every figure alive, is not even imported."""
    code = "import sys, benchmarks.plot as p; p.available(); print('matplotlib.pyplot' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
        == "False"
    )


def test_the_example_of_the_guide_works_as_written(folder: Path) -> None:
    """The new figure in benchmarks/README.md draws, and its query of the results runs."""
    guide = (Path(figures.__file__).parents[1] / "README.md").read_text()
    query, *_, example = re.findall(r"```python\n(.*?)```", guide, flags=re.DOTALL)
    space: dict[str, Any] = {}
    exec(example, space)
    data = figures.load(folder)
    assert space["needs"](data) == ""
    for draw in space["FIGURES"].values():
        check_text(draw(data))
    exec(query.replace("results/compare", str(folder)).replace("COMA", "team + return"), space)
    assert space["runs"].shape == (5, 4)
