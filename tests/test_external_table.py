"""The table of games from outside in envs/EXTERNAL.md says what opening and playing them shows, no more and no less."""

from __future__ import annotations

import re
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from mpe2.all_modules import mpe_environments
from test_external import choose, start
from test_readme import ROOT

from envs.base import flatten, stack
from envs.check import EnvError, check_env
from envs.external import OURS, External, GameError, open_game, recipe


class Row(NamedTuple):
    """A line of the table."""

    name: str
    knobs: dict[str, Any]  # what must be given
    size: tuple[int, int, int]  # agents, actions, steps
    rivals: bool = False  # what one wins another loses
    remembers: bool = False  # an episode leaks into the next, so each needs a new game
    how: str = "copy"  # how it goes back

    def __str__(self) -> str:
        return self.name

    def short(self, steps: int) -> dict[str, Any]:
        """Knobs for a game of so many steps."""
        few = {"n_evaders": 4} if "pursuit" in self.name else {}
        return self.knobs | few | {"horizon" if self.name == "envs.lbforaging" else "max_cycles": steps}


MEAN, SUM = {"team_reward": "mean"}, {"team_reward": "sum"}

EXTERNAL = (
    Row("mpe2.simple_spread_v3", {"local_ratio": 0}, (3, 5, 25)),
    Row("mpe2.simple_formation_v1", {}, (4, 5, 25)),
    Row("mpe2.simple_line_v1", {}, (4, 5, 25)),
    Row("mpe2.simple_speaker_listener_v4", {}, (2, 5, 25)),
    Row("mpe2.simple_reference_v3", {"local_ratio": 0}, (2, 50, 25)),
    Row("mpe2.collect_treasure_v1", MEAN, (8, 5, 25)),
    Row("envs.lbforaging", SUM, (2, 6, 50)),
    Row("sisl/pursuit-v5", {}, (8, 5, 500)),
    Row("butterfly/knights_archers_zombies-v11", SUM, (4, 6, 900), remembers=True),
    Row("mpe2.simple_adversary_v3", MEAN, (3, 5, 25), rivals=True),
    Row("mpe2.simple_crypto_v3", MEAN, (3, 4, 25), rivals=True),
    Row("mpe2.simple_push_v3", MEAN, (2, 5, 25), rivals=True),
    Row("mpe2.simple_tag_v3", MEAN, (4, 5, 25), rivals=True),
    Row("mpe2.simple_world_comm_v3", MEAN, (6, 20, 25), rivals=True),
)
SLOW = (  # they show images of more than 100,000 numbers
    Row("butterfly/cooperative_pong-v6", {"horizon": 900, "render_mode": "rgb_array"}, (2, 3, 900)),
    Row("butterfly/pistonball-v6", {"continuous": False, "render_mode": "rgb_array"}, (20, 3, 125)),
)
STEPS = 15  # of an episode, enough for the whole self-test


def table() -> dict[str, tuple[str, str, bool]]:
    """Name -> (knobs, 'agents x actions, steps', below the heading "Rivals")."""
    page = (ROOT / "envs/EXTERNAL.md").read_text().split("## What was tried")[1].split("\n## ")[0]
    rows: dict[str, tuple[str, str, bool]] = {}
    for line in page.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        size = next((cell for cell in cells if re.fullmatch(r"\d+ x \d+, \d+", cell)), "")
        if line.startswith("| `") and size:
            assert cells[0].strip("`") not in rows, "one line a game"
            rows[cells[0].strip("`")] = cells[1].strip("`"), size, page.index(line) > page.index("\nRivals")
    return rows


def test_the_table_and_the_list_are_the_same() -> None:
    """Every line is tested and every tested game has its line; all of mpe2 is in it, but for the game of one agent."""
    said = table()
    for row in EXTERNAL + SLOW:
        knobs = ", ".join(f"{knob}={str(value).replace('False', 'false')}" for knob, value in row.knobs.items())
        agents, actions, steps = row.size
        assert said.pop(row.name) == (knobs, f"{agents} x {actions}, {steps}", row.rivals), row.name
    assert not said, "lines that nothing tests"
    mine = {row.name for row in EXTERNAL}
    assert {module.__name__ for module in mpe_environments.values()} - mine == {"mpe2.simple_v3"}


def holds(row: Row) -> None:
    """Open, play, go back: what the table says of this row."""
    theirs = {knob: value for knob, value in row.knobs.items() if knob not in OURS}
    new = recipe(row.name, **theirs)().unwrapped
    assert getattr(new, "env", new).max_cycles == row.size[2]
    game = open_game(row.name, **row.short(200 if row.remembers else STEPS))
    assert isinstance(game, External)
    assert game.counterfactuals == row.how, game.why
    assert game.games.reuse != row.remembers
    assert (game.n_agents, game.n_actions) == row.size[:2]
    draw, nothing = torch.Generator().manual_seed(0), torch.zeros(2 * 8, 0)
    states, actions, rewards = [start(game, 2)], [], []
    for _ in range(8):
        actions.append(choose(game, states[-1], draw))
        step = game.step(states[-1], actions[-1], nothing[:2])
        states.append(step.state)
        rewards.append(step.reward)
    old = flatten(stack(states[:-1]))
    again = game.step(old, torch.cat(actions), nothing)
    assert torch.equal(again.reward, torch.cat(rewards)), "a step from an old state"
    elsewhere = game.step(old, torch.cat(actions).roll(1, 0), nothing)
    waiting = torch.zeros_like(torch.cat(actions))  # mpe2 moves a body only the step after it was pushed
    ways = [(way, game.step(way.state, waiting, nothing)) for way in (again, elsewhere)]
    seen, other = (torch.cat([step.state.obs for step in way]) for way in ways)
    assert not torch.equal(seen, other), "other actions lead elsewhere"


@pytest.mark.parametrize("row", EXTERNAL, ids=str)
def test_a_row_holds(row: Row) -> None:
    """It opens with the knobs named and not without, of the size named; every old state can be stepped again."""
    holds(row)
    needed = {"team_reward", "local_ratio"} & row.knobs.keys()
    if needed:
        short = row.short(200 if row.remembers else 40)
        with pytest.raises(GameError, match="agents are not paid alike"):
            open_game(row.name, **{knob: value for knob, value in short.items() if knob not in needed})


@pytest.mark.slow
@pytest.mark.parametrize("row", SLOW, ids=str)
def test_a_row_of_images_holds(row: Row) -> None:
    """The same for games that show pictures."""
    holds(row)


@pytest.mark.parametrize("row", [row for row in EXTERNAL + SLOW if not row.remembers], ids=str)
def test_check_env_passes(row: Row) -> None:
    """What a face alone can promise, by any name that `--env` takes."""
    ours = row.knobs.keys() & OURS
    check_env(row.name, **{knob: value for knob, value in row.short(8).items() if knob not in ours})


@pytest.mark.slow
def test_check_env_finds_the_game_that_remembers() -> None:
    """Why it is made anew for each episode."""
    with pytest.raises(EnvError, match=r"same_again: .* on a face that has played before differs"):
        check_env("butterfly/knights_archers_zombies-v11", max_cycles=200)


@pytest.mark.parametrize("row", [row for row in EXTERNAL if row.name.startswith("mpe2")], ids=str)
def test_rivals_are_those_whose_rewards_go_apart(row: Row) -> None:
    """In random play the rewards of some two rivals are negatively correlated, those of no two teammates are."""
    game, draw, rewards = recipe(row.name)(), np.random.default_rng(0), []
    for seed in range(40 // len(game.possible_agents)):
        game.reset(seed=seed)
        while game.agents:
            _, paid, *_ = game.step({agent: int(draw.integers(game.action_space(agent).n)) for agent in game.agents})
            rewards.append([paid[agent] for agent in game.possible_agents])
    pairs = np.corrcoef(np.array(rewards).T)
    lowest = min(pairs[i, j] for i, j in combinations(range(len(pairs)), 2))
    assert lowest < -0.15 if row.rivals else lowest > 0.3


def test_in_simple_push_the_good_agents_distance_cancels() -> None:
    """Why a team reward means little there: the sum is minus the adversary's own distance to the goal."""
    game = recipe("mpe2.simple_push_v3")()
    game.reset(seed=0)
    world = game.unwrapped.world
    adversary = next(agent for agent in world.agents if agent.adversary)
    for t in range(20):
        _, paid, *_ = game.step({agent: t % 5 for agent in game.agents})
        assert sum(paid.values()) == pytest.approx(
            -np.linalg.norm(adversary.goal_a.state.p_pos - adversary.state.p_pos)
        )


@pytest.mark.parametrize("name", ["mpe2.simple_adversary_v3", "mpe2.collect_treasure_v1"])
def test_no_knob_is_named_that_the_game_does_not_have(name: str) -> None:
    """`local_ratio=0` is the fix only where the game takes it."""
    with pytest.raises(GameError, match=r"give team_reward=mean \(or sum\)$"):
        open_game(name)
    with pytest.raises(GameError, match="give --env-args local_ratio=0"):
        open_game("mpe2.simple_reference_v3")
