"""What a person is shown is what happened: the face's episode, every step, with the credit that the game declares."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_mdp import TinyMdp

import envs
from envs.__main__ import WIDTH, main
from envs.animation import HELD_MS, NARROWEST, picture, save, strip, whole_file
from envs.base import default_actions
from envs.drawing import BAD, PAPER, TEAM, signed
from envs.play import POLICIES, Caption, credit_of, describe, frames, numbers, play, simulated_differences

WALK = {"n_agents": 4, "horizon": 20, "delay": 6, "window": 8}
FALL = 2  # a seed with which random joints err

TINY: dict[str, dict[str, Any]] = {
    "assembly_line": {"n_agents": 2, "spacing": 1, "inspection": 1, "horizon": 5},
    "cleanup": {"n_agents": 2, "waste": 3, "apples": 2, "horizon": 4},
    "key_door": {"horizon": 5},
    "matrix_game": {"payoff": "two_step"},
    "rover_grid": {"n_agents": 2, "size": 4, "n_points": 1, "horizon": 4},
    "spread": {"horizon": 4},
    "walking_robot": {"n_agents": 3, "horizon": 6, "delay": 2, "window": 2},
}
"""Games whose default episode is long."""


def walk(policy: str = "random", seed: int = FALL, **knobs: Any) -> Any:
    game = envs.rules("walking_robot", **{**WALK, **knobs})
    return game, play(game, policy, seed)


def test_a_game_without_a_scripted_policy_plays_at_random() -> None:
    """The optimal policy of a game that has none is refused in a sentence that says what works."""
    with pytest.raises(ValueError, match="has no scripted policy, so no optimal one; use --policy random"):
        play(TinyMdp(), "optimal", 0)
    assert play(TinyMdp(ends=0.0), "random", 0).steps == TinyMdp().horizon


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", envs.GAMES)
def test_every_game_plays(name: str, policy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Text and GIF of every game under both policies; one frame a step and one of the end."""
    knobs = TINY.get(name, {})
    game = envs.rules(name, **knobs)
    command = ["play", name, "--policy", policy, *(f"{knob}={value}" for knob, value in knobs.items())]
    expected = play(game, policy).steps + 1
    assert main(command) == 0
    assert capsys.readouterr().out.count("return") >= expected
    assert main([*command, "--gif", str(tmp_path / "a.gif"), "--fps", "5"]) == 0
    with Image.open(tmp_path / "a.gif") as image:
        assert image.n_frames == expected and image.info["duration"] == 200 and image.info["loop"] == 0
        image.seek(expected - 1)
        assert image.info["duration"] == HELD_MS, "the end is held"
        assert image.width >= NARROWEST
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.gif"]


@pytest.mark.parametrize("name", envs.GAMES)
def test_the_face_shows_the_same_episode(name: str) -> None:
    """The face, reset with the seed and given the same actions, pays the same and ends at the same step."""
    game = envs.rules(name, **TINY.get(name, {}))
    played = play(game, seed=3)
    face = envs.parallel_env(name, **TINY.get(name, {}))
    face.reset(seed=3)
    for t in range(played.steps):
        _, rewards, ended, cut, _ = face.step(dict(zip(face.agents, played.action[t, 0].tolist(), strict=True)))
        assert rewards["agent_0"] == float(played.reward[t, 0])
        assert (ended["agent_0"] or cut["agent_0"]) == (t == played.steps - 1)
    assert face.agents == []
    assert all(torch.equal(a, b) for a, b in zip(played.end, face._state, strict=True))
    assert torch.equal(play(game, seed=3).action, played.action), "the same seed, the same actions"


def test_random_actions_have_their_own_luck() -> None:
    """Seeds differ; every legal action occurs and no illegal one; both policies meet the same schedule."""
    game, played = walk()
    assert not torch.equal(played.action, play(game, seed=5).action)
    assert set(played.action.unique().tolist()) == {0, 1, 2}
    assert torch.equal(played.state.danger[0], play(game, "optimal", FALL).state.danger[0])

    class Half:
        """A game in which agent i may do only actions of its parity."""

        def __getattr__(self, name: str) -> Any:
            return getattr(game, name)

        def action_mask(self, state: Any) -> torch.Tensor:
            return (torch.arange(3) % 2 == torch.arange(4)[:, None] % 2)[None]

    halves = play(Half(), seed=0).action[:, 0]  # type: ignore[arg-type]
    assert set(halves[:, 1::2].unique().tolist()) == {1} and set(halves[:, ::2].unique().tolist()) == {0, 2}


@pytest.mark.parametrize("seed", range(4))
def test_captions_tell_the_closed_form(seed: int) -> None:
    """The credit under a step is `unit_differences` of its actions; the end shows each agent's largest one."""
    game, played = walk(seed=seed)
    truth = game.unit_differences(played, torch.tensor(game.safe_action))[: played.steps, 0]
    captions = [caption for _, caption in frames(game, played)]
    assert len(captions) == played.steps + 1
    assert torch.equal(torch.tensor([caption.credit for caption in captions[:-1]]), truth)
    assert {caption.scale for caption in captions} == {float(truth.abs().max())}
    last = captions[-1]
    assert last.credit == tuple(float(truth[t, i]) for i, t in enumerate(last.at))
    assert [abs(x) for x in last.credit] == truth.abs().amax(0).tolist()
    assert [caption.actions for caption in captions[:-1]] == [
        tuple(row) for row in played.action[: len(truth), 0].tolist()
    ]
    assert captions[-1].actions == ()
    assert captions[-1].total == f"return {sum(played.reward[:, 0].tolist()):.4g}"


def test_one_credit_finds_the_culprit() -> None:
    """In a walk that fell, the most negative credit stands under the step and the joint that erred."""
    game, played = walk()
    assert played.steps < game.horizon, "this seed falls"
    credit = credit_of(game, played)
    assert credit is not None and credit.instead == "safe action"
    step, joint = divmod(int(credit.value.argmin()), game.n_agents)
    assert step == played.steps - 1 - game.delay
    assert bool(played.state.decisive[step, 0, joint])
    assert int(played.action[step, 0, joint]) != game.safe_action[joint]
    assert float(credit.value[step, joint]) < -game.fall_penalty


@pytest.mark.parametrize("name", ["el_farol", "matrix_game", "walking_robot"])
def test_simulated_credit_is_the_definition(name: str) -> None:
    """What is simulated where no closed form exists agrees with the closed form where one does."""
    game = envs.rules(name, **TINY.get(name, {}))
    largest = 0.0
    for seed in range(5):
        played = play(game, seed=seed)
        closed = game.unit_differences(played, default_actions(game))[:, 0]  # type: ignore[attr-defined]
        simulated = simulated_differences(game, played, default_actions(game))
        assert torch.allclose(simulated, closed.double(), atol=2e-6)
        largest = max(largest, float(closed.abs().max()))
    assert largest > 0, "the comparison was of something"


def test_credit_without_a_closed_form() -> None:
    """spread declares none: its credit is simulated, and an agent on the default action has exactly none."""
    game = envs.rules("spread", horizon=5)
    played = play(game, seed=2)
    credit = credit_of(game, played)
    assert credit is not None and credit.instead == "default action"
    idle = played.action[:, 0] == 0
    assert idle.any() and bool((credit.value[idle] == 0).all()) and float(credit.value.abs().max()) > 0


def test_an_early_end_ends_the_episode() -> None:
    """The last frame is the fall; nothing after it is shown, yet the plan that credit reads goes on to T."""
    game, played = walk()
    shown = frames(game, played)
    assert played.action.shape[0] == game.horizon > played.steps
    assert not bool(shown[-1][0].alive[0]) and bool(shown[-2][0].alive[0])
    assert "ended early" in shown[-1][1].words
    assert "fallen" in describe(game, *shown[-1])


def test_numbers_fit_their_cells() -> None:
    """At most six characters, three digits at the scale, '0' for what changes nothing, a unit where needed."""
    assert numbers([-1.3, 0.0004, 0, 1e-9], 1.3) == (["-1.30", "+.00", "0", "0"], "")
    assert numbers([0.25, -0.0126], 0.25) == (["+.250", "-.013"], "")
    assert numbers([12.345, -4], 41) == (["+12.3", "-4.0"], "")
    assert numbers([6e-4, -3e-5], 6e-4) == (["+600", "-30"], "1e-6")
    assert numbers([12345.0], 12345.0) == (["+12.3"], "1e3")
    assert numbers([0.0, 0.0], 0.0) == (["0", "0"], "")
    for exponent in range(-8, 9):
        for lead in (1.0, 2.49, 9.99):
            words, _ = numbers([-lead * 10.0**exponent], lead * 10.0**exponent)
            assert len(words[0]) <= 6


def test_colours_are_signed() -> None:
    """Orange at the most negative, white at 0, blue at the most positive, clipped beyond; no scale, no colour."""
    assert [signed(x, 2.0) for x in (-3, -2, 0, 2, 5)] == [BAD, BAD, PAPER, TEAM, TEAM]
    assert signed(1.0, 0.0) == PAPER
    half = np.array([int(signed(-1.0, 2.0)[k : k + 2], 16) for k in (1, 3, 5)])
    assert (half > [0xD0, 0x5D, 0]).all() and (half < 255).sum() >= 2


@pytest.mark.parametrize("n", [1, 4, 12, 13, 60, 500])
def test_captions_of_any_team(n: int) -> None:
    """One height for all frames of an episode; the culprit's colour is there, and absent when no credit is known."""
    credit = tuple(-1.0 if i == n - 1 else 0.0 for i in range(n))
    full = Caption("step 0 pays +1", "return 1", (1,) * n, credit, 1.0, "default action")
    end = full._replace(actions=(), at=(0,) * n)
    blank = full._replace(credit=(), scale=0.0, instead="")
    orange = np.array([int(BAD[k : k + 2], 16) for k in (1, 3, 5)])

    def marked(caption: Caption) -> int:
        """Orange pixels above the colour bar, which stands in the last 26 rows; edges of small cells are softened."""
        gap = np.abs(strip(n, 480, caption)[:-26].astype(int) - orange).max(-1)
        return int((gap < 40).sum())

    assert strip(n, 480, full).shape == strip(n, 480, end).shape
    assert marked(full) >= 9 and marked(blank) == 0


def test_one_palette_and_small_files() -> None:
    """All frames share their colours exactly enough that flat areas do not flicker, and a step costs little."""
    game, played = walk()
    pictures = [picture(game, state, caption) for state, caption in frames(game, played)]
    file = io.BytesIO()
    save(file, pictures, 4.0)
    assert len(file.getvalue()) < 8000 * len(pictures)
    with Image.open(file) as image:
        for k in (0, len(pictures) - 1):
            image.seek(k)
            back = np.array(image.convert("RGB")).astype(int)
            assert np.abs(back - pictures[k]).mean() < 1.0
            assert (back[2, 2] == 255).all(), "paper stays white"


BAD_COMMANDS = {
    "command": ["paly"],
    "no name": ["show"],
    "game": ["play", "walking_robto"],
    "version": ["show", "el_farol-v9"],
    "knob": ["show", "el_farol", "capacty=3"],
    "range": ["play", "el_farol", "capacity=0"],
    "kind": ["play", "el_farol", "n_agents=six"],
    "no value": ["play", "el_farol", "n_agents"],
    "twice": ["play", "el_farol", "n_agents=3", "n_agents=4"],
    "policy": ["play", "el_farol", "--policy", "best"],
    "seed": ["play", "el_farol", "--seed", "-1"],
    "no seed": ["play", "el_farol", "--seed", "x"],
    "fps": ["play", "el_farol", "--fps", "nan", "--gif", "OUT"],
    "option": ["play", "el_farol", "--gfi", "OUT"],
    "folder": ["play", "el_farol", "--gif", "FOLDER"],
    "nowhere": ["play", "el_farol", "--gif", "FOLDER/none/a.gif"],
}


@pytest.mark.parametrize("why", BAD_COMMANDS)
def test_bad_input_is_one_line(why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit 2, one sentence on stderr, nothing on stdout, no file left behind."""
    command = [a.replace("OUT", str(tmp_path / "a.gif")).replace("FOLDER", str(tmp_path)) for a in BAD_COMMANDS[why]]
    assert main(command) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1 and len(said.err) > 25
    assert list(tmp_path.iterdir()) == []


def test_an_unwritable_place_is_refused_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is played when the file could not be written; a crash midway leaves the old file whole."""
    monkeypatch.setattr("envs.__main__.play", lambda *_: pytest.fail("played before the place was known to be good"))
    assert main(["play", "el_farol", "--gif", str(tmp_path / "none" / "a.gif")]) == 2
    old = tmp_path / "a.gif"
    old.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), whole_file(old) as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert old.read_bytes() == b"old" and list(tmp_path.iterdir()) == [old]


def test_listing_fits_the_page(capsys: pytest.CaptureFixture[str]) -> None:
    """Every game, no line over 100 characters, values in one column."""
    assert main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= WIDTH
    for title in ("knobs", "sizes", "returns", "capabilities"):
        rows = [line for line in lines if line.startswith(f"  {title} ")]
        assert len(rows) == len(envs.GAMES) and {len(row) - len(row[2 + len(title) :].lstrip()) for row in rows} == {16}


@pytest.mark.parametrize("name", envs.GAMES)
def test_show_tells_all(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Docstring, every knob, sizes, returns with None said, capabilities, default action."""
    assert main(["show", name]) == 0
    out = capsys.readouterr().out
    game = envs.rules(name)
    assert (type(game).__doc__ or "").strip().splitlines()[0] in out
    for knob in type(game).__dataclass_fields__:
        assert f"\n  {knob} " in out
    assert "default action  " in out
    unknown = [game.optimal_return, game.reachable_return, game.random_return].count(None)
    assert out.count(" None (not ") == unknown


def test_show_puts_the_range_beside_the_knob(capsys: pytest.CaptureFixture[str]) -> None:
    """The comment behind the field or the entry in the module's table; the default beside a value that was changed."""
    assert main(["show", "credit/el_farol-v0", "n_agents=9"]) == 0
    out = capsys.readouterr().out
    assert "  n_agents  9 (default 60)  N >= 1" in out and "c >= 0.1 guests" in out
    assert main(["show", "walking_robot"]) == 0
    table = capsys.readouterr().out.partition("\nknobs\n")[2]
    assert "\n  n_decisive         1           moments M, 1..W\n" in table
    assert "\n  joints_per_moment  1           joints m at each moment, 1..N\n" in table
