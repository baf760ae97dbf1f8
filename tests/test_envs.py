"""Every registered game, over its grid of knobs, keeps its contract and passes PettingZoo's own tests."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import broken_games
import brute
import numpy as np
import pettingzoo
import pytest
import torch
from pettingzoo.test import api_test, parallel_api_test, render_test, seed_test
from pettingzoo.test.state_test import state_test

import envs
from envs.base import KnobError
from envs.check import check_env
from envs.parallel import ParallelGame, episode_noise
from marl.rollout import rollout

SHORT = {"n_agents": 3, "horizon": 24, "delay": 9, "window": 8}

GRID: dict[str, list[dict[str, Any]]] = {
    "assembly_line": [
        {"horizon": 30},
        {"horizon": 30, "mode": "and"},
        {"n_agents": 3, "spacing": 0, "inspection": 0, "horizon": 4, "mode": "and", "n_cues": 2},
        {"n_agents": 5, "spacing": 1, "inspection": 9, "horizon": 14, "n_cues": 7},
        {"n_agents": 1, "inspection": 2, "horizon": 6},
    ],
    "cleanup": [
        {},
        {"n_agents": 1, "waste": 1, "apples": 1, "horizon": 4},
        {"n_agents": 6, "waste": 5, "apples": 9, "horizon": 12, "dirt_probability": 0.4, "growth": 0.2},
        {"n_agents": 2, "waste": 3, "horizon": 7, "dirt_probability": 0, "growth": 1},
        {"n_agents": 3, "waste": 20, "horizon": 6, "dirt_probability": 0.3, "growth": 0},
    ],
    "el_farol": [{}, {"n_agents": 7, "n_nights": 2, "capacity": 2.5}, {"n_agents": 1, "n_nights": 1}],
    "gaussian_squeeze": [
        {},
        {"n_agents": 1, "mu": 0, "sigma": 0.1},
        {"n_agents": 5, "mu": 45, "sigma": 40.0},
        {"n_agents": 150},
    ],
    "key_door": [
        {"horizon": 23},
        {"n_agents": 4, "keys_needed": 2, "horizon": 9, "treasure": 3},
        {"horizon": 2, "treasure": 0},
        {"n_agents": 2, "horizon": 4, "apple_probability": 1, "observe_key": True},
        {"n_agents": 5, "keys_needed": 5, "horizon": 6, "apple_probability": 0},
        {"n_agents": 2, "horizon": 7, "apple_values": [1, 1], "apple_probability": 0.5},
    ],
    "matrix_game": [
        {},
        {"payoff": "penalty", "penalty": -20},
        {"payoff": "qtran"},
        {"payoff": "two_step"},
        {"payoff": [[[1, 2], [3, -4]], [[5, 6], [-7, 9.5]]]},
        {"payoff": [3, 1, 2]},
    ],
    "quorum": [
        {},
        {"n_agents": 1, "quorum": 1, "cost": 0},
        {"n_agents": 5, "quorum": 5, "cost": 3.0},
        {"n_agents": 32, "quorum": 28, "cost": 1},
        {"n_agents": 6, "quorum": 1},
    ],
    "rover_grid": [
        {},
        {"n_agents": 1, "size": 2, "n_points": 1, "coupling": 1, "radius": 0, "horizon": 1},
        {"n_agents": 2, "size": 4, "radius": 0, "n_points": 2, "horizon": 4},
        {"n_agents": 3, "coupling": 1, "size": 5, "n_points": 3, "horizon": 4},
        {"n_agents": 5, "size": 6, "radius": 2, "n_points": 7, "horizon": 24},
        {"n_agents": 2, "coupling": 3, "size": 6, "horizon": 5},
    ],
    "spread": [{}, {"n_agents": 2, "local_ratio": 0.5, "horizon": 7}],
    "walking_robot": [
        {},
        {**SHORT, "n_decisive": 3, "joints_per_moment": 2, "n_actions": 2},
        {**SHORT, "n_decisive": 3, "decoys": 5, "n_cues": 2},
        {**SHORT, "stagger": 4, "safe": "hold", "temptation": 0},
        {**SHORT, "delay": 0, "n_decisive": 3, "joints_per_moment": 2},
        {**SHORT, "wobble": 1.0, "observe_damage": "critic", "fall_penalty": 0},
        {**SHORT, "observe_damage": "all", "stagger": 8, "wobble": 0.5, "decoys": 3, "layout_seed": 4},
        {**SHORT, "n_agents": 1, "n_decisive": 8},
    ],
}
CASES = [pytest.param(name, knobs, id=f"{name}-{k}") for name in envs.GAMES for k, knobs in enumerate(GRID[name])]

every_game = pytest.mark.parametrize(("name", "knobs"), CASES)


def test_every_game_has_a_grid() -> None:
    """A new game is not registered without knobs to test it over."""
    assert set(GRID) == set(envs.GAMES)


@every_game
def test_contract(name: str, knobs: dict[str, Any]) -> None:
    """Purity, determinism, closed forms, optima, copies, the face against the rules: see envs.check."""
    check_env(name, **knobs)


@every_game
@pytest.mark.filterwarnings("ignore::UserWarning")  # PettingZoo warns that a one-number observation is unusual
def test_pettingzoo_suite(name: str, knobs: dict[str, Any]) -> None:
    """PettingZoo's parallel, AEC, seed, state and render tests, through its own registry."""

    def parallel(**more: Any) -> Any:
        return pettingzoo.make("parallel", envs.game_id(name), **knobs, **more)

    def aec(**more: Any) -> Any:
        return pettingzoo.make("aec", envs.game_id(name), **knobs, **more)

    parallel_api_test(parallel(), num_cycles=60)
    api_test(aec(), num_cycles=60)
    seed_test(aec, num_cycles=60)
    state_test(aec(), parallel(), num_cycles=10)
    render_test(aec)


@every_game
def test_float32_walks_with_float64(name: str, knobs: dict[str, Any]) -> None:
    """Training and the exact identities see the same episodes, but for rounding (contacts in spread amplify it)."""
    game = envs.rules(name, **knobs)
    plan = torch.randint(game.n_actions, (game.horizon, 4, game.n_agents), generator=torch.Generator().manual_seed(0))
    totals = []
    for dtype in (torch.float32, torch.float64):
        first, later = episode_noise(game, 0, torch.arange(4), dtype)
        state, total = game.reset(first), torch.zeros(4, dtype=torch.float64)
        for t in range(game.horizon):
            outcome = game.step(state, plan[t], later[:, t])
            state, total = outcome.state, total + outcome.reward.double()
        totals.append(total)
    assert torch.allclose(*totals, rtol=1e-4 if name == "spread" else 1e-6, atol=1e-5)


# The registry.


def test_import_registers_every_game() -> None:
    """`import envs` alone is enough, both kinds, both spellings of the version; nothing heavy comes with it."""
    code = (
        "import sys, envs, pettingzoo; "
        "a = pettingzoo.make('parallel', 'credit/el_farol-v0', n_agents=12); "
        "b = pettingzoo.make('aec', 'credit/el_farol_v0', n_agents=12); "
        "assert a.unwrapped.rules == b.unwrapped.rules and a.rules.n_agents == 12; "
        "assert not {'marl', 'pandas', 'scipy', 'matplotlib', 'PIL', 'mpe2'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_names_and_knobs_are_explained() -> None:
    """Unknown game, version or knob: one sentence with what there is and what is closest."""
    full, short = envs.rules("credit/el_farol-v0", capacity=3), envs.rules("el_farol", capacity=3)
    assert full == short
    with pytest.raises(
        ValueError, match=r"no game 'walkin_robot' \(did you mean 'walking_robot'\?\); the games are [a-z_, ]*el_farol"
    ):
        envs.rules("walkin_robot")
    with pytest.raises(ValueError, match="there is no version v7 of el_farol; its version is v0"):
        envs.rules("credit/el_farol-v7")
    with pytest.raises(
        KnobError, match=r"el_farol has no knob 'n_agent' \(did you mean 'n_agents'\?\); its knobs are n_a"
    ):
        pettingzoo.make("parallel", "credit/el_farol-v0", n_agent=3)
    with pytest.raises(KnobError, match="ElFarol: n_agents=-1 is not allowed"):
        pettingzoo.make("aec", "credit/el_farol-v0", n_agents=-1)


# The face.


def lanterns(**more: Any) -> ParallelGame:
    return ParallelGame(broken_games.Lanterns(), **more)


def episode(face: ParallelGame, action: int = 1) -> list[Any]:
    """All that a face says from here to the end of the episode."""
    said = []
    while face.agents:
        said.append(face.step(dict.fromkeys(face.agents, action)))
    return said


def told(said: Any) -> str:
    return repr(said)


def test_reset_counts_episodes() -> None:
    """A seed begins at its episode 0; without one the next episode follows, with the noise of (seed, episode)."""
    face = lanterns()
    seen = []
    for seed in (3, None, None, 3, None):
        observations, _ = face.reset(seed=seed, options={"whatever": 1})
        seen.append(np.stack(list(observations.values())))
    for k, number in enumerate([0, 1, 2, 0, 1]):
        first, _ = episode_noise(face.rules, 3, number)
        assert np.array_equal(seen[k], face.rules.observe(face.rules.reset(first))[0].numpy())
    assert told(lanterns().reset()) == told(lanterns().reset(seed=0))


def test_last_step_speaks_to_everyone() -> None:
    """Rewards and flags reach every agent on the last step, then `agents` is empty; ends and horizons differ."""
    face = lanterns()
    ends = set()
    for seed in range(20):
        face.reset(seed=seed)
        *_, (observations, rewards, terminated, truncated, infos) = episode(face)
        everyone = face.possible_agents
        for part in (observations, rewards, terminated, truncated, infos):
            assert list(part) == everyone
        assert face.agents == [] and terminated["agent_0"] and not truncated["agent_0"]
        ends.add(face._time)
    assert len(ends) > 1  # some lights go out early
    walker = envs.parallel_env("spread", horizon=2)
    walker.reset(seed=0)
    *_, (_, _, terminated, truncated, _) = episode(walker, 0)
    assert not any(terminated.values()) and all(truncated.values())


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda face: pickle.loads(pickle.dumps(face))])
def test_copy_mid_episode_goes_on(duplicate: Any) -> None:
    """A copy has the original's future, and its next episode; the two do not share memory."""
    face = lanterns()
    face.reset(seed=8)
    face.step({"agent_0": 0, "agent_1": 1})
    twin = duplicate(face)
    future = told([episode(face), face.reset(), episode(face)])
    assert told([episode(twin), twin.reset(), episode(twin)]) == future


def test_wrong_actions_get_a_sentence() -> None:
    """Before reset, after the end, missing or unknown agents, values outside the space: refused, and nothing moved."""
    face = lanterns()
    fine = {"agent_0": 0, "agent_1": 1}
    for call in (lambda: face.step(fine), face.state):
        with pytest.raises(ValueError, match=r"lanterns: call reset\(\) before"):
            call()
    face.reset(seed=0)
    before = told(face._state)
    for actions, words in [
        ({"agent_0": 0}, "needs an action for every agent; agent_1 got none"),
        (fine | {"agent_2": 0}, "was given an action for agent_2; the agents are agent_0..agent_1"),
        (fine | {"agent_1": 2}, r"action 2 of agent_1 is not allowed; it must be a whole number in 0..1"),
        (fine | {"agent_1": -1}, "action -1 of agent_1"),
        (fine | {"agent_1": 0.5}, "action 0.5 of agent_1"),
        (fine | {"agent_1": np.array([1])}, r"action array\(\[1\]\) of agent_1"),
        (fine | {"agent_1": None}, "action None of agent_1"),
        ([0, 1], "takes a dict from agent to action, not a list"),
    ]:
        with pytest.raises(ValueError, match=words):
            face.step(actions)
    assert told(face._state) == before
    face.step({"agent_0": np.int32(1), "agent_1": np.array(0)})  # what numpy code passes
    episode(face)
    with pytest.raises(ValueError, match=r"the episode is over; call reset\(\)"):
        face.step(fine)
    for seed in (-1, 1.5, "0", True):
        with pytest.raises(ValueError, match=r"seed=.* is not allowed"):
            face.reset(seed=seed)  # type: ignore[arg-type]


def test_masks_travel_in_infos() -> None:
    """int8, one an agent, at reset and at every step; PettingZoo's sampler reads them."""
    face = ParallelGame(broken_games.Masked())
    observations, infos = face.reset(seed=0)
    while face.agents:
        for agent in face.agents:
            mask = infos[agent]["action_mask"]
            assert mask.dtype == np.int8 and mask.shape == (2,)
            assert mask.sum() == (1 if agent == "agent_0" else 2)
        actions = {a: int(face.action_space(a).sample(infos[a]["action_mask"])) for a in face.agents}
        assert actions["agent_0"] == observations["agent_0"][0]
        observations, _, _, _, infos = face.step(actions)


def test_pictures(capsys: pytest.CaptureFixture[str]) -> None:
    """Each mode gives what it promises; a game without a picture, or no mode, gets a sentence."""
    picture = envs.parallel_env("el_farol", render_mode="rgb_array")
    with pytest.raises(ValueError, match=r"call reset\(\) before render"):
        picture.render()
    picture.reset(seed=0)
    before = picture.render()
    episode(picture)
    assert isinstance(before, np.ndarray) and not np.array_equal(before, picture.render())
    printing = envs.parallel_env("el_farol", render_mode="human")
    printing.reset(seed=0)
    episode(printing)
    assert "guests of night 1: 60, night 2: 0" in capsys.readouterr().out
    silent = envs.parallel_env("el_farol")
    silent.reset()
    with pytest.raises(ValueError, match="render_mode set to one of human, ansi, rgb_array"):
        silent.render()
    with pytest.raises(ValueError, match="it must be None, as this game has no picture"):
        lanterns(render_mode="ansi")
    assert lanterns().metadata["render_modes"] == []


def test_metadata_and_spaces() -> None:
    """What PettingZoo tools read; spaces are the same object each time."""
    face = envs.parallel_env("matrix_game", payoff="two_step")
    assert face.metadata["name"] == str(face) == "matrix_game_v0"
    assert face.metadata["is_parallelizable"] and face.metadata["render_fps"] == 10
    assert face.observation_space("agent_1") is face.observation_space("agent_1")
    assert face.observation_space("agent_1").shape == (3,) and face.action_space("agent_0").n == 2
    face.reset()
    assert face.state_space.contains(face.state())


def test_listing(capsys: pytest.CaptureFixture[str]) -> None:
    """`python -m envs` names every game, its knobs and its capabilities."""
    from envs.__main__ import main

    main()
    out = capsys.readouterr().out
    for name in envs.GAMES:
        assert envs.game_id(name) in out
    assert "unit_shapley" in out and "n_nights=7" in out


TINY: dict[str, dict[str, Any]] = {
    "el_farol": {"n_agents": 4, "n_nights": 2, "capacity": 1.5},
    "matrix_game": {"payoff": "two_step"},
    "walking_robot": {"n_agents": 2, "horizon": 4, "delay": 1, "window": 2, "n_actions": 2, "n_decisive": 2},
}


@pytest.mark.parametrize("name", TINY)
def test_no_plan_beats_the_optimum(name: str) -> None:
    """Every plan there is, on a tiny instance: the best of them earns `optimal_return`, none more."""
    game = envs.rules(name, **TINY[name])
    plans = brute.every_joint_action(game)
    for episode_number in range(4):
        first, later = brute.noise_of(game, episode_number + 1)
        one = first[-1:].expand(plans.shape[1], -1), later[-1:].expand(plans.shape[1], -1, -1)
        best = float(brute.frozen_return(game, one, plans).max())
        assert best == pytest.approx(game.optimal_return, abs=1e-12)


def test_the_game_in_the_guide_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """envs/README.md as written: save the first listing, run the second."""
    guide = (Path(envs.__file__).parent / "README.md").read_text()
    use, game, check = (part.split("```")[0] for part in guide.split("```python\n")[1:])
    (tmp_path / "echo.py").write_text(game)
    monkeypatch.syspath_prepend(tmp_path)
    exec(use, {})
    exec(check, {})
    check_env("mine/echo-v0", n_agents=4, horizon=3)
    with pytest.raises(KnobError, match="Echo: horizon=0 is not allowed"):
        pettingzoo.make("parallel", "mine/echo-v0", horizon=0)


@every_game
def test_face_lives_the_episodes_of_a_rollout(name: str, knobs: dict[str, Any]) -> None:
    """face.reset(seed=s) and face.reset() are episodes 0 and 1 of a batched rollout of seed s, bit for bit."""
    face = envs.parallel_env(name, **knobs)
    lived = rollout(face.rules, episodes=2, seed=[5, 3])
    for row, seed in [(2, 3), (3, None)]:
        observations, _ = face.reset(seed=seed)
        for t in range(face.rules.horizon):
            assert np.array_equal(np.stack(list(observations.values())), lived.obs[t, row].numpy())
            observations, rewards, *_ = face.step(dict(zip(face.agents, lived.action[t, row].tolist(), strict=True)))
            assert set(rewards.values()) == {float(lived.reward[t, row])}
            if not face.agents:
                break
        assert not face.agents and not lived.alive[t + 1 :, row].any()
