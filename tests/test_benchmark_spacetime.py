"""`python -m benchmarks.spacetime`: the grid is what its rule builds, and what the types refuse is named."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_figures import check_text

import marl
from benchmarks import cli, figures, forecast, spacetime
from benchmarks.figures import spacetime as figure
from benchmarks.methods import METHODS
from marl.credit.base import ChainError, operator_class
from marl.experiment import Method, has_truth
from marl.results import cell_id
from marl.rollout import rollout


def words(name: str) -> list[str]:
    """The operators of a composition, in order."""
    return [operator_class(op).__name__ for op in spacetime.COMPOSITIONS[name].chain]


def test_the_figure_and_the_question_name_the_same_grid() -> None:
    """At least 6 x 6, every cell either built or refused, no name that METHODS has."""
    assert tuple(spacetime.WHO) == figure.WHO and tuple(spacetime.WHEN) == figure.WHEN
    assert spacetime.YARDSTICKS == figure.YARDSTICKS and set(spacetime.YARDSTICKS) <= set(METHODS)
    assert set(spacetime.FORBIDDEN) == set(figure.FORBIDDEN) and not set(spacetime.COMPOSITIONS) & set(METHODS)
    cells = {f"{who} x {when}" for who in figure.WHO for when in figure.WHEN}
    assert cells == set(spacetime.COMPOSITIONS) | set(spacetime.FORBIDDEN)
    full = [who for who in figure.WHO if not any(f.startswith(f"{who} x") for f in spacetime.FORBIDDEN)]
    assert len(full) >= 6 and len(figure.WHEN) >= 6


def test_the_order_of_operators_follows_the_rule() -> None:
    """Counterfactuals come before redistributions, everything else after them."""
    assert words("difference x GAE") == ["Difference", "Gae"]
    assert words("difference x RUDDER") == ["Difference", "Rudder", "MonteCarlo"]
    assert words("learned aristocrat x RUDDER") == ["Rudder", "LearnedDifference", "MonteCarlo"]
    assert words("team x IRCR") == ["Ircr", "Team", "MonteCarlo"]
    assert words("VDN critic x potential V") == ["PotentialShaping", "Decomposition"]
    assert all("cannot follow Decomposition" in why for why in spacetime.FORBIDDEN.values())
    backwards = (spacetime.WHEN["RUDDER"].redistribution, spacetime.WHO["difference"], spacetime.WHEN["return"][1])
    with pytest.raises(ChainError, match="Difference takes RAW and cannot follow Rudder"):
        Method(backwards, "spatial")  # type: ignore[arg-type]


def test_every_game_has_a_truth_that_is_cheap_to_ask() -> None:
    """For the judged walks of all seeds at once, and a score."""
    for name, knobs in spacetime.settings(False):
        game = marl.load(name, **knobs)
        assert has_truth(game, 64 * spacetime.QUESTION.judges)
        assert game.random_return is not None and game.optimal_return is not None


def test_what_no_action_moves_at_once_earns_exactly_nothing() -> None:
    """Rounding must not be credited: a learner scales credit by its size and would follow it."""
    game = marl.load("credit/assembly_line-v0", n_agents=3, spacing=2, inspection=2, horizon=12)
    walks = rollout(game, None, 16)
    for who in ("difference", "aristocrat", "Shapley"):
        assert spacetime.COMPOSITIONS[f"{who} x return"].credit(game).assign(walks).abs().max() == 0
    assert spacetime.COMPOSITIONS["CaP x return"].credit(game).assign(walks).abs().max() > 0.01


def test_quick_run_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Own methods run beside METHODS; credit is judged on every seed; the figure says what its marks mean."""
    monkeypatch.setattr(cli, "EVALUATION", (2, 4, 8))
    monkeypatch.setattr(cli, "redraw", lambda *_, **__: [tmp_path])
    small = [("credit/assembly_line-v0", {"n_agents": 2, "spacing": 1, "inspection": 0, "horizon": 3})]
    question = replace(spacetime.QUESTION, settings=lambda quick: small, episodes=(64, 64))
    few = "team x return,difference x return,reference O8"
    arguments = ["--methods", few, "--seeds", "2", "--workers", "1", "--out", str(tmp_path)]
    assert cli.main(question, arguments) == 0
    data = figures.load(tmp_path)
    judged = data.rows[data.rows["metric"] == "walk_unit_auc"]
    assert judged.groupby("method")["seed"].nunique().to_dict() == dict.fromkeys(few.split(","), 2)
    assert len({(c["method"]["family"], c["method"]["rank"]) for c in data.configs}) == 3  # a colour each
    assert figure.needs(data) == ""
    said = check_text(figure.draw(data))
    assert all(word in said for word in ("assembly_line", "paired difference", "refused by the types", "potential V"))


def test_unknown_compositions_are_refused_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    """One line with the closest name, and --list shows them."""
    assert cli.main(spacetime.QUESTION, ["--methods", "difference x GAF"]) == 2
    assert "did you mean 'difference x GAE'" in capsys.readouterr().err
    assert cli.main(spacetime.QUESTION, ["--list"]) == 0
    assert "difference x RUDDER" in capsys.readouterr().out


def test_many_cells_are_estimated_from_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond MOST calibrations a cross is timed: exact where time is (of the method) x (of the game)."""
    cells = cli.plan(spacetime.QUESTION, cli.Options())
    methods = {c.method: 1.0 + k for k, c in enumerate(cells)}
    games = {c.game: 10.0**k for k, c in enumerate(cells[:: len(cells) // 3])}
    asked: list[Any] = []

    def answers(cells: Sequence[Any], ask: Any, engine: Any) -> list[float]:
        asked.extend(cells)
        return [methods[c.method] * games[c.game] for c in cells]

    monkeypatch.setattr(forecast, "answers", answers)
    found = forecast.estimate(cells)
    for c in cells:
        assert found[cell_id(c.config)] == pytest.approx(methods[c.method] * games[c.game])
    assert len(asked) < 0.5 * len(cells) and len({c.method for c in asked}) == len(methods)
