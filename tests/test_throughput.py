"""The speed report runs from the command line on every game, and what it prints is what it was asked for."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

import envs
from benchmarks import costs, throughput, timing


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports go to results/throughput of the folder that one stands in."""
    monkeypatch.chdir(tmp_path)


def test_rules_of_every_game_are_timed_beside_mpe2(capsys: pytest.CaptureFixture[str]) -> None:
    """One line a game with a positive rate at every batch; spread is its own yardstick."""
    assert throughput.main(["--what", "rules", "--batches", "1", "3", "--repeats", "1", "--threads", "1"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line}
    assert set(envs.GAMES) < set(lines)
    for name in envs.GAMES:
        rates = [float(x.replace(",", "")) for x in re.findall(r"([\d,.]+) \(", lines[name])]
        assert len(rates) == 2 and min(rates) > 0
    assert lines["spread"].endswith(" 1.00")


def test_training_is_timed(capsys: pytest.CaptureFixture[str]) -> None:
    """A line for each team size and number of seeds; the first number of seeds is the unit."""
    few = ["--n-agents", "2", "--seeds", "1", "2", "--updates", "1", "--repeats", "1", "--threads", "1"]
    assert throughput.main(["--what", "training", *few]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("team + return")]
    assert [line[3:5] for line in lines] == [["2", "1"], ["2", "2"]] and lines[0][-1] == "1.00"
    page = Path("results/throughput/figures/report.html").read_text()
    assert "team + return" in page and "training" in page and "Figures</h2>" not in page


def test_cost_of_difference_rewards_grows_as_declared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exactly N simulator steps an environment step by replay; the one-shot closed form is charged the same."""
    figure = tmp_path / "cost.png"
    few = ["--sizes", "2", "4", "8", "--repeats", "1", "--threads", "1", "--figure", str(figure)]
    assert throughput.main(["--what", "cost", *few]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if "simulator steps" in line]
    assert [line[0] for line in lines] == ["el_farol", "el_farol", "walking_robot", "walking_robot"]
    for k in (0, 1, 2):
        assert [float(x) for x in lines[k][-4:]] == [2, 4, 8, 1]
    assert figure.stat().st_size > 10_000
    page = Path("results/throughput/figures/report.html").read_text()
    assert page.count("<img ") == 1 and "walking_robot" in page


def test_what_happens_after_the_rules_is_timed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rollouts, stages, growth and oracles: a line for each, shares that add up, the peer's absence in plain words."""
    figure = tmp_path / "growth.png"
    few = ["--batches", "2", "--seeds", "1", "--updates", "1", "--repeats", "1", "--threads", "1", "--quick"]
    parts = ["rollout", "where", "growth", "oracles"]
    assert throughput.main(["--what", *parts, *few, "--growth-figure", str(figure)]) == 0
    lines = capsys.readouterr().out.splitlines()
    policies = [line for line in lines if line.startswith(("uniform ", "team + return ", "IPPO "))]
    assert len(policies) == 5  # three of rollouts, two of updates
    for line in policies[3:]:
        assert sum(int(x) for x in re.findall(r"(\d+)%", line)) == pytest.approx(100, abs=2)
    assert policies[-1].split()[-1] != "-"  # PPO's operations are counted
    assert [line.split("=")[0].strip() for line in lines if "=" in line and ": " in line and line[0] == " "] == [
        *"NTSB"
    ]
    assert any(line.startswith("O6 on walking_robot") for line in lines) and figure.stat().st_size > 10_000


def test_operations_are_counted() -> None:
    """JaxMARL's settings on spread cost about 793 kFLOP an environment step; a learner without PPO is not counted."""
    game = envs.rules("spread")
    assert timing.flops(timing.Stages(game, "IPPO")) == pytest.approx(793e3, rel=0.1)
    assert timing.flops(timing.Stages(game, "team + return")) is None


def test_a_missing_peer_is_named() -> None:
    """Whether JaxMARL was measured is said in one line."""
    assert timing.jaxmarl_line().startswith("JaxMARL is") and "\n" not in timing.jaxmarl_line()


def test_exponent_is_the_power_laws() -> None:
    """c N^p comes back as p, whatever c; one size has none."""
    assert costs.exponent([4, 16, 256], [3 * n**1.5 for n in (4, 16, 256)]) == pytest.approx(1.5)
    assert math.isnan(costs.exponent([4], [1.0]))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--what", "speed"], "--what speed is not allowed; it must be one or more of rules, rollout, training, where"),
        (["--batches", "0"], "--batches takes whole numbers, 1 or more"),
        (["--sizes", "0"], "--sizes takes whole numbers, 1 or more"),
        (["--repeats", "0"], "--repeats 0 is not allowed"),
        (["--games", "robot"], "there is no game 'robot'"),
        (["--methods", "tea"], "there is no method 'tea'"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Refused before anything is timed, exit status 2."""
    assert throughput.main(arguments) == 2
    assert sentence in capsys.readouterr().err
