"""spread must be the real mpe2 simple_spread_v3, only faster; a wrong constant anywhere must show."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import mpe2.simple_spread_v3 as real
import numpy as np
import pytest
import torch
from torch import Tensor

import envs.spread as spread
from envs import noise as exogenous
from envs.base import KnobError, capabilities, repeat, stack, take
from envs.spread import Spread, SpreadState

SEEDS = 100
HORIZON = 25


class Record(NamedTuple):
    """What the real game did in SEEDS episodes; episodes of odd seeds start crowded so that agents collide."""

    start: SpreadState
    action: Tensor  # [T,S,N]
    reward: Tensor  # [T,S,N]
    obs: Tensor  # [T+1,S,N,O]
    touching: int  # (step, pair) contacts met


def play(seed: int, n: int, local_ratio: float) -> tuple[list[Any], ...]:
    """One episode of the real game: start, actions, rewards, observations, contacts."""
    game = real.parallel_env(N=n, local_ratio=local_ratio, max_cycles=HORIZON)
    game.reset(seed=seed)
    agents, world = game.possible_agents, game.unwrapped.world
    if seed % 2:
        for agent in world.agents:
            agent.state.p_pos *= 0.25
    start = [np.array([a.state.p_pos for a in world.agents]), np.array([m.state.p_pos for m in world.landmarks])]
    obs = [[game.aec_env.observe(a) for a in agents]]
    actions, rewards, touching = [], [], []
    draw = np.random.default_rng(seed)
    for _ in range(HORIZON):
        action = draw.integers(0, 5, n)
        seen, reward, *_ = game.step(dict(zip(agents, action.tolist(), strict=True)))
        actions.append(action)
        rewards.append([reward[a] for a in agents])
        obs.append([seen[a] for a in agents])
        places = np.array([a.state.p_pos for a in world.agents])
        near = np.linalg.norm(places[:, None] - places[None], axis=-1) < 0.3
        touching.append((int(near.sum()) - n) // 2)
    return start, actions, rewards, obs, touching


@cache
def record(n: int, local_ratio: float) -> Record:
    episodes = [play(seed, n, local_ratio) for seed in range(SEEDS)]
    start, action, reward, obs, touching = (np.array(part) for part in zip(*episodes, strict=True))
    position, landmark = torch.from_numpy(start).unbind(1)
    state = SpreadState(position, torch.zeros_like(position), landmark, torch.zeros(SEEDS, dtype=torch.int64))
    moved = (torch.from_numpy(part).transpose(0, 1) for part in (action, reward, obs))
    return Record(state, *moved, touching=int(touching.sum()))


def errors(env: Spread, wanted: Record) -> tuple[float, float]:
    """Largest difference in rewards (team and local) and in observations when our game lives the recorded actions."""
    state, nothing = wanted.start, torch.zeros(SEEDS, 0)
    reward_error, obs_error = 0.0, (env.observe(state) - wanted.obs[0]).abs().max().item()
    for t in range(HORIZON):
        own = env.local_rewards(state, wanted.action[t], nothing)
        step = env.step(state, wanted.action[t], nothing)
        state = step.state
        for ours, theirs in ((own, wanted.reward[t]), (step.reward, wanted.reward[t].mean(1))):
            reward_error = max(reward_error, (ours - theirs).abs().max().item())
        obs_error = max(obs_error, (env.observe(state) - wanted.obs[t + 1]).abs().max().item())
    return reward_error, obs_error


@pytest.mark.parametrize("local_ratio", [0.0, 0.5])
@pytest.mark.parametrize("n", [3, 4, 6])
def test_equals_the_real_game_step_by_step(n: int, local_ratio: float) -> None:
    wanted = record(n, local_ratio)
    assert wanted.touching > SEEDS, "the comparison must include contacts"
    reward_error, obs_error = errors(Spread(n, HORIZON, local_ratio), wanted)
    assert reward_error <= 1e-12
    assert obs_error <= 1e-6


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("DAMPING", 0.24),
        ("CONTACT_MARGIN", 1.1e-3),
        ("CONTACT_FORCE", 99.0),
        ("PUSH", 5.001),
        ("DT", 0.1001),
        ("REACH", 0.301),
    ],
)
def test_a_wrong_constant_is_seen(monkeypatch: pytest.MonkeyPatch, name: str, wrong: float) -> None:
    monkeypatch.setattr(spread, name, wrong)
    reward_error, obs_error = errors(Spread(3, HORIZON, 0.5), record(3, 0.5))
    assert reward_error > 1e-9
    assert obs_error > 1e-5


def test_the_order_of_update_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def velocity_first(position: Tensor, velocity: Tensor, force: Tensor) -> tuple[Tensor, Tensor]:
        velocity = velocity * (1.0 - spread.DAMPING) + force * spread.DT
        return position + velocity * spread.DT, velocity

    monkeypatch.setattr(spread, "integrate", velocity_first)
    reward_error, obs_error = errors(Spread(3, HORIZON, 0.5), record(3, 0.5))
    assert reward_error > 1e-3
    assert obs_error > 1e-3


def test_a_swapped_observation_block_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = Spread.observe

    def swapped(self: Spread, state: SpreadState) -> Tensor:
        seen = honest(self, state)
        n = self.n_agents
        landmarks, others = seen[..., 4 : 4 + 2 * n], seen[..., 4 + 2 * n : 2 + 4 * n]
        return torch.cat([seen[..., :4], others, landmarks, seen[..., 2 + 4 * n :]], -1)

    monkeypatch.setattr(Spread, "observe", swapped)
    reward_error, obs_error = errors(Spread(3, HORIZON, 0.5), record(3, 0.5))
    assert reward_error <= 1e-12
    assert obs_error > 1e-2


def walk(env: Spread, episodes: int, dtype: torch.dtype, crowd: float = 1.0) -> tuple[SpreadState, Tensor, Tensor]:
    """States [T,B,...], actions and team rewards of random play; `crowd` < 1 pulls the start together."""
    state = env.reset(exogenous.uniform("reset", 3, range(episodes), (env.reset_noise_size,), dtype))
    state = state._replace(position=state.position * crowd)
    luck = exogenous.uniform("policy", 3, range(episodes), (env.horizon, env.n_agents), dtype)
    action = (luck * env.n_actions).long().transpose(0, 1)
    states, rewards, nothing = [state], [], torch.zeros(episodes, 0, dtype=dtype)
    for t in range(env.horizon):
        state, reward, done = env.step(state, action[t], nothing)
        assert not done.any()
        states.append(state)
        rewards.append(reward)
    return stack(states), action, torch.stack(rewards)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("env", [Spread(2), Spread(5, local_ratio=0.5)], ids=repr)
def test_a_row_never_depends_on_the_others(env: Spread, dtype: torch.dtype) -> None:
    """Bitwise, in any memory layout and with contacts: counterfactuals of zero effect must be exactly zero."""
    states, action, _ = walk(env, 33, dtype, crowd=0.3)
    state = take(states, torch.tensor(7))
    nothing = torch.zeros(33, 0, dtype=dtype)
    whole = env.step(state, action[7], nothing)
    rewards, seen = env.local_rewards(state, action[7], nothing), env.observe(state)
    order = torch.randperm(33, generator=torch.Generator().manual_seed(0))
    for rows in (order, torch.tensor([4]), torch.tensor([30, 2])):
        part = env.step(take(state, rows), action[7, rows], nothing[rows])
        for ours, theirs in zip(part.state, take(whole.state, rows), strict=True):
            assert torch.equal(ours, theirs)
        assert torch.equal(part.reward, whole.reward[rows])
        assert torch.equal(env.local_rewards(take(state, rows), action[7, rows], nothing[rows]), rewards[rows])
        assert torch.equal(env.observe(take(state, rows)), seen[rows])
    assert torch.equal(env.critic_view(repeat(state, 2))[::2], env.critic_view(state))


def test_step_leaves_its_inputs_alone() -> None:
    env = Spread(3, local_ratio=0.5)
    states, action, _ = walk(env, 4, torch.float32)
    state = take(states, torch.tensor(0))
    before = [field.clone() for field in state]
    env.step(state, action[0], torch.zeros(4, 0))
    env.observe(state).add_(1.0)
    assert all(torch.equal(old, new) for old, new in zip(before, state, strict=True))


def test_shapes_capabilities_and_team_reward() -> None:
    env = Spread(4, horizon=6, local_ratio=0.5)
    states, action, rewards = walk(env, 3, torch.float64, crowd=0.2)
    state = take(states, torch.tensor(2))
    assert env.observe(state).shape == (3, 4, env.obs_size)
    assert env.critic_view(state).shape == (3, env.critic_size)
    own = env.local_rewards(state, action[2], torch.zeros(3, 0))
    torch.testing.assert_close(own.mean(1), rewards[2], rtol=0, atol=1e-14)
    assert {"local_rewards", "draw", "scripted_action"} == set(capabilities(env))
    assert env.optimal_return is None
    assert "agent 3" in env.text(state)
    picture = env.draw(state)
    assert picture.dtype == np.uint8
    assert picture.ndim == 3


def test_coinciding_agents_stay_finite() -> None:
    state = Spread(3).reset(torch.full((1, 12), 0.5))
    after = Spread(3).step(state, torch.zeros(1, 3, dtype=torch.int64), torch.zeros(1, 0))
    assert all(torch.isfinite(field).all() for field in after.state)


@pytest.mark.parametrize(
    ("knobs", "sentence"),
    [
        ({"n_agents": 1}, "n_agents=1 is not allowed"),
        ({"horizon": 0}, "horizon=0 is not allowed"),
        ({"local_ratio": 1.5}, "local_ratio=1.5 is not allowed"),
        ({"local_ratio": "half"}, "local_ratio='half' is not allowed"),
    ],
)
def test_bad_knobs_are_refused(knobs: dict[str, Any], sentence: str) -> None:
    with pytest.raises(KnobError, match=sentence):
        Spread(**knobs)


@pytest.mark.parametrize("n", [2, 3, 7])
def test_the_scripted_policy_covers_every_landmark(n: int) -> None:
    """At the end all landmarks have an agent near, which random play is far from; agents choose different ones."""
    game = Spread(n_agents=n, horizon=40)
    state = game.reset(torch.rand(50, 4 * n, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    none = torch.zeros(50, 0, dtype=torch.float64)
    first = game.step(state, game.scripted_action(state), none).reward
    for _ in range(game.horizon):
        assert bool((game._nearest(state).sort(-1).values == torch.arange(n)).all())
        state, reward, _ = game.step(state, game.scripted_action(state), none)
    assert float(reward.mean()) > -0.15 * n > float(first.mean())
