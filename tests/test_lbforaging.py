"""Level-based foraging through our adapter is the published game, step by step, with its two kinds of end split."""

from __future__ import annotations

import copy
import pickle
import sys
import warnings
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from test_external import by_hand, play

import marl
from envs.base import KnobError
from envs.check import check_env
from envs.external import External, GameError, open_game
from envs.lbforaging import Foraging

PUBLISHED: dict[str, dict[str, Any]] = {
    "Foraging-8x8-2p-2f-v3": {},
    "Foraging-5x5-4p-1f-v3": {"size": 5, "players": 4, "foods": 1},
    "Foraging-6x6-3p-2f-coop-v3": {"size": 6, "players": 3, "cooperative": True},
    "Foraging-2s-7x7-3p-3f-v3": {"size": 7, "players": 3, "foods": 3, "sight": 2},
}
VARIANTS: list[dict[str, Any]] = [*PUBLISHED.values(), {"max_level": 4, "penalty": 0.1, "horizon": 9}]
every_published = pytest.mark.parametrize(("name", "knobs"), PUBLISHED.items(), ids=PUBLISHED)


def published(name: str) -> Any:
    """The game as lbforaging itself registers it, without Gymnasium's wrappers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return gymnasium.make(name).unwrapped


def moves(game: Foraging, seed: int) -> np.ndarray:
    """[T,N]: whatever comes, possible or not; loads come often."""
    return np.random.default_rng(seed).choice(6, (game.horizon, game.num_agents), p=[0.1, 0.15, 0.15, 0.15, 0.15, 0.3])


@every_published
def test_equal_to_the_published_game_step_by_step(name: str, knobs: dict[str, Any]) -> None:
    """Knobs mean what the registered ids mean: observations, rewards and ends are equal, bit for bit, on one used game
    of ours against a new one of theirs each episode."""
    mine, ends = Foraging(**knobs), []
    for seed in range(8):
        theirs = published(name)
        seen, _ = theirs.reset(seed=seed)
        shown, _ = mine.reset(seed=seed)
        for t, action in enumerate(moves(mine, seed)):
            assert all(np.array_equal(a, b) for a, b in zip(seen, shown.values(), strict=True))
            seen, rewards, over, cut, _ = theirs.step(action)
            agents = mine.agents
            shown, paid, ended, truncated, _ = mine.step(dict(zip(agents, action, strict=True)))
            assert list(paid.values()) == list(rewards)
            assert over == (ended["player_0"] or truncated["player_0"]) == (not mine.agents)
            assert len(set(ended.values())) == len(set(truncated.values())) == 1
            assert not cut, "lbforaging never truncates; if it does by now, the split is no longer needed"
            if over:
                assert ended["player_0"] == (not theirs.field.any()) != truncated["player_0"]
                ends.append((ended["player_0"], t + 1))
                break
    assert len(ends) == 8
    assert all(eaten or t == 50 for eaten, t in ends)
    if name == "Foraging-5x5-4p-1f-v3":
        assert {eaten for eaten, _ in ends} == {True, False}, "the test needs both kinds of end"


def test_the_published_reset_remembers_the_last_episode_and_ours_does_not() -> None:
    """The reason for clearing places: the same seed on a used game begins otherwise for some seeds."""
    raw, mine, leaks = published("Foraging-5x5-4p-1f-v3"), Foraging(size=5, players=4, foods=1), 0
    for seed in range(40):
        new, _ = published("Foraging-5x5-4p-1f-v3").reset(seed=seed)
        used, _ = raw.reset(seed=seed)
        again, _ = mine.reset(seed=seed)
        leaks += not all(np.array_equal(a, b) for a, b in zip(new, used, strict=True))
        assert all(np.array_equal(a, b) for a, b in zip(new, again.values(), strict=True))
    assert leaks > 0


def test_rewards_add_up_to_the_share_of_food_eaten() -> None:
    """Sum over players and steps is eaten / all food, 1 when nothing is left: the rule that fits is `sum`."""
    whole, part = 0, 0
    for seed in range(12):
        game, total = Foraging(size=5, players=4, foods=2, horizon=80), 0.0
        game.reset(seed=seed)
        food = int(game.game.field.sum())
        for action in moves(game, seed):
            _, paid, ended, *_ = game.step(dict(zip(game.agents, action, strict=True)))
            total += sum(paid.values())
            if not game.agents:
                break
        assert total == pytest.approx(1 - game.game.field.sum() / food, abs=1e-12)
        whole, part = whole + ended["player_0"], part + (0 < total < 1 - 1e-9)
    assert whole and part, "the test needs both"


def test_team_rewards_and_ends_through_the_door() -> None:
    """`sum` and `mean` are the hand-written loop's, `shared` is refused; only who ran out of time is truncated."""
    knobs: dict[str, Any] = {"size": 5, "players": 6, "foods": 1, "horizon": 12}
    games = {rule: open_game("envs.lbforaging", team_reward=rule, **knobs) for rule in ("sum", "mean")}
    total, share = games["sum"], games["mean"]
    assert isinstance(total, External)
    assert (total.horizon, total.n_agents, total.n_actions, total.counterfactuals) == (12, 6, 6, "copy")
    states, actions, rewards = play(total, 6)
    _, again, shares = play(share, 6)
    assert torch.equal(actions, again)
    torch.testing.assert_close(shares * 6, rewards, rtol=0, atol=1e-12)
    eaten = rewards.sum(0) > 1 - 1e-9
    assert eaten.any() and not eaten.all(), "the test needs both kinds of end"
    assert states[-1].done.all()
    assert torch.equal(states[-1].truncated, ~eaten)
    others = [by_hand(total, int(states[0].seed[b]), actions[:, b - 1])[0] for b in range(6)]
    assert any(rewards[: len(team), b].tolist() != team for b, team in enumerate(others)), "other actions are seen"
    for b in range(6):
        team, *_ = by_hand(total, int(states[0].seed[b]), actions[:, b])
        assert rewards[: len(team), b].tolist() == team
    with pytest.raises(GameError, match=r"agents are not paid alike .*; give team_reward=mean"):
        open_game("envs.lbforaging", **knobs)


def test_the_unit_effect_of_doing_nothing_is_nothing() -> None:
    """O8 on the live game: exactly 0 where the default action was taken, something elsewhere."""
    game = marl.load("envs.lbforaging", team_reward="sum", size=5, players=6, foods=1, horizon=6)
    walks = marl.rollout(game, episodes=8, seed=0)
    truth = marl.oracle(game, None, walks, "O8").values
    assert not truth[walks.action == 0].any()
    assert truth[walks.action != 0].any()


@pytest.mark.parametrize(
    "knobs", VARIANTS, ids=lambda knobs: ",".join(f"{k}={v}" for k, v in knobs.items()) or "default"
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_it_is_a_proper_parallel_env(knobs: dict[str, Any]) -> None:
    """PettingZoo's own tests and ours."""
    from pettingzoo.test import parallel_api_test, parallel_seed_test

    parallel_api_test(Foraging(**knobs), num_cycles=60)
    parallel_seed_test(lambda: Foraging(**knobs))
    check_env(Foraging(**knobs))


def test_copies_taken_midway_continue_and_stand_alone() -> None:
    game = Foraging(players=4)
    game.reset(seed=3)
    plan = moves(game, 0)
    for action in plan[:5]:
        game.step(dict(zip(game.agents, action, strict=True)))
    twins = [copy.deepcopy(game), pickle.loads(pickle.dumps(game))]
    for action in plan[5:20]:
        wanted = game.step(dict(zip(game.agents, action, strict=True)))
        for twin in twins:
            seen, *rest = twin.step(dict(zip(twin.agents, action, strict=True)))
            assert all(np.array_equal(seen[a], wanted[0][a]) for a in seen)
            assert tuple(rest) == wanted[1:]


def test_the_state_shows_everything_whatever_the_sight() -> None:
    """With sight of the whole field it is what the first player sees, and the time; with less it says the same."""
    near, far = Foraging(players=3, sight=1, horizon=20), Foraging(players=3, horizon=20)
    near.reset(seed=2)
    seen, _ = far.reset(seed=2)
    for t, action in enumerate(moves(far, 0)):
        state = far.state()
        assert np.array_equal(state, near.state())
        assert np.array_equal(state[:-1], seen["player_0"])
        assert state[-1] == np.float32(t / 20)
        assert far.state_space.contains(state)
        seen, *_ = far.step(dict(zip(far.agents, action, strict=True)))
        near.step(dict(zip(near.agents, action, strict=True)))
    game = open_game("envs.lbforaging", team_reward="sum", players=3, sight=1)
    assert game.critic_size == 3 * 2 + 3 * 3 + 1


def test_a_move_that_is_not_possible_counts_as_none() -> None:
    """At every step each impossible action is replaced by none on a twin: the two games stay equal."""
    game, twin, replaced = Foraging(size=5, players=3), Foraging(size=5, players=3), 0
    game.reset(seed=1)
    twin.reset(seed=1)
    for action in moves(game, 2)[:30]:
        legal = [{a.value for a in game.game._valid_actions[player]} for player in game.game.players]
        other = [a if a in allowed else 0 for a, allowed in zip(action, legal, strict=True)]
        replaced += sum(a != b for a, b in zip(action, other, strict=True))
        one = game.step(dict(zip(game.agents, action, strict=True)))
        two = twin.step(dict(zip(twin.agents, other, strict=True)))
        assert all(np.array_equal(one[0][a], two[0][a]) for a in one[0])
        assert one[1] == two[1]
        if not game.agents:
            break
    assert replaced > 5


def test_bad_requests_get_one_sentence() -> None:
    game = Foraging()
    with pytest.raises(GameError, match="no episode to step; call reset first"):
        game.step({"player_0": 0, "player_1": 0})
    game.reset(seed=0)
    for actions, word in (({"player_0": 0, "player_1": 6}, "6"), ({"player_0": 0}, "None")):
        with pytest.raises(
            GameError, match=rf"action {word} of player_1 is not allowed; it must be .* 0\.\.5 \(none, n"
        ):
            game.step(actions)
    for knobs in ({"size": 4}, {"players": 0}, {"players": 33}, {"sight": -1}, {"penalty": -1.0}, {"cooperative": 1}):
        with pytest.raises(KnobError, match=f"{next(iter(knobs))}=.* is not allowed"):
            Foraging(**knobs)
    with pytest.raises(GameError, match=r"has no knob 'sizes' \(did you mean 'size'\?\)"):
        open_game("envs.lbforaging", sizes=5)
    with pytest.raises(GameError, match=r"lbforaging has no parallel_env, .* \(did you mean 'envs.lbforaging'\?\)"):
        open_game("lbforaging")


def test_a_missing_package_is_said_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lbforaging.foraging", None)
    with pytest.raises(GameError, match=r"needs the package lbforaging, .* pip install 'credit-sandbox\[external\]'"):
        open_game("envs.lbforaging", team_reward="sum")
