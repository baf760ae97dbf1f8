"""How fast is one decision learned? The chance of the right action, exactly, after every update of training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.claims.base import Found
from benchmarks.claims.variants import KNOWN
from envs.base import Env, HasActionMask, HasScriptedPolicy
from marl.experiment import Experiment, Method, learn
from marl.rollout import seeds_of
from marl.types import Policy

RESETS = 4  # first states that stand for all: the noise of a reset is one number, told apart at quarters at most


def right(game: Env[Any], policy: Policy) -> NDArray[np.float64]:
    """[S] chance that the first action is the one that the game's own script takes, mean over first states."""
    assert isinstance(game, HasScriptedPolicy)
    S = seeds_of(policy)
    u = (torch.arange(RESETS).float()[:, None] + 0.5) / RESETS
    state = game.reset(u.expand(-1, game.reset_noise_size).repeat(S, 1))
    mask = game.action_mask(state) if isinstance(game, HasActionMask) else None
    with torch.no_grad():
        chance = policy(game.observe(state), mask).gather(-1, game.scripted_action(state)[..., None])
    return chance.reshape(S, -1).mean(1).double().numpy()


def curve(game: Env[Any], method: Method, seeds: Sequence[int], updates: int) -> NDArray[np.float64]:
    """[updates + 1, S] `right` before training and after each update."""
    steps = updates * game.horizon * method.learner.episodes
    experiment = Experiment(game, method, list(seeds), steps, points=updates, judge=False)
    return np.stack([right(game, stage.actor) for stage in learn(experiment)])


def learning_time(
    game: Env[Any], method: Method, seeds: Sequence[int], budget: int, goal: float, window: int
) -> NDArray[np.float64]:
    """[S] episodes until `right`, averaged over the last `window` episodes played, has reached `goal`; else `budget`.

    Stops as soon as all seeds are there.
    """
    E = method.learner.episodes
    updates, kept = max(1, budget // E), max(1, window // E)
    experiment = Experiment(game, method, list(seeds), updates * game.horizon * E, points=updates, judge=False)
    found = np.full(len(seeds), np.nan)
    last: list[NDArray[np.float64]] = []
    for stage in learn(experiment):
        last = [*last, right(game, stage.actor)][-kept:]
        there = (np.mean(last, 0) >= goal) & (len(last) == kept)
        found[np.isnan(found) & there] = stage.update * E
        if not np.isnan(found).any():
            break
    return np.where(np.isnan(found), budget, found)


@dataclass(frozen=True)
class LearningTime:
    """Episodes until the decision is right, for each method, and how many times as many the slower ones need.

    A seed that does not get there within `budget` episodes counts as `budget`: its ratio is then a lower bound.
    Numbers: "NAME", "NAME learned" (1 for a seed that got there) and "SLOW / fast" for each of `slow`.
    """

    exact: ClassVar[bool] = False
    fast: str
    slow: tuple[str, ...]
    budget: int
    goal: float = 0.9
    window: int = 750

    def __call__(self, game: Env[Any], seeds: Sequence[int]) -> Found:
        taken: Found = {
            name: learning_time(game, KNOWN[name], seeds, self.budget, self.goal, self.window)
            for name in (self.fast, *self.slow)
        }
        learned = {f"{name} learned": (v < self.budget).astype(np.float64) for name, v in taken.items()}
        return taken | learned | {f"{name} / {self.fast}": taken[name] / taken[self.fast] for name in self.slow}


@dataclass(frozen=True)
class LearningCurve:
    """Chance of the right action, mean over the updates of training, for each method; differences of `pairs`.

    Numbers: "NAME", "NAME at last" (after training) and "A - B".
    """

    exact: ClassVar[bool] = False
    pairs: tuple[tuple[str, str], ...]
    updates: int

    def __call__(self, game: Env[Any], seeds: Sequence[int]) -> Found:
        found: Found = {}
        for name in dict.fromkeys(name for pair in self.pairs for name in pair):
            chance = curve(game, KNOWN[name], seeds, self.updates)
            found |= {name: chance.mean(0), f"{name} at last": chance[-1]}
        return found | {f"{a} - {b}": found[a] - found[b] for a, b in self.pairs}
