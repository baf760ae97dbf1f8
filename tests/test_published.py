"""The table of published values: rules look at intervals, numbers are what they are called, rows are stored at once."""

from __future__ import annotations

from html import escape
from pathlib import Path

import numpy as np
import pytest
import torch

import marl
from benchmarks import published
from benchmarks.claims import ENTRIES
from benchmarks.claims.base import Above, Below, Compared, Entry, Near, Rule, near
from benchmarks.claims.decomposition import q_total
from benchmarks.methods import METHODS
from benchmarks.published import Cell, estimate
from marl.learn.q_learning import QLearning, values
from marl.results import read

CHEAP = ("climbing-rows", "bar-attendance")


@pytest.mark.parametrize(
    ("rule", "low", "high", "verdict"),
    [
        (Near(7, 0.5), 6.6, 7.4, "yes"),
        (Near(7, 0.5), 7.6, 8.0, "no"),
        (Near(7, 0.5), 6.4, 7.0, "unclear"),
        (Above(0), 0.1, 0.3, "yes"),
        (Above(0), -0.3, -0.1, "no"),
        (Above(0), -0.1, 0.3, "unclear"),
        (Below(0.5), 0.0, 0.3, "yes"),
        (Below(0.5), 0.6, 0.9, "no"),
        (Below(0.5), 0.4, 0.6, "unclear"),
        (Above(0), float("nan"), float("nan"), "unclear"),
    ],
)
def test_a_verdict_is_the_intervals(rule: Rule, low: float, high: float, verdict: str) -> None:
    """Wholly inside, wholly outside, or across; without an interval nobody knows."""
    assert rule.verdict(low, high) == verdict


def test_ten_times_nothing_is_not_certain() -> None:
    """Wilson's interval of 0 of 10 reaches to .278; a bootstrap's would be a point. One seed has no interval."""
    none = estimate(np.zeros(10))
    assert float(none.value) == 0 and float(none.high) == pytest.approx(0.2775, abs=1e-3)
    assert np.isnan(float(estimate(np.array([0.7])).low))
    assert float(estimate(np.array([0.7]), exact=True).low) == 0.7


@pytest.mark.parametrize("name", ENTRIES)
def test_every_entry_can_be_asked(name: str) -> None:
    """Its game exists with these knobs, its methods are in the list, and its cell has a configuration of its own."""
    entry = ENTRIES[name]
    assert entry.claim and entry.source and entry.numbers
    assert Cell(name, 2).config["game"].startswith(("credit/", "benchmarks.claims."))
    assert (Cell(name, 2, quick=True).config == Cell(name, 2).config) is (entry.quick is None)
    assert entry.quick is None or type(entry.quick) is type(entry.measure)
    if isinstance(entry.measure, Compared):
        allowed = {m for pair in entry.measure.pairs for m in pair} | {f"{a} - {b}" for a, b in entry.measure.pairs}
        assert {number.name for number in entry.numbers} <= allowed
        for method in {m for pair in entry.measure.pairs for m in pair}:
            METHODS[method].credit(Cell(name, 1).game)


def test_q_total_reads_the_table_it_was_given() -> None:
    """VDN's Q_tot is the sum of what each agent's network says, state by state and action by action."""
    game = marl.load("credit/matrix_game-v0", payoff="two_step")
    training = QLearning(mixer="vdn").begin(game, (3, 8))
    found = q_total(training, game)
    assert found.shape == (2, 3, 2, 2)
    with torch.no_grad():
        for s, k in ((0, 1), (1, 2)):
            obs = torch.eye(3)[k].expand(2, 2, 3)  # one row a seed
            q = values(training.net, obs)[s]
            assert torch.allclose(found[s, k], q[0][:, None] + q[1][None], atol=1e-6)


def test_exact_rows_end_to_end_and_resume(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Stored, printed with a verdict, written as a page, and not measured twice; a wrong claim is printed as such."""
    arguments = ["--only", ",".join(CHEAP), "--seeds", "2", "--workers", "1", "--out", str(tmp_path)]
    assert published.main(arguments) == 0
    said = capsys.readouterr().out
    assert "reproduced: 5 yes, 0 no, 0 unclear" in said and "13.2437" in said
    assert set(read(tmp_path)["method"]) == set(CHEAP)
    assert (tmp_path / "figures" / "published.md").read_text().count("| yes |") == 5
    page = (tmp_path / "figures" / "report.html").read_text()
    assert page.count("<td>yes</td>") == 5 and "--only" in page and escape(ENTRIES[CHEAP[0]].source) in page
    before = {f.name: f.stat().st_mtime_ns for f in tmp_path.glob("*.parquet")}
    with pytest.MonkeyPatch.context() as patch:
        wrong = Entry(**{**vars(ENTRIES[CHEAP[0]]), "numbers": (near("row_2", 5.0, 0.1),)})
        patch.setitem(ENTRIES, CHEAP[0], wrong)
        assert published.main(arguments) == 0
    assert "0 to measure" in (said := capsys.readouterr().out) and "2 yes, 1 no" in said
    assert before == {f.name: f.stat().st_mtime_ns for f in tmp_path.glob("*.parquet")}


def test_pairs_are_differences_of_seeds() -> None:
    """A method against itself is exactly 0 on every seed."""
    game = marl.load("credit/quorum-v0", n_agents=3, quorum=2)
    found = Compared((("team + return", "team + return"),), 2)(game, (0, 1))
    assert (found["team + return - team + return"] == 0).all() and len(found["team + return"]) == 2


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--only", "two-step"], "--only names 'two-step'"),
        (["--seeds", "0"], "--seeds 0 is not allowed"),
        (["--address", "127.0.0.1:1"], "--address 127.0.0.1:1 needs --engine ray"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit status 2 and a sentence."""
    assert published.main(arguments) == 2
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "entry", ["two-step-vdn", "two-step-qmix", "climbing", "penalty", "no-penalty", "rovers-one-point"]
)
def test_claims_that_do_come_out(entry: str, tmp_path: Path) -> None:
    """These come out with ten seeds; not asserted: D over team on the rovers, and VDN's worst entry.

    The paper prints -1.87 there, exact least squares gives -1.5, and ours lies beside the latter.
    """
    published.run_cell(cell := Cell(entry, 10), tmp_path)
    verdicts = {line[3]: line[-1] for line in published.table([cell], tmp_path)}
    for name in ("difference + return - team + return", "state_2B_00"):
        verdicts.pop(name, None)
    assert set(verdicts.values()) == {"yes"}, verdicts
