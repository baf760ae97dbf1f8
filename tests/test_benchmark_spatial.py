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


def test_dear_methods_stop_where_the_table_says(capsys: pytest.CaptureFixture[str]) -> None:
    """By default; whoever asks for a method by name gets it at any N. Safe actions are left out where none is known."""
    cells = plan(spatial.QUESTION, Options())
    largest = defaultdict(int)
    for cell in cells:
        largest[cell.method] = max(largest[cell.method], cell.knobs["n_agents"])
    for method, (most, _) in spatial.CAPS.items():
        assert largest[method] <= most
    assert largest["difference + return"] == 200 and "safe difference + return" not in largest
    asked = plan(spatial.QUESTION, Options(methods=("COMA",)))
    assert max(cell.knobs["n_agents"] for cell in asked) == 200


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
    assert spent["difference + return"] == 64 * 40 and spent["team + return"] == spent["QMIX"] == 0
    said = check_text(figure.draw(data))
    assert "quorum" in said and "agents N" in said and "bootstrap" in said
