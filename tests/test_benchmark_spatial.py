"""`python -m benchmarks.spatial`: N alone moves, dear methods stop where the table says, and the figure is legible."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import pytest
from test_figures import check_text

import marl
from benchmarks import cli, figures, spatial
from benchmarks.cli import Options, plan
from benchmarks.figures import spatial as figure
from benchmarks.methods import METHODS

FEW = ("team + return", "difference + return", "QMIX")


def test_every_spatial_method_is_asked() -> None:
    """A new method of the family joins by itself; caps and the figure name methods that exist."""
    assert {name for name, m in METHODS.items() if m.family == "spatial"} <= set(spatial.ASKED)
    assert set(spatial.CAPS) | set(figure.SHOWN) | set(spatial.QUICK) <= set(spatial.ASKED)


@pytest.mark.parametrize("quick", [False, True])
def test_sweeps_can_be_played_and_keep_their_promise(quick: bool) -> None:
    """A known score at every N, and what is called fixed is fixed."""
    sizes = defaultdict(set)
    for name, knobs in spatial.settings(quick):
        game = marl.load(name, **knobs)
        sizes[name].add(game.n_agents)
        assert game.random_return is not None and game.optimal_return is not None
        if "el_farol" in name:
            assert game.capacity / game.n_agents == pytest.approx(0.1)  # type: ignore[attr-defined]
        if "rover" in name:
            assert game.optimal_return == pytest.approx(2.0)
    assert all(len(found) >= 2 for found in sizes.values()) and len(sizes) == 4
    assert quick or max(sizes["credit/el_farol-v0"]) == 200


def test_dear_methods_stop_where_the_table_says() -> None:
    """By default; what is not in the table runs at any N."""
    sizes = {knobs["n_agents"]: (game, knobs) for game, knobs in spatial.settings(False)}
    for method, (most, _) in spatial.CAPS.items():
        assert [n for n, at in sizes.items() if not spatial.too_much(*at, method)] == [n for n in sizes if n <= most]
    assert not any(spatial.too_much(*at, "difference + return") for at in sizes.values()) and max(sizes) == 200


def test_methods_asked_for_by_name_run_at_any_size() -> None:
    """The table limits the default sweep, not the game."""
    two = [("credit/quorum-v0", {"n_agents": n, "quorum": n // 2}) for n in (4, 70)]
    question = replace(spatial.QUESTION, settings=lambda quick: two, methods=("COMA",))
    planned = [[c.knobs["n_agents"] for c in plan(question, Options(methods=m, seeds=1))] for m in ((), ("COMA",))]
    assert planned == [[4], [4, 70]]


def test_quick_run_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cells, table and figure of two games; simulator steps stand beside environment steps."""
    few = [s for s in spatial.settings(True) if "quorum" in s[0] or "squeeze" in s[0]]
    monkeypatch.setattr(cli, "EVALUATION", (2, 4, 8))
    monkeypatch.setattr(cli, "redraw", lambda *_, **__: [])
    question = replace(spatial.QUESTION, settings=lambda quick: few)
    arguments = ["--quick", "--methods", ",".join(FEW), "--seeds", "2", "--steps", "64", "--workers", "1"]
    assert cli.main(question, [*arguments, "--out", str(tmp_path)]) == 0
    data = figures.load(tmp_path)
    assert figure.needs(data) == ""
    spent = data.rows.groupby("method")["simulator_steps"].max()
    assert spent["difference + return"] == 64 * 24 and spent["team + return"] == spent["QMIX"] == 0
    said = check_text(figure.draw(data))
    assert "quorum" in said and "agents N" in said and "bootstrap" in said
