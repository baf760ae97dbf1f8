"""`python -m benchmarks.gradient` end to end: cells, resuming, figures from disk alone, refusals."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from benchmarks import gradient
from benchmarks.__main__ import questions
from benchmarks.figures import gradient as figure
from benchmarks.figures import gradient_order, load
from benchmarks.plot import available, redraw
from marl.results import read

METHODS = tuple(gradient_order.FOLLOWS)  # learned ones are fitted in tests/test_gradient.py
SETTINGS = gradient.settings  # the real ones, whatever the fixture puts in their place
TINY = {"horizon": 4, "window": 2, "n_cues": 2}
SMALL = ["--seeds", "2", "--batches", "12", "--episodes", "8", "--workers", "1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A small sweep over N and D, with little training and fitting."""
    out = tmp_path_factory.mktemp("gradient")

    def few(quick: bool) -> list[tuple[str, dict[str, int]]]:
        grid = ((2, 0), (2, 1), (3, 1))
        return [("credit/walking_robot-v0", {"n_agents": n, "delay": d, **TINY}) for n, d in grid]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gradient, "settings", few)
        patch.setattr("benchmarks.asking.redraw", lambda *_, **__: [])  # drawn once, in its own test
        patch.setattr(gradient, "TRAINED", 4)
        patch.setattr(gradient, "FITTING", 2)
        gradient.stages.cache_clear()
        assert gradient.main(["--methods", ",".join(METHODS), *SMALL, "--out", str(out)]) == 0
        yield out


def test_cells_hold_every_score_of_every_policy_at_both_stages(folder: Path) -> None:
    """Tidy rows; what the proofs predict is the same for all methods, what the simulator was asked for is counted."""
    rows = read(folder)
    assert set(rows["method"]) == set(METHODS) and rows["cell"].nunique() == 15
    per_cell = rows.groupby("cell").size().unique()
    assert len(per_cell) == 1 and sorted(rows["env_steps"].unique()) == [0, 4 * 4 * 32]
    for name in ("cosine", "relative_error", "bias", "variance", "snr"):
        assert (rows["metric"] == f"gradient_{name}").any()
    known = rows[rows["metric"] == "myopic_cosine_with_truth"]
    assert (known.groupby(["knobs", "env_steps", "seed"])["value"].agg(np.ptp) < 1e-9).all()
    asked = rows.groupby("method")["simulator_steps"].max()
    assert asked["team + return"] == 0 < asked["difference + return"] < asked["difference on Q"]


def test_the_order_of_operations_shows(folder: Path) -> None:
    """Even in this small run: with a delay only the two orders that are wrong are far from the truth."""
    rows = read(folder)
    late = rows[(rows["metric"] == "gradient_cosine") & (rows["delay"] == 1)].groupby("method")["value"].mean()
    assert late["team + return"] > 0.8 and late["aristocrat on Q"] > 0.8 and late["difference on Q"] > 0.8
    assert late["aristocrat + return"] < 0.5
    own = rows[(rows["metric"] == "myopic_cosine") & (rows["delay"] == 1)].groupby("method")["value"].mean()
    assert own["aristocrat + return"] > 0.9


def test_running_again_does_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Finished cells are kept; the plan says so, and the table names every method."""
    arguments = ["--methods", *METHODS, *SMALL, "--out", str(folder)]
    before = {f.name: f.stat().st_mtime_ns for f in folder.glob("*.parquet")}
    assert gradient.main(arguments) == 0
    said = capsys.readouterr().out
    assert "15 cells done, 0 to run" in said and all(f"\n{m}" in said for m in METHODS) and "redraw:" in said
    assert before == {f.name: f.stat().st_mtime_ns for f in folder.glob("*.parquet")}


def test_figures_are_drawn_from_disk(folder: Path, tmp_path: Path) -> None:
    """All three; every method has a line in the sweep, every prediction a column beside the order."""
    paths = redraw(folder, tmp_path)
    assert {"gradient_before.png", "gradient_after.png", "gradient_order.png"} <= {p.name for p in paths}
    data = load(folder)
    assert figure.knobs_of(data) == ["n_agents", "delay"] or figure.knobs_of(data) == ["delay", "n_agents"]
    assert set(figure.line_of(data, "delay")["n_agents"]) == {2} and set(figure.line_of(data, "n_agents")["delay"]) == {
        1
    }
    assert "gradient_order" in available("gradient") and "gradient_order" not in available("compare")
    without = data._replace(rows=data.rows[data.rows["method"] != "difference on Q"])
    assert "difference on Q" in gradient_order.needs(without)


def test_quick_and_full_sweeps_can_be_listed() -> None:
    """Team size and delay, one line each; every game of the sweep is small enough."""
    for quick in (True, False):
        found = [knobs for _, knobs in SETTINGS(quick)]
        assert len({k["n_agents"] for k in found}) == 3 and len({k["delay"] for k in found}) >= 3
    assert "gradient" in questions()
    assert {"IPPO", "MAPPO", "VDN"}.isdisjoint(gradient.ASKED) and set(gradient.QUICK) < set(gradient.ASKED)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--batches", "0"], "--batches 0 is not allowed"),
        (["--methods", "team + retrun"], "did you mean 'team + return'"),
        (["--methods", "VDN"], "'VDN' learns action values and follows no policy gradient"),
        (["--env-args", "delay=1"], "--env-args needs --env"),
        (["--env", "walking_robot", "--env-args", "n_agents=40"], "walking_robot"),
        (["--env", "walking_robot", "--env-args", "delay=1", "horizon=4", "window=2", "wobble=1"], "wobble"),
        (
            [
                "--env",
                "walking_robot",
                "--methods",
                "local + return",
                "--env-args",
                "n_agents=2",
                "horizon=4",
                "delay=1",
                "window=2",
            ],
            "Local",
        ),
        (["--nonsense"], "--nonsense"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Exit status 2 and a sentence that names the thing; nothing is written."""
    assert gradient.main([*arguments, "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1 and words in said
    assert not (tmp_path / "out").exists()
