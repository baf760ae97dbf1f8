"""The report of a run is one file that says everything, loads nothing, and fits a phone as well as a desk."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from test_figures import METHODS, configuration, rows, settings

from benchmarks import figures, plot, report
from marl import results, statistics
from marl.results import Row

NASTY = """<img src=//a.b> & "$title\""""
DRAWN = ("bars", "credit_heatmap", "phase_map")  # the second cannot be
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Page(HTMLParser):
    """What a browser would meet: every tag with its attributes, all text, and whether tags close in order."""

    VOID = ("meta", "img", "br", "hr", "link", "input")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.words = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {key: value or "" for key, value in attrs}))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data


def loads(page: Page) -> list[str]:
    """Every address that the page asks for, but images that it carries itself and places within it."""
    named = ("src", "href", "srcset", "data", "action", "poster", "background")
    found = [value for _, attributes in page.tags for key, value in attributes.items() if key in named]
    found += [value for _, attributes in page.tags for value in attributes.values() if "url(" in value]
    found += [word for word in ("@import", "url(") if word in page.words]
    return [value for value in found if not value.startswith(("data:image/png;base64,", "#"))]


def cut_short(measured: list[Row]) -> Iterator[Row]:
    """Seed 3 stopped before its last point."""
    stopped = max(r for r in measured if r.seed == 3 and r.env_steps < 150_000)
    for row in measured:
        if row.metric.startswith("final") and row.seed == 3:
            yield row._replace(env_steps=stopped.env_steps, simulator_steps=stopped.simulator_steps)
        elif row.seed != 3 or row.env_steps <= stopped.env_steps:
            yield row


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two settings, a method with a nasty name, unequal run lengths, the command that was typed."""
    path = tmp_path_factory.mktemp("compare")
    results.prepare(path)
    nasty = (NASTY, *METHODS[1][1:])
    for knobs in settings([3], [0, 24]):
        for method in (METHODS[0], nasty, METHODS[11]):
            config = configuration(knobs, method)
            results.write_cell(path, config, [*cut_short(rows(knobs, method, config["seeds"]))])
    return path


@pytest.fixture(scope="module")
def written(folder: Path) -> Path:
    """The report of those results, drawn by a question that was asked with a nasty argument."""
    plot.parse(plot.Arguments, ["some where", "--figures", "<b>"], "python -m benchmarks.compare")
    ids = {results.cell_id(c) for c in results.configs(folder)}
    every = plot.available("compare")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plot, "available", lambda question: {name: every[name] for name in DRAWN})
        return plot.redraw(folder, cells=ids)[-1]


def test_the_report_loads_nothing_and_closes_what_it_opens(written: Path) -> None:
    """No address but its own images and parts; a policy that forbids the rest; well nested."""
    text = written.read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == [] and loads(page) == []
    assert "credit_heatmap is not drawn: it needs credit maps" in page.words
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(images) == 2 and all(image["alt"].startswith("Figure ") for image in images)
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.tags}
    policy = [attributes["content"] for _, attributes in page.tags if "http-equiv" in attributes]
    assert policy and policy[0].startswith("default-src 'none'")
    assert loads(Page('<link href="https://example.com/a.css"><p style="background: url(b)">'))  # the control


def test_the_report_says_what_is_needed_to_do_it_again(written: Path, folder: Path) -> None:
    """Command, seeds, versions, commit, configuration, every cell, and the privileged mark."""
    page = Page(written.read_text(encoding="utf-8"))
    stored = results.configs(folder)
    wanted = ["python -m benchmarks.compare 'some where' --figures '<b>'", "[0,1,2,3,4]", "200000", "† privileged"]
    wanted += [results.cell_id(config) for config in stored]
    wanted += [str(value) for value in stored[0]["provenance"].values() if value and value != "date"]
    for words in wanted:
        assert words in page.words, words
    assert NASTY in page.words  # as text, not as a tag: the images above are all our own
    assert "reference O8\N{NO-BREAK SPACE}†" in page.words
    assert [tag for tag, _ in page.tags if tag in ("h1", "h2")] == ["h1"] + 5 * ["h2"]


def test_numbers_of_the_tables_are_those_of_the_statistics(folder: Path) -> None:
    """Scores, paired differences and budgets are recomputed by hand from the rows."""
    data = figures.load(folder)
    final = data.rows[data.rows["metric"] == "final_score"]
    wide = {name: part.pivot(index="seed", columns="knobs", values="value") for name, part in final.groupby("method")}
    best, base = wide["reference O8"], wide["team + return"]
    summary, by_setting = report.summary(data), report.by_setting(data)
    difference, cost = report.differences(data), report.budgets(data)
    assert summary is not None and by_setting is not None and difference is not None
    assert summary.rows[-1][2] == report.number(statistics.interval(best.to_numpy()))
    assert by_setting.rows[0][1] == report.number(statistics.interval(base.iloc[:, 0].to_numpy()))
    assert difference.rows[-1][1] == report.number(statistics.paired_difference(best.to_numpy(), base.to_numpy()))
    assert difference.rows[-1][3] == str(best.size) == "10"
    assert [row[0] for row in difference.rows] == [NASTY, "reference O8\N{NO-BREAK SPACE}†"]
    assert cost.rows[-1][1:3] == ["142,857 to 200,000", "12,857,130 to 18,000,000"]


def test_pairs_are_made_by_seed(folder: Path) -> None:
    """A seed that only one method has is in no pair; the order of rows is of no account."""
    table = figures.load(folder).rows
    table = table[table["metric"] == "final_score"]
    fewer = table[(table["method"] != "team + return") | (table["seed"] != 1)].sample(frac=1, random_state=0)
    runs = report.paired(fewer)
    gap = runs["reference O8"] - runs["team + return"]
    assert gap.shape == (5, 2) and (gap != gap).sum() == 2
    whole = report.paired(table)
    assert (gap[[0, 2, 3, 4]] == (whole["reference O8"] - whole["team + return"])[[0, 2, 3, 4]]).all()


def test_results_without_scores_or_a_command_are_reported_too(tmp_path: Path) -> None:
    """A game without an optimum has a table of returns; rows of other metrics alone have the table of all metrics."""
    table = [Row(s, 9, 0, 0.0, m, -20.0 + s) for s in range(3) for m in ("return", "final_return")]
    for method in METHODS[:2]:
        results.prepare(tmp_path / "a")
        results.write_cell(tmp_path / "a", configuration({"n": 3}, method, game="mpe2/x"), table)
    only = [Row(0, 0, 0, 0.0, "cosine", 0.5)]
    results.prepare(tmp_path / "b")
    results.write_cell(tmp_path / "b", configuration({"n": 3}, METHODS[0]), only)
    for name, expected in (("a", "Final return"), ("b", "cosine")):
        page = Page(plot.redraw(tmp_path / name)[-1].read_text())
        assert expected in page.words and "The command was not stored" in page.words
        assert page.open == [] and loads(page) == []


def test_commands_are_remembered_once_and_in_order(tmp_path: Path) -> None:
    """A resumed run adds nothing, another command is added; a file that is not ours is refused in one sentence."""
    for words in (["one"], ["two"], ["one"]):
        plot.parse(plot.Arguments, words, "python -m benchmarks.compare")
        plot.remember(tmp_path)
    assert [one["command"].split()[-1] for one in plot.commands(tmp_path)] == ["one", "two"]
    results.prepare(tmp_path)  # a sweep still takes the folder for its own
    path = tmp_path / results.FIGURES / plot.COMMANDS
    for broken in ("{", "[1]", json.dumps([{"command": "x"}])):
        path.write_text(broken)
        with pytest.raises(results.ResultsError, match="not a list of commands"):
            plot.remember(tmp_path)


def test_a_full_disk_leaves_the_old_report(folder: Path, written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole or not at all: one sentence, no temporary file, the former page unchanged."""
    before = written.read_bytes()

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(results.ResultsError, match=r"cannot write .*No space left"):
        report.write(written.parent, figures.load(folder), [], [], [])
    assert written.read_bytes() == before
    assert not [path for path in written.parent.iterdir() if "tmp" in path.name]


MEASURE = """<!DOCTYPE html><body style="margin:0"><iframe src="{name}" style="width:{width}px;height:900px;border:0"
onload="const d = this.contentDocument.documentElement;
document.title = d.clientWidth + ' ' + d.scrollWidth + ' ' + d.scrollHeight"></iframe></body>"""


def widths(page: Path, width: int, place: Path) -> tuple[int, int]:
    """(width of the window, width of what is in it) as Chromium lays the page out, in a frame `width` pixels wide."""
    shutil.copy(page, place / "page.html")  # a frame, for a window is never narrower than 500 pixels
    (place / "frame.html").write_text(MEASURE.format(name="page.html", width=width))
    quiet = ["gpu", "quic", "background-networking", "component-update", "sync", "extensions"]
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--no-first-run", *(f"--disable-{word}" for word in quiet)]
    command += ["--allow-file-access-from-files", f"--user-data-dir={place / 'profile'}", "--window-size=1400,1000"]
    command += ["--dump-dom", (place / "frame.html").as_uri()]
    said = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    inner, content, height = map(int, said.split("<title>")[1].split("</title>")[0].split())
    assert height > 100
    return inner, content


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_nothing_sticks_out_at_phone_and_desktop_width(written: Path, tmp_path: Path) -> None:
    """The page never scrolls sideways, only boxes in it do; the control, a table without its box, sticks out."""
    for width in (390, 1280):
        inner, content = widths(written, width, tmp_path)
        assert content <= inner <= width, f"{content} pixels of content in a window of {inner}"
    bare = tmp_path / "bare.html"
    bare.write_text(written.read_text().replace(".box { overflow-x: auto;", ".box {"))
    inner, content = widths(bare, 390, tmp_path)
    assert content > inner
