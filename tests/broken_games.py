"""One honest little game, and every way to break its contract that `check_env` must catch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from pettingzoo import ParallelEnv
from torch import Tensor

from envs.base import Env, Episode, Step
from envs.noise import Atoms, atoms
from envs.parallel import ParallelGame


class LanternState(NamedTuple):
    t: Tensor  # [B] int64
    last: Tensor  # [B] int64: the light goes out after this many steps
    cue: Tensor  # [B,N] int64
    on: Tensor  # [B] 1 while the light is on


@dataclass(frozen=True)
class Lanterns(Env[LanternState]):
    """Match your cue; the team is paid the share that does, twice as much when the light goes out (step 2..5)."""

    n_agents: int = 2

    n_actions: ClassVar[int] = 2
    obs_size: ClassVar[int] = 2
    critic_size: ClassVar[int] = 2
    horizon: ClassVar[int] = 5
    default_action: ClassVar[int] = 0
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)
    exogenous: ClassVar[tuple[str, ...]] = ("t", "last", "cue")
    step_noise_size = property(lambda self: self.n_agents)
    reset_noise_size = property(lambda self: self.n_agents + 1)
    optimal_return = property(lambda self: 4.5)  # last is uniform on 2..5: mean 3.5, and 1 for the end
    random_return = property(lambda self: 2.25)

    def reset(self, noise: Tensor) -> LanternState:
        last = 2 + (noise[:, -1] * (self.horizon - 1)).long()
        cue = (noise[:, : self.n_agents] * 2).long()
        return LanternState(torch.zeros_like(last), last, cue, noise.new_ones(len(noise)))

    def reset_atoms(self) -> Atoms:
        return atoms(*[[0.5]] * self.n_agents, [k / (self.horizon - 1) for k in range(1, self.horizon - 1)])

    def step_atoms(self) -> Atoms:
        return atoms(*[[0.5]] * self.n_agents)

    def step(self, state: LanternState, action: Tensor, noise: Tensor) -> Step[LanternState]:
        out = state.t + 1 >= state.last
        matched = (action == state.cue).to(state.on.dtype).mean(-1)
        cue = (noise[:, : self.n_agents] * 2).long()
        after = LanternState(state.t + 1, state.last, cue, torch.where(out, 0, state.on))
        return Step(after, state.on * matched * torch.where(out, 2, 1), out)

    def observe(self, state: LanternState) -> Tensor:
        time = (state.t.clamp(max=self.horizon) / self.horizon).to(state.on.dtype)
        return torch.stack((state.cue.to(state.on.dtype), time[:, None].expand_as(state.cue)), -1)

    def critic_view(self, state: LanternState) -> Tensor:
        return self.observe(state)[:, 0]

    def unit_differences(self, episode: Episode, baseline: Tensor) -> Tensor:
        state, alive = episode.state, episode.alive
        pays = (alive * (1 + (state.t + 1 == state.last))).to(state.on.dtype)[..., None] / self.n_agents
        return pays * ((episode.action == state.cue).double() - (baseline == state.cue).double()).to(pays.dtype)

    def unit_shapley(self, episode: Episode, baseline: Tensor) -> Tensor:
        return self.unit_differences(episode, baseline)  # rewards add up over units

    def light_cone(self) -> Tensor:
        return torch.eye(self.horizon, dtype=torch.bool)[..., None].expand(-1, -1, self.n_agents)

    def scripted_action(self, state: LanternState) -> Tensor:
        return state.cue


class Masked(Lanterns):
    """Honest too: agent 0 may only match."""

    random_return = property(lambda self: 4.5 * (1 + (self.n_agents - 1) / 2) / self.n_agents)

    def action_mask(self, state: LanternState) -> Tensor:
        mask = torch.ones(*state.cue.shape, 2, dtype=torch.bool)
        mask[:, 0] = torch.nn.functional.one_hot(state.cue[:, 0], 2).bool()
        return mask


# Broken rules.


class WritesToItsInput(Lanterns):
    def step(self, state: LanternState, action: Tensor, noise: Tensor) -> Step[LanternState]:
        outcome = super().step(state, action, noise)
        state.cue.zero_()
        return outcome


class DrawsItsOwnLuck(Lanterns):
    def step(self, state: LanternState, action: Tensor, noise: Tensor) -> Step[LanternState]:
        return super().step(state, action, torch.rand_like(noise))


@dataclass(frozen=True)
class Remembers(Lanterns):
    """The reward grows with every call."""

    calls: list[int] = field(default_factory=list, init=False)

    def step(self, state: LanternState, action: Tensor, noise: Tensor) -> Step[LanternState]:
        self.calls.append(1)
        outcome = super().step(state, action, noise)
        return outcome._replace(reward=outcome.reward * len(self.calls))


class PeeksAhead(Lanterns):
    """Shows at step t the noise that step t will read, remembered from an earlier run of the same episode."""

    seen: ClassVar[dict[int, Tensor]] = {}

    def step(self, state: LanternState, action: Tensor, noise: Tensor) -> Step[LanternState]:
        self.seen[int(state.t[0])] = noise
        return super().step(state, action, noise)

    def observe(self, state: LanternState) -> Tensor:
        view = super().observe(state).clone()
        later = self.seen.get(int(state.t[0]))
        if later is not None and later.shape == view.shape[:2]:
            view[..., 1] = later.to(view.dtype)
        return view


class ReadsOtherRows(Lanterns):
    def step(self, state: LanternState, action: Tensor, noise: Tensor) -> Step[LanternState]:
        outcome = super().step(state, action, noise)
        return outcome._replace(reward=outcome.reward - outcome.reward.mean() * state.on)


class ReusesItsBuffer(Lanterns):
    buffer: ClassVar[dict[tuple[Any, ...], Tensor]] = {}

    def observe(self, state: LanternState) -> Tensor:
        fresh = super().observe(state)
        return self.buffer.setdefault((fresh.shape, fresh.dtype), torch.empty_like(fresh)).copy_(fresh)


class ObservesOutsideItsSpace(Lanterns):
    def observe(self, state: LanternState) -> Tensor:
        view = super().observe(state)
        return torch.where(view > 0.7, view * 1.5, view)


class PaysTheDead(Lanterns):
    def step(self, state: LanternState, action: Tensor, noise: Tensor) -> Step[LanternState]:
        outcome = super().step(state, action, noise)
        return outcome._replace(reward=(action == state.cue).to(state.on.dtype).mean(-1))


class Revives(Lanterns):
    def step(self, state: LanternState, action: Tensor, noise: Tensor) -> Step[LanternState]:
        outcome = super().step(state, action, noise)
        return outcome._replace(done=outcome.done & (state.on > 0))


class IgnoresItsNoise(Lanterns):
    def reset(self, noise: Tensor) -> LanternState:
        return super().reset(torch.full_like(noise, 0.5))

    def step(self, state: LanternState, action: Tensor, noise: Tensor) -> Step[LanternState]:
        return super().step(state, action, torch.full_like(noise, 0.5))


class ActionsMoveTheCues(Lanterns):
    """Reads its noise as a stream: an agent that acts consumes a number, and everything behind it shifts."""

    def step(self, state: LanternState, action: Tensor, noise: Tensor) -> Step[LanternState]:
        shifted = torch.where(action.sum(-1, keepdim=True) % 2 == 0, noise, noise.roll(1, -1))
        return super().step(state, action, shifted)


class ForgetsTheBonus(Lanterns):
    """A closed form that does not know that the last step pays twice."""

    def unit_differences(self, episode: Episode, baseline: Tensor) -> Tensor:
        truth = super().unit_differences(episode, baseline)
        bonus = (episode.state.t + 1 == episode.state.last)[..., None]
        return torch.where(bonus, truth / 2, truth)

    unit_shapley = Lanterns.unit_differences


class SharesWrongly(Lanterns):
    def unit_shapley(self, episode: Episode, baseline: Tensor) -> Tensor:
        return self.unit_differences(episode, baseline).mean(-1, keepdim=True).expand_as(episode.action)


class DeclaresTooMuch(Lanterns):
    optimal_return = property(lambda self: 4.6)


class DeclaresTheWrongChance(Lanterns):
    random_return = property(lambda self: 2.4)


class ForgetsACase(Lanterns):
    """The last agent's cue is never lit."""

    def step_atoms(self) -> Atoms:
        return atoms(*[[0.5]] * (self.n_agents - 1), [])


class BelievesInLongNights(Lanterns):
    """Every case is there, but not as often."""

    def reset_atoms(self) -> Atoms:
        noise, probability = super().reset_atoms()
        likely = probability * (0.5 + noise[:, -1])
        return Atoms(noise, likely / likely.sum())


class ChancesSumToLess(Lanterns):
    def step_atoms(self) -> Atoms:
        noise, probability = super().step_atoms()
        return Atoms(noise, probability * 0.9)


class SeesNoEffect(Lanterns):
    """Says that what is done at the second step reaches nothing."""

    def light_cone(self) -> Tensor:
        cone = super().light_cone().clone()
        cone[1] = False
        return cone


class StaysFloat32(Lanterns):
    def critic_view(self, state: LanternState) -> Tensor:
        return super().critic_view(state).float()


class WrongShape(Lanterns):
    def step(self, state: LanternState, action: Tensor, noise: Tensor) -> Step[LanternState]:
        outcome = super().step(state, action, noise)
        return outcome._replace(reward=outcome.reward[:, None])


class Crashes(Lanterns):
    def observe(self, state: LanternState) -> Tensor:
        if int(state.t.max()) == 3:
            raise KeyError("lantern")
        return super().observe(state)


class MasksEverything(Masked):
    def action_mask(self, state: LanternState) -> Tensor:
        mask = super().action_mask(state)
        mask[:, 1] = state.t[:, None] < 2
        return mask


# Broken faces around the honest rules.


class LosesTheLastReward(ParallelGame):
    """Reads rewards of `agents`, which is empty by then: the fault of a well-known peer."""

    def step(self, actions: dict[str, int]) -> Any:
        observations, rewards, *rest = super().step(actions)
        return observations, {a: rewards[a] if a in self.agents else 0.0 for a in rewards}, *rest


class LeavesOutTheLastReward(ParallelGame):
    def step(self, actions: dict[str, int]) -> Any:
        observations, rewards, *rest = super().step(actions)
        return observations, {a: rewards[a] for a in self.agents}, *rest


class CallsTheEndATruncation(ParallelGame):
    def step(self, actions: dict[str, int]) -> Any:
        observations, rewards, terminated, truncated, infos = super().step(actions)
        flags = {a: terminated[a] or truncated[a] for a in terminated}
        return observations, rewards, dict.fromkeys(terminated, False), flags, infos


class KeepsItsAgents(ParallelGame):
    def step(self, actions: dict[str, int]) -> Any:
        result = super().step(actions)
        if self._time < self.rules.horizon:
            self.agents = self.possible_agents[:]
        return result


class PaysAgentsDifferently(ParallelGame):
    def step(self, actions: dict[str, int]) -> Any:
        observations, rewards, *rest = super().step(actions)
        return observations, {a: r * (1 + k) for k, (a, r) in enumerate(rewards.items())}, *rest


class MakesNewSpaces(ParallelGame):
    def action_space(self, agent: str) -> spaces.Discrete:
        return spaces.Discrete(self.rules.n_actions)


class ForgetsItsSeed(ParallelGame):
    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        return super().reset(0, options)


class CopiesFromTheStart(ParallelGame):
    """What EzPickle does: a copy is a new game built from the same arguments."""

    def __reduce__(self) -> Any:
        return _fresh, (type(self), self.rules)


def _fresh(face: type[ParallelGame], rules: Env[Any]) -> ParallelGame:
    copied = face(rules)
    copied.reset(seed=0)
    return copied


class SharesItsObservations(ParallelGame):
    """Hands out the arrays that it goes on using."""

    def _observations(self) -> dict[str, np.ndarray]:
        fresh = super()._observations()
        if not hasattr(self, "_kept"):
            self._kept = fresh
        for agent, array in fresh.items():
            self._kept[agent][...] = array
        return dict(self._kept)


class Corridor(ParallelEnv):
    """A plain ParallelEnv without rules: two walkers, one of whom leaves early. `fault` names what is wrong with it."""

    metadata: ClassVar[dict[str, Any]] = {"name": "corridor_v0", "render_modes": []}

    def __init__(self, fault: str = "") -> None:
        self.fault = fault
        self.possible_agents = ["walker_0", "walker_1"]
        self.agents: list[str] = []
        self._spaces = {a: (spaces.Box(0, 6, (2,), np.float32), spaces.Discrete(3)) for a in self.possible_agents}
        self._shown = np.zeros(2, np.float32)

    def observation_space(self, agent: str) -> spaces.Box:
        return self._spaces[agent][0]

    def action_space(self, agent: str) -> spaces.Discrete:
        return self._spaces[agent][1]

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        if seed is not None:
            self._rng = np.random.default_rng(seed)
        self.agents = self.possible_agents[:]
        self._time, self._place = 0, float(self._rng.integers(2))
        return {a: self._look() for a in self.agents}, {a: {} for a in self.agents}

    def step(self, actions: dict[str, int]) -> Any:
        players, self._time = self.agents, self._time + 1
        luck = np.random.random() if self.fault == "draws from the global generator" else 0.0
        self._place = min(4.0, self._place + sum(actions.values()) % 2 + luck)
        stops = {a: self._time == (3 if a == "walker_0" else 5) for a in players}
        self.agents = [a for a in players if not stops[a]]
        rewards = dict.fromkeys(players, self._place)
        if self.fault == "leaves out the last reward":
            rewards = {a: rewards[a] for a in self.agents}
        never = dict.fromkeys(players, False)
        return {a: self._look() for a in players}, rewards, stops, never, {a: {} for a in players}

    def _look(self) -> np.ndarray:
        seen = np.array([self._place, self._time], np.float32)
        if self.fault == "leaves its space" and self._time == 5:
            seen[1] = 7
        if self.fault == "reuses its array":
            self._shown[...] = seen
            return self._shown
        return seen
