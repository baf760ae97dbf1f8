"""The sweeps that show what the knobs do: every game is in them, and each moves one knob at a time."""

from __future__ import annotations

import pytest

import envs
from benchmarks import difficulty
from benchmarks.cli import Options, plan


def test_every_game_is_swept() -> None:
    """A new game comes with the knobs that make it hard."""
    assert set(difficulty.SWEEPS) == set(envs.GAMES)


@pytest.mark.parametrize("name", difficulty.SWEEPS)
def test_each_list_holds_the_base_and_allowed_values(name: str) -> None:
    """Otherwise the figure could not tell which knob a panel moves, or the sweep would stop halfway."""
    sweep = difficulty.SWEEPS[name]
    assert sweep.knobs
    for knob, values in sweep.knobs.items():
        assert sweep.base[knob] in values and len(set(values)) == len(values) >= 2
        for value in values:
            envs.rules(name, **(sweep.base | {knob: value}))


def test_equal_budgets_are_counted_in_episodes() -> None:
    """A longer horizon gets as many episodes, not fewer; no cell is planned twice."""
    cells = plan(difficulty.QUESTION, Options(quick=True))
    assert {c.steps // c.experiment.game.horizon for c in cells} == {1600}
    assert len({str(c.config) for c in cells}) == len(cells) and {c.budget for c in cells} == {"1600 episodes"}
