"""`python -m benchmarks.credit` and the oracles' own check: cells, controls, resuming, figures, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from test_figures import check_text

import marl
from benchmarks import credit, oracles, trial
from benchmarks.__main__ import questions
from benchmarks.figures import (
    credit_heatmap,
    credit_oracles,
    credit_scatter,
    credit_scoreboard,
    credit_stages,
    load,
)
from benchmarks.methods import METHODS
from benchmarks.plot import available
from marl.oracle import oracle
from marl.policy import Actor
from marl.results import read
from marl.rollout import rollout

ASKED = ("team + return", "team + TD", "aristocrat + return", "VDN", "reference O8")
ROBOT = {"n_agents": 2, "horizon": 4, "delay": 1, "window": 2, "n_cues": 2}
GAMES = [("credit/walking_robot-v0", ROBOT), ("credit/matrix_game-v0", {"payoff": "two_step"})]
SMALL = ["--seeds", "2", "--episodes", "12", "--fits", "2", "--updates", "6", "--workers", "1"]
SETTINGS = credit.settings  # the real ones, whatever the fixture puts in their place


def small(patch: pytest.MonkeyPatch) -> None:
    """Two small games and hardly any training; figures are drawn in a test of their own."""
    patch.setattr(credit, "settings", lambda quick: GAMES)
    patch.setattr("benchmarks.asking.redraw", lambda *_, **__: [])
    patch.setattr(credit, "FINAL_EPISODES", 16)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    out = tmp_path_factory.mktemp("credit")
    trial.stages.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        small(patch)
        assert credit.main(["--methods", ",".join(ASKED), *SMALL, "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def rows(folder: Path) -> pd.DataFrame:
    """All its rows."""
    return read(folder)


def values(rows: pd.DataFrame, method: str, metric: str, game: str = "walking_robot") -> np.ndarray:
    """A metric of a method on one game: every stage and seed."""
    mine = rows[(rows["method"] == method) & (rows["metric"] == metric) & rows["game"].str.contains(game)]
    assert len(mine) == 6, (method, metric)
    return mine["value"].to_numpy()


def test_cells_hold_every_score_of_every_seed_at_every_stage(rows: pd.DataFrame) -> None:
    """Undefined scores are NaN in rows of their own, never missing; each method's final score stands beside."""
    assert set(rows["method"]) == {*ASKED, *trial.CONTROLS} and rows["cell"].nunique() == 18
    judged = rows[~rows["metric"].str.startswith("final_")]
    assert (judged.groupby("cell")["env_steps"].nunique() == 3).all() and set(rows["seed"]) == {0, 1}
    names = {metric for metric in judged["metric"] if metric.split("_")[0] in ("O3", "O5", "O8")}
    assert len(names) == 3 * (2 * 12 + 3)
    counts = judged[judged["metric"].isin(names)].groupby(["cell", "metric"]).size()
    assert (counts == 2 * 3).all() and len(counts) == 18 * len(names)
    assert set(rows[rows["metric"] == "final_score"]["method"]) == set(ASKED)
    asked = rows[rows["metric"] == "O3_credit_pearson"].groupby("method")["simulator_steps"].max()
    assert asked["team + return"] == 0 < asked["reference O8"]


def test_the_truth_scores_one_against_itself(rows: pd.DataFrame) -> None:
    """As a control against each truth, and as a method's credit against its own definition; the ledger closes."""
    for kind in ("O3", "O5", "O8"):
        for score in ("credit_pearson", "credit_spearman", "sign_accuracy", "unit_auc", "split_which"):
            found = values(rows, "truth itself", f"{kind}_{score}")
            np.testing.assert_allclose(found[~np.isnan(found)], 1, atol=1e-9)
            assert (~np.isnan(found)).any(), (kind, score)
        assert np.nanmax(values(rows, "truth itself", f"{kind}_credit_rmse")) == 0
    np.testing.assert_allclose(values(rows, "truth itself", "conservation_gap"), 0, atol=1e-6)
    assert np.nanmin(values(rows, "reference O8", "O8_credit_pearson")) > 1 - 1e-6
    assert np.nanmin(values(rows, "reference O8", "O8_culprit_auc")) > 1 - 1e-6


def test_wrong_credit_is_ranked_below_by_every_score_meant_to_see_it(rows: pd.DataFrame) -> None:
    """The wrong agent costs who and which but not when, a step late when and which but not who; noise costs all."""
    sees = {
        "truth, wrong agent": ("split_who", "split_which"),
        "truth, one step late": ("split_when", "split_which"),
        "noise": ("split_who", "split_when", "split_which"),
    }
    everyone = ("credit_pearson", "credit_spearman", "sign_accuracy", "unit_auc", "culprit_auc", "top1_culprit")
    for control, parts in sees.items():
        for kind in ("O5", "O8"):
            for score in (*everyone, *parts):
                right = np.nanmean(values(rows, "truth itself", f"{kind}_{score}"))
                wrong = np.nanmean(values(rows, control, f"{kind}_{score}"))
                assert wrong < right - 0.1, (control, kind, score)
    np.testing.assert_allclose(values(rows, "truth, wrong agent", "O5_split_when"), 1, atol=1e-6)


def test_a_broadcast_identifies_no_one_and_that_is_counted(folder: Path, rows: pd.DataFrame) -> None:
    """The team's return has no who and no which: NaN, with the share of episodes where they are defined at 0."""
    for part in ("who", "which"):
        assert np.isnan(values(rows, "team + return", f"O5_split_{part}")).all()
        assert (values(rows, "team + return", f"O5_split_{part}_defined") == 0).all()
    np.testing.assert_allclose(values(rows, "team + return", "O8_culprit_auc"), 0.5, atol=0.35)
    assert (values(rows, "team + return", "factoredness") == 1).all()  # what is good for it is good for the team
    table = credit.final_table(folder, set(rows["cell"]))
    line = next(line for line in table.splitlines() if line.startswith("team + return"))
    assert line.split()[3] == "-" and "0%" in line and all(f"\n{m}" in table for m in (*ASKED, *trial.CONTROLS))


def test_rounding_names_no_one() -> None:
    """What float32 adds to a broadcast is taken out, what a method says is not."""
    shared = torch.linspace(-1e-6, 1, 24).reshape(4, 6, 1).expand(4, 6, 3)
    said = shared + 3e-8 * torch.arange(3)
    returns = torch.full((6,), 5.0)
    assert not (credit.without_rounding(said, returns, 2).diff(dim=-1)).any()
    clear = shared + 1e-3 * torch.arange(3)
    torch.testing.assert_close(credit.without_rounding(clear, returns, 2), clear.double())


def test_running_again_does_only_what_is_missing(
    folder: Path, rows: pd.DataFrame, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Finished cells are kept, and a cell that is gone comes back with the same rows."""
    small(monkeypatch)
    arguments = ["--methods", *ASKED, *SMALL, "--out", str(folder)]
    before = {f.name: f.stat().st_mtime_ns for f in folder.glob("*.parquet")}
    cell = rows[(rows["method"] == "team + TD") & rows["game"].str.contains("matrix")]["cell"].iloc[0]
    (folder / f"{cell}.parquet").unlink()
    trial.stages.cache_clear()
    assert credit.main(arguments) == 0
    assert "17 cells done, 1 to run" in capsys.readouterr().out
    after = {f.name: f.stat().st_mtime_ns for f in folder.glob("*.parquet")}
    assert {name for name in before if before[name] != after[name]} <= {f"{cell}.parquet", f"{cell}.credit.parquet"}
    again, old = (
        x.drop(columns="seconds").reset_index(drop=True) for x in (read(folder, {cell}), rows[rows["cell"] == cell])
    )
    pd.testing.assert_frame_equal(again, old[again.columns], check_dtype=False)


def test_stages_have_policies_that_earn_more_and_more() -> None:
    """Before training, at half of the gain, at nine tenths of it; each from a mark of its own."""
    game = marl.load("credit/matrix_game-v0", payoff="two_step")
    found = trial.policies(game, [trial.TUNING, trial.TUNING + 1], 30)
    earned = [float(rollout(game, actor, 200, [0, 1]).reward.sum(0).mean()) for _, actor in found]
    assert found[0][0] == 0 and len({steps for steps, _ in found}) == 3
    assert earned[0] < earned[1] < earned[2]


def test_changed_lives_differ_from_the_fact_from_the_unit_on() -> None:
    """Own: one action at t anew, everyone reacting after; others: all but that one; the fact stands beside them."""
    game = marl.load("credit/walking_robot-v0", n_agents=3, horizon=6, delay=1, window=3)
    actor = Actor(game, (3, 4))
    tau = rollout(game, actor, 20, [3, 4], purpose=trial.PURPOSE)
    changed = trial.changes(game, actor, tau)
    shape = (6, 2, 3, 20, 3)
    fact, own, others = changed.lives.action.reshape(shape).unbind(2)
    assert torch.equal(fact.flatten(1, 2), tau.action)
    t, agent = changed.t.reshape(2, 20), changed.agent.reshape(2, 20)
    assert len(set(changed.t.tolist())) > 2 and len(set(changed.agent.tolist())) == 3
    assert bool(tau.alive[changed.t, torch.arange(40)].all())
    for s in range(2):
        for e in range(20):
            when, who = int(t[s, e]), int(agent[s, e])
            for lived, same in ((own, [i for i in range(3) if i != who]), (others, [who])):
                assert torch.equal(lived[:when, s, e], fact[:when, s, e])
                assert torch.equal(lived[when, s, e, same], fact[when, s, e, same])
    assert not torch.equal(own, fact) and not torch.equal(others, fact)


def test_q_learners_are_judged_by_what_they_learned_of_this_policy() -> None:
    """VDN on a game that is a sum of each agent's own part finds the parts, once it is fitted."""
    game = marl.load("credit/matrix_game-v0", payoff=[[0.0, 1.0], [4.0, 5.0]])
    actor = Actor(game, (0,))
    tau = rollout(game, actor, 64, [0], purpose=trial.PURPOSE)
    truth = oracle(game, actor, tau, "O3").values
    judge = trial.fitted(METHODS["VDN"], game, actor, 32, 60)
    found, steps = judge.credit(tau)
    assert int(steps.sum()) == 0
    assert float(torch.corrcoef(torch.stack((found.flatten(), truth.flatten())))[0, 1]) > 0.95


def test_figures_are_drawn_from_disk_and_legible(folder: Path) -> None:
    """Scoreboard, by game, two scatters, stages and the heatmap; controls stand on the scoreboard only."""
    mine = {"credit_scoreboard", "credit_by_game", "credit_scatter_learning", "credit_scatter_culprit", "credit_stages"}
    data = load(folder)
    for module in (credit_scoreboard, credit_scatter, credit_stages):
        for draw in module.FIGURES.values():
            said = check_text(draw(data))
            assert "2 seeds" in said and "reference O8" in said and "torch" in said
            assert ("truth, wrong agent" in said) == (module is credit_scoreboard)
    check_text(credit_heatmap.draw(data))
    assert mine <= set(available("credit")) and mine.isdisjoint(available("compare"))


def test_the_table_of_games_can_be_played() -> None:
    """Every setting loads and has its truths; the quick ones are among them; both questions are listed."""
    full = SETTINGS(False)
    for name, knobs in full:
        credit.check_truth(marl.load(name, **knobs))
    assert all(setting in full for setting in SETTINGS(True)) and len(SETTINGS(True)) == len(credit.QUICK_GAMES)
    assert {"credit", "oracles"} <= set(questions()) and {"asking", "trial"}.isdisjoint(questions())
    assert set(credit.QUICK) < set(credit.ASKED)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--episodes", "0"], "--episodes 0 is not allowed"),
        (["--updates", "-3"], "--updates -3 is not allowed"),
        (["--methods", "team + retrun"], "did you mean 'team + return'"),
        (["--methods", ","], "names no method"),
        (["--env-args", "delay=1"], "--env-args needs --env"),
        (["--env", "walking_robot", "--env-args", "wobbel=1"], "wobbel"),
        (["--env", "spread", "--methods", "light cone"], "LightCone needs light_cone"),
        (["--env", "mpe2.simple_spread_v3", "--env-args", "team_reward=mean"], "has no truth of O3 and O5"),
        (["--nonsense"], "--nonsense"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Exit status 2 and a sentence that names the thing; nothing is written."""
    assert credit.main([*arguments, "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1 and words in said
    assert not (tmp_path / "out").exists()


# The oracles.


def some_checks() -> list[oracles.Cell]:
    """One of each kind, and a sampled Shapley value."""
    bar: dict[str, Any] = {"n_agents": 3, "n_nights": 2, "capacity": 2.0}
    cells = [oracles.Cell("agreement", kind, "el_farol", bar, replays=(4, 16, 64)) for kind in ("O3", "O5")]
    cells.append(oracles.Cell("agreement", "O8", "quorum", {}, ("closed", "exact")))
    cells += [oracles.Cell("time", "O6", "walking_robot", ROBOT, ("exact",), (4,), (2, 8))]
    return cells + [cell for cell in oracles.plan(True) if cell.check == "cost"]


def test_oracles_agree_cost_and_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Agreement, prices and times as cells, by `credit --oracles`; no price differs; both figures are legible."""
    cells = some_checks()
    monkeypatch.setattr(oracles, "plan", lambda quick: cells)
    monkeypatch.setattr(oracles, "REPEATS", 1)
    assert credit.main(["--oracles", "--quick", "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "oracle_errors.png" in said and "oracle_clock.png" in said and "DIFFERS" not in said
    rows = read(tmp_path)
    assert (rows[rows["metric"].str.match(r"outside_6@(64|1024)")]["value"] == 0).all()
    assert (rows[rows["metric"].str.match(r"outside_3@(64|1024)")]["value"] <= 0.01).all()
    data = load(tmp_path, set(rows["cell"]))
    for _, lines in credit_oracles.curves(data).items():
        assert all(abs(credit_oracles.slope(table) + 0.5) < 0.1 for _, table in lines)
    for draw in credit_oracles.FIGURES.values():
        check_text(draw(data))


def test_a_wrong_oracle_or_price_would_be_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The controls: a truth that is another agent's lies far outside, and a wrong formula is marked."""
    cell = oracles.Cell("agreement", "O3", "el_farol", {"n_agents": 3, "n_nights": 2, "capacity": 2.0}, replays=(64,))
    real = oracles.ask

    def swapped(cell: oracles.Cell, how: str, *rest: Any) -> Any:
        found, seconds = real(cell, how, *rest)
        return (found._replace(values=found.values.roll(1, -1)) if how == "exact" else found), seconds

    monkeypatch.setattr(oracles, "ask", swapped)
    found = {row.metric: row.value for row in oracles.agreement(cell)}
    assert found["outside_3@64"] > 0.2 and found["outside_6@64"] > 10
    monkeypatch.setattr(oracles, "ask", real)
    price = next(c for c in oracles.plan(True) if c.check == "cost")
    true = oracles.prices
    monkeypatch.setattr(oracles, "prices", lambda *a: {k: v + 1 for k, v in true(*a).items()})
    oracles.run_cell(price, tmp_path)
    assert "DIFFERS" in oracles.tables([price], tmp_path)
