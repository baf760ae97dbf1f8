"""A game from outside must pay what it pays by hand, and go back exactly or say that it cannot."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mpe2.simple_spread_v3
import numpy as np
import pytest
import torch
import toy_external as toys
from torch import Tensor

from envs import external_games
from envs import noise as exogenous
from envs.base import Env, HasActionMask, KnobError, flatten, repeat, stack, take
from envs.external import CounterfactualError, External, ExternalState, GameError, open_game
from envs.external_face import Face
from envs.snapshots import load, save

MAKERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "mpe2": ("mpe2.simple_spread_v3", {"local_ratio": 0}),
    "mpe2 mean": ("mpe2.simple_spread_v3", {"local_ratio": 0.5, "team_reward": "mean", "N": 4, "max_cycles": 9}),
    "pursuit": (toys.pursuit, {}),
    "pursuit sum": (toys.pursuit, {"shared_reward": False, "team_reward": "sum"}),
    "foraging": ("envs.lbforaging", {"players": 6, "size": 5, "horizon": 12, "penalty": 0.1, "team_reward": "sum"}),
    "toy": (toys.Toy, {}),
    "last step pays": (toys.LastStepPays, {}),
    "crowd": (toys.Crowd, {"team_reward": "sum"}),
    "mask inside": (toys.MaskInside, {}),
    "own state": (toys.HasState, {}),
    "forgets luck": (toys.ForgetsLuck, {}),
    "remembers episodes": (toys.RemembersEpisodes, {}),
    "generator": (toys.HoldsGenerator, {}),
    "lies when copied": (toys.LiesWhenCopied, {}),
}
MODES = {"own state": "state", "generator": "replay", "lies when copied": "replay"}


@pytest.fixture(scope="module", params=MAKERS)
def game(request: pytest.FixtureRequest) -> Env[Any]:
    source, knobs = MAKERS[request.param]
    found = open_game(source, **knobs)
    assert isinstance(found, External)
    return found


def start(game: Env[Any], episodes: int, seed: int = 5) -> ExternalState:
    return game.reset(exogenous.uniform("reset", seed, range(episodes), (1,), torch.float64))


def choose(game: Env[Any], state: ExternalState, draw: torch.Generator) -> Tensor:
    """Random legal actions."""
    legal = torch.ones(*state.present.shape, game.n_actions)
    if isinstance(game, HasActionMask):
        legal = game.action_mask(state).double()
    return torch.multinomial(legal.flatten(0, 1).double(), 1, generator=draw).view(state.present.shape)


def play(game: Env[Any], episodes: int = 3) -> tuple[list[ExternalState], Tensor, Tensor]:
    """States 0..T, actions [T,B,N], rewards [T,B] of random play."""
    draw, nothing = torch.Generator().manual_seed(0), torch.zeros(episodes, 0)
    states, actions, rewards = [start(game, episodes)], [], []
    for _ in range(game.horizon):
        actions.append(choose(game, states[-1], draw))
        after, reward, done = game.step(states[-1], actions[-1], nothing)
        assert torch.equal(done, after.done)
        states.append(after)
        rewards.append(reward)
    return states, torch.stack(actions), torch.stack(rewards)


def by_hand(game: External, seed: int, actions: Tensor) -> tuple[list[float], list[dict[Any, Any]], list[dict]]:
    """The same episode as anyone would loop over it: team rewards, agents' rewards, observations."""
    env = game.make()
    seen, _ = env.reset(seed=seed)
    team, paid, shown = [], [], [seen]
    for action in actions.tolist():
        names = env.possible_agents
        moves = {a: action[names.index(a)] + int(env.action_space(a).start) for a in env.agents}
        seen, reward, *_ = env.step(moves)
        total = sum(reward.values())
        shared = next(iter(reward.values()))
        team.append({"shared": shared, "sum": total, "mean": total / len(names)}[game.team_reward])
        paid.append(dict(reward))
        shown.append(seen)
        if not env.agents:
            break
    return team, paid, shown


def test_returns_equal_a_hand_written_loop_exactly(game: External) -> None:
    states, actions, rewards = play(game)
    names = game.make().possible_agents
    for b in range(3):
        team, paid, shown = by_hand(game, int(states[0].seed[b]), actions[:, b])
        steps = len(team)
        assert rewards[:steps, b].tolist() == team
        assert not rewards[steps:, b].any()
        for t in range(steps):
            own = states[t + 1].rewards[b].tolist()
            assert own == [float(paid[t].get(name, 0.0)) for name in names]
        for t, seen in enumerate(shown):
            for i, name in enumerate(names):
                if isinstance(seen.get(name), np.ndarray):
                    wanted = seen[name].reshape(-1).tolist()
                    assert states[t].obs[b, i, : len(wanted)].tolist() == wanted
        assert states[steps].done[b]
        assert sum(team) != 0.0


def test_the_start_up_test_finds_how_a_game_goes_back(request: pytest.FixtureRequest, game: External) -> None:
    name = request.node.callspec.params["game"]
    assert game.counterfactuals == MODES.get(name, "copy")
    if name == "generator":
        assert "generator" in game.why
    if name == "lies when copied":
        assert "differed at step" in game.why


def test_stepping_an_old_state_equals_a_fresh_game_replayed_by_hand(game: External) -> None:
    states, actions, rewards = play(game)
    nothing = torch.zeros(3, 0)
    for t in {0, game.horizon // 2, game.horizon - 1}:
        swapped = actions[t].roll(1, 0) if not isinstance(game, HasActionMask) else actions[t]
        after, reward, _ = game.step(states[t], swapped, nothing)
        for b in range(3):
            if not states[t].done[b]:
                team, *_ = by_hand(game, int(states[0].seed[b]), torch.cat([actions[:t, b], swapped[b][None]]))
                assert reward[b].item() == team[t]
        again = game.step(states[t], actions[t], nothing)
        assert torch.equal(again.reward, rewards[t])
        for field, old, new in zip(ExternalState._fields, states[t + 1], again.state, strict=True):
            assert torch.equal(old, new), field
        assert torch.equal(game.local_rewards(states[t], swapped, nothing), after.rewards)


def test_branches_from_all_steps_at_once_live_on_side_by_side(game: External) -> None:
    """Every recorded step is branched three times in one call; unchanged actions must lead to the recorded end."""
    states, actions, rewards = play(game, 2)
    T = game.horizon
    state = repeat(flatten(stack(states[:-1])), 3)
    where = torch.arange(T).repeat_interleave(2 * 3)
    which = torch.arange(2).repeat_interleave(3).repeat(T)
    total = torch.zeros(len(where), dtype=torch.float64)
    for k in range(T):
        action = actions[(where + k).clamp_max(T - 1), which]
        step = game.step(state, action, torch.zeros(len(where), 0))
        state, total = step.state, total + step.reward
        if k == 0:
            assert torch.equal(step.reward, rewards[where, which])
    ends = torch.stack([rewards[t:].sum(0) for t in range(T)])
    torch.testing.assert_close(total, ends[where, which], rtol=1e-12, atol=1e-12)
    final = take(states[-1], which)
    assert torch.equal(state.obs, final.obs)


def test_few_live_games_and_little_memory_change_nothing(game: External) -> None:
    states, actions, rewards = play(game)
    small = External(game.make, game.team_reward, game.horizon, max_games=2)
    small.games.max_bytes = 20_000
    _, _, again = play(small)
    assert torch.equal(again, rewards)
    every = repeat(flatten(stack(states[:-1])), 2)
    reward = small.step(every, actions.flatten(0, 1).repeat_interleave(2, 0), torch.zeros(len(every.seed), 0)).reward
    assert torch.equal(reward, rewards.flatten().repeat_interleave(2))
    assert sum(map(len, small.games._live.values())) == small.games._standing <= 2
    assert sum(len(snapshot.data) for snapshot in small.games._saved.values()) == small.games._bytes <= 20_000


def test_a_copy_of_the_adapter_continues(game: External) -> None:
    states, actions, rewards = play(game)
    for twin in (copy.deepcopy(game), pickle.loads(pickle.dumps(game))):
        step = twin.step(states[3], actions[3], torch.zeros(3, 0))
        assert torch.equal(step.reward, rewards[3])


@pytest.mark.parametrize("make", [lambda: mpe2.simple_spread_v3.parallel_env(local_ratio=0), toys.pursuit])
def test_restored_snapshots_continue_exactly_where_plain_deepcopy_forgets(make: Callable[[], Any]) -> None:
    original = make()
    face = Face(original)
    face.reset(original, 4)
    draw = np.random.default_rng(0)
    actions = draw.integers(0, 5, (11, face.n_agents))
    for action in actions[:5]:
        face.step(original, action)
    snapshot = save(original)
    wanted = [face.step(original, action) for action in actions[5:]]
    for _ in range(2):
        restored = load(snapshot)
        for action, frame in zip(actions[5:], wanted, strict=True):
            for mine, theirs in zip(face.step(restored, action), frame, strict=True):
                assert np.array_equal(mine, theirs)
    forgetful = copy.deepcopy(make_playing(make))
    assert forgetful.unwrapped.steps == 0, "if plain copies work by now, the detour is no longer needed"


def make_playing(make: Callable[[], Any]) -> Any:
    """A game in which three steps were played."""
    game = make()
    game.reset(seed=1)
    for _ in range(3):
        game.step(dict.fromkeys(game.agents, 1))
    return game


def test_terminal_reward_survives_and_the_end_is_real() -> None:
    game = open_game(toys.LastStepPays)
    states, _, rewards = play(game)
    assert not rewards[:-1].any()
    assert (rewards[-1] >= 1.0).all()
    assert states[-1].done.all()
    assert not states[-1].truncated.any()


def test_truncation_is_visible_whoever_cuts() -> None:
    states, _, _ = play(open_game(toys.Toy))
    assert states[-1].done.all()
    assert states[-1].truncated.all()
    assert states[-1].obs.any(), "what was seen last is needed to bootstrap"
    shorter = open_game(toys.Toy, horizon=5)
    states, _, _ = play(shorter)
    assert not states[-1].done.any()
    assert states[-1].truncated.all()
    beyond = shorter.step(states[-1], torch.zeros(3, 2, dtype=torch.int64), torch.zeros(3, 0))
    assert not beyond.reward.any()


def test_differing_rewards_are_refused_with_the_fix_named() -> None:
    with pytest.raises(
        GameError, match=r"seed 0, step \d+: agent_0 .*give --env-args local_ratio=0, or team_reward=me"
    ):
        open_game("mpe2.simple_spread_v3")
    with pytest.raises(GameError, match=r"pursuer_0 .* pursuer_\d .*; give team_reward=mean"):
        open_game(toys.pursuit, shared_reward=False)


def test_rewards_that_first_differ_late_are_refused_at_that_step() -> None:
    game = open_game(toys.LateEnvy)
    state, nothing = start(game, 2), torch.zeros(2, 0)
    for _ in range(game.horizon - 1):
        state = game.step(state, torch.tensor([[1, 1], [0, 2]]), nothing).state
    with pytest.raises(GameError, match=r"step 7: left 1, right 2\), so there is no shared team reward; give team_re"):
        game.step(state, torch.tensor([[1, 1], [0, 2]]), nothing)
    assert open_game(toys.LateEnvy, team_reward="mean").team_reward == "mean"


def test_sizes_are_padded_and_early_leavers_masked() -> None:
    game = open_game(toys.Crowd, team_reward="sum")
    assert (game.n_agents, game.n_actions, game.obs_size, game.horizon) == (3, 4, 4 + 2 * 2, 6)
    states, _, _ = play(game)
    assert isinstance(game, HasActionMask)
    first = states[0]
    assert first.obs[0].tolist() == [
        [1, 0, 0, 0, 0, 0, 0, 0],
        [1, 0, 0, 0, 1, 1, 0, 0],
        [1, 0, 0, 0, 1, 1, 1, 1],
    ]
    assert game.action_mask(first)[0].tolist() == [[True, True, False, False], [True] * 3 + [False], [True] * 4]
    assert game.action_mask(states[1])[0, 2].tolist() == [True, True, True, False]
    for t, present in ((1, 3), (2, 2), (4, 1), (6, 0)):
        assert states[t].present[0].sum() == present
    assert not states[2].obs[:, 0].any()
    assert not states[3].rewards[:, 0].any()
    assert not isinstance(open_game(toys.Toy), HasActionMask)


def test_masks_inside_observations_are_respected() -> None:
    game = open_game(toys.MaskInside)
    states, actions, _ = play(game)
    assert game.obs_size == 3
    assert isinstance(game, HasActionMask)
    assert game.action_mask(states[0])[0].tolist() == [[True, False, False]] * 2
    assert not (actions == 1).any()


def test_the_central_critic_sees_the_games_own_state_where_it_says_more() -> None:
    more, same = open_game(toys.HasState), open_game("mpe2.simple_spread_v3", local_ratio=0)
    states, _, _ = play(more)
    env = more.make()
    env.reset(seed=int(states[0].seed[1]))
    assert more.critic_view(states[0])[1].tolist() == env.state().tolist()
    assert same.critic_size == 3 * 18
    state = start(same, 2)
    assert torch.equal(same.critic_view(state), state.obs.flatten(1))


def test_a_game_that_cannot_go_back_says_so_and_still_plays() -> None:
    game = open_game(toys.GlobalLuck)
    assert game.counterfactuals is None
    assert "two games with the same seed and the same actions differed at step" in game.why
    states, actions, rewards = play(game)
    assert rewards.any()
    own = game.local_rewards(states[-2], actions[-1], torch.zeros(3, 0))
    assert torch.equal(own, states[-1].rewards), "the rewards of the last step need no second one"
    with pytest.raises(CounterfactualError, match="draw every random number from a generator of the game's own"):
        game.step(states[2], (actions[2] + 1) % 3, torch.zeros(3, 0))


def test_games_whose_resets_leak_are_made_anew() -> None:
    """What was played before must not change an episode; a game of which that is true is used again."""
    for source, again in ((toys.RemembersEpisodes, False), (toys.Toy, True)):
        game = open_game(source)
        assert isinstance(game, External)
        assert game.games.reuse == again
        _, _, rewards = play(game)
        for _ in range(3):
            assert torch.equal(play(game)[2], rewards)
    leaky = open_game(toys.RemembersEpisodes)  # the negative control
    assert isinstance(leaky, External)
    leaky.games.reuse = True
    _, _, rewards = play(leaky)
    assert not torch.equal(play(leaky)[2], rewards)


def test_rows_that_have_ended_rest() -> None:
    game = open_game(toys.EndsByChance, horizon=30)
    states, _, rewards = play(game, 6)
    lengths = states[-1].time
    assert len(set(lengths.tolist())) > 1, "the test needs episodes of unequal length"
    for b, length in enumerate(lengths.tolist()):
        assert not rewards[length:, b].any()
        assert states[length].done[b]
        assert not any(state.rewards[b].any() for state in states[length + 1 :])


def test_plain_rollouts_pay_for_no_snapshot(monkeypatch: pytest.MonkeyPatch) -> None:
    game = open_game(toys.Toy)

    def costly(*_: Any) -> None:
        raise AssertionError("a snapshot was taken")

    monkeypatch.setattr(external_games, "put_to_sleep", costly)
    states, actions, _ = play(game)
    with pytest.raises(AssertionError, match="a snapshot was taken"):
        game.step(states[2], actions[3], torch.zeros(3, 0))


@pytest.mark.parametrize(
    ("source", "knobs", "sentence"),
    [
        (toys.EndsByChance, {}, "ended by themselves after .* give horizon="),
        (toys.Endless, {"max_games": 3}, "had not ended after 10,000 steps; give horizon="),
        (toys.Continuous, {}, "only discrete actions work here, but left acts in Box"),
        (toys.Toy, {"lenght": 3}, r"no knob 'lenght' \(did you mean 'length'\?\); its knobs are length"),
        (toys.Toy(), {"length": 3}, "length: knobs belong to a game that is yet to be made"),
        ("sisl/persuit-v5", {}, r"no game 'sisl/persuit-v5' \(did you mean 'sisl/pursuit-v5'\?\)"),
        ("classic/chess-v6", {}, "turn-based"),
        ("walking_robt", {}, r"no module 'walking_robt' \(did you mean 'walking_robot'\?\)"),
        ("mpe2.simple_spred_v3", {}, r"no module .* \(did you mean 'mpe2.simple_spread_v3'\?\)"),
        ("mpe2.simple_spread_v3", {"N": 0.5}, "could not be made"),
        ("mpe2.simple_spread_v3", {"ratio": 0}, "has no knob 'ratio'.* its knobs are N, local_ratio"),
        ("toy_external:Toi", {}, r"has no 'Toi' \(did you mean 'Toy'\?\)"),
        ("toy_external:np.pi", {}, "is a float, not a function"),
        ("toy_external", {}, "has no parallel_env"),
        ("collections:OrderedDict", {}, "made a OrderedDict, which is not a PettingZoo ParallelEnv"),
        ("credit/walking_robot-v0", {"team_reward": "sum"}, "has rules of its own"),
        ("credit/walking_robot-v0", {"dely": 3}, "did you mean 'delay'"),
        (7, {}, "7 is no game"),
    ],
)
def test_bad_requests_get_one_sentence(source: Any, knobs: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as caught:
        open_game(source, **knobs)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("knobs", "sentence"),
    [
        ({"team_reward": "max"}, "team_reward='max' is not allowed; it must be one of shared, mean, sum"),
        ({"default_action": 3}, "default_action=3 is not allowed"),
        ({"default_action": (0, 1, 0)}, "default_action="),
        ({"horizon": -1}, "horizon=-1 is not allowed"),
    ],
)
def test_bad_knobs_are_refused(knobs: dict[str, Any], sentence: str) -> None:
    with pytest.raises(KnobError, match=sentence):
        open_game(toys.Toy, **knobs)


def test_bad_actions_are_refused() -> None:
    game = open_game(toys.Toy)
    state, nothing = start(game, 2), torch.zeros(2, 0)
    with pytest.raises(GameError, match=r"action 3 of right is not allowed; it must be in 0\.\.2"):
        game.step(state, torch.tensor([[0, 0], [0, 3]]), nothing)
    with pytest.raises(GameError, match=r"shape \(2, 2\)"):
        game.step(state, torch.tensor([[0, 0, 0], [0, 0, 0]]), nothing)


def test_every_form_of_the_door_opens() -> None:
    fast = open_game("credit/spread-v0", n_agents=4, horizon=7)
    assert not isinstance(fast, External)
    assert (fast.n_agents, fast.horizon) == (4, 7)
    assert open_game("spread").n_agents == 3
    assert open_game(fast) is fast
    assert isinstance(open_game("envs:credit/spread-v0"), type(fast))
    assert open_game(toys.Toy(5)).horizon == 5
    assert open_game("toy_external:Toy", length=4).horizon == 4
    assert open_game(mpe2.simple_spread_v3, local_ratio=0, N=2).n_agents == 2
    small = open_game("sisl/pursuit-v5", max_cycles=3, x_size=7, y_size=7, n_evaders=2, n_pursuers=2)
    assert (small.n_agents, small.horizon) == (2, 3)


def test_a_package_of_your_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "their_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "duel.py").write_text((Path(toys.__file__)).read_text())
    register = "from pettingzoo import register\nfrom .duel import LastStepPays\n"
    (package / "games.py").write_text(register + "register('parallel', 'theirs/duel-v3', LastStepPays)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert open_game("their_package.duel:Toy", length=6).horizon == 6
    named = open_game("their_package.games:theirs/duel-v3", length=5)
    assert named.horizon == 5
    assert named.counterfactuals == "copy"
