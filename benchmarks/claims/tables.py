"""One decision, a table of what it is worth, one episode at a time: who is told the worth with the least noise?

The setting in which RUDDER's authors compare it with Monte Carlo and TD. Seeds are a batch axis, episodes are not: each
decision is learned from before the next is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.claims.base import Found
from benchmarks.claims.watch_repair import LEAVE, PRICES, REPAIR, WatchRepair
from envs.base import Env, map_state
from envs.noise import uniform
from marl.credit.base import Context
from marl.credit.temporal.rudder import Rudder
from marl.critic import Fit
from marl.learn.policy_gradient import adam
from marl.minibatch import pick, subset
from marl.rollout import rollout
from marl.types import Policy, Trajectory

ACTIONS = (REPAIR, LEAVE)
HOPE = 1.0  # of every value before anything is known, in the game's units: far above the best
LESSONS = 256  # episodes before the network is fitted, and used, for the first time
MINIBATCH = 8  # episodes of a gradient step

Array = NDArray[np.float64]


class Block(NamedTuple):
    """The next K episodes of S seeds, each played with either first action under the same luck."""

    played: Trajectory  # B = S 2K rows; in a seed first those with REPAIR, then those with LEAVE
    brand: NDArray[np.int64]  # [S,K]
    rewards: Array  # [S,2,K,T]
    events: NDArray[np.int64]  # [S,K,T,2] jams and tires before each step


def block(game: WatchRepair, seeds: Sequence[int], first: int, count: int) -> Block:
    """Episodes first .. first + count."""
    both = [rollout(game, always(a), count, list(seeds), first, "tables") for a in ACTIONS]
    played, S = joined(both[0], both[1], len(seeds)), len(seeds)
    brand = both[0].state.brand[0].reshape(S, count)
    rewards = played.reward.reshape(-1, S, len(ACTIONS), count).permute(1, 2, 3, 0)
    events = both[0].state.events.reshape(-1, S, count, 2).permute(1, 2, 0, 3)
    return Block(played, brand.numpy(), rewards.double().numpy(), events.long().numpy())


def always(action: int) -> Policy:
    """The same action whenever it is legal; else the one that is left."""

    def policy(obs: Tensor, mask: Tensor | None) -> Tensor:
        assert mask is not None
        wanted = torch.zeros_like(mask, dtype=obs.dtype)
        wanted[..., action] = 1
        return torch.where(mask[..., action, None], wanted, mask.to(obs.dtype))

    return policy


def joined(old: Trajectory, new: Trajectory, n_seeds: int, most: int | None = None) -> Trajectory:
    """Both, seed by seed; of each seed the last `most` episodes. Fields that `subset` reads, and rewards."""

    def together(a: Tensor, b: Tensor) -> Tensor:
        parts = torch.cat((a.unflatten(1, (n_seeds, -1)), b.unflatten(1, (n_seeds, -1))), 2)
        return (parts if most is None else parts[:, :, -most:]).flatten(1, 2)

    fields = {k: together(getattr(old, k), getattr(new, k)) for k in ("obs", "mask", "action", "probs", "alive")}
    reward, state = together(old.reward, new.reward), map_state(together, old.state, new.state)
    return old._replace(state=state, reward=reward, **fields)


def whole(trajectory: Trajectory, chosen: Tensor) -> Trajectory:
    """Episodes chosen [S,M] of each seed's own, with their rewards."""
    T, B = trajectory.reward.shape
    index = torch.arange(T)[:, None] * (B // len(chosen)) + chosen[:, None]
    return subset(trajectory, index)._replace(reward=pick(trajectory.reward, index))


def reached(right: NDArray[np.bool_], window: int, goal: float) -> Array:
    """[S] episodes until `goal` of the last `window` were right [S,K]; infinite where they never were."""
    S, K = right.shape
    if window > K:
        return np.full(S, np.inf)
    sums = np.cumsum(np.pad(right, ((0, 0), (1, 0))), 1)
    there = np.greater_equal(sums[:, window:] - sums[:, :-window], goal * window)
    return np.where(there.any(1), window + there.argmax(1), np.inf)


class Teacher(Protocol):
    """Says what a first action was worth once its episode is over."""

    per_block: int  # episodes that may be played before it changes its mind

    def begin(self, block: Block) -> None:
        """The next episodes, with either first action."""

    def worth(self, k: int, action: NDArray[np.int64]) -> Array:
        """[S] of episode k with the actions [S] that were taken."""

    def end(self, block: Block, actions: NDArray[np.int64]) -> None:
        """Learn from what was lived: first actions [S,K]."""


class MonteCarloTable:
    """The return."""

    per_block = 500

    def begin(self, block: Block) -> None:
        self.returns = block.rewards.sum(-1)

    def worth(self, k: int, action: NDArray[np.int64]) -> Array:
        return self.returns[np.arange(len(action)), action, k]

    def end(self, block: Block, actions: NDArray[np.int64]) -> None:
        pass


class OneStepTable:
    """r_0 + V(s_1), all later values learned by one-step Q-learning from the same episodes."""

    per_block = 500

    def __init__(self, game: WatchRepair, n_seeds: int, step: float) -> None:
        T = game.horizon
        self.step = step
        self.value = np.full((n_seeds, len(ACTIONS), T + 1, len(PRICES), T + 1, T + 1), HOPE, np.float32)
        self.value[:, :, T] = 0  # nothing comes after the last step

    def begin(self, block: Block) -> None:
        self.block = block

    def worth(self, k: int, action: NDArray[np.int64]) -> Array:
        b, seeds = self.block, np.arange(len(action))
        T = b.rewards.shape[-1]
        jams, tires = np.moveaxis(b.events[:, k, 1:], -1, 0)  # [S,T-1] in the states at t = 1 ..
        where = (seeds[:, None], action[:, None], np.arange(1, T), b.brand[:, k, None], jams, tires)
        reward, now = b.rewards[seeds, action, k], self.value[where].astype(np.float64)
        after = np.concatenate((now[:, 1:], np.zeros((len(seeds), 1))), 1)
        self.value[where] = now + self.step * (reward[:, 1:] + after - now)
        return reward[:, 0] + now[:, 0]

    def end(self, block: Block, actions: NDArray[np.int64]) -> None:
        pass


class RudderTable:
    """The redistributed reward of the first step; its network is fitted to a buffer of lessons after every block."""

    per_block = 25

    def __init__(self, game: Env[Any], seeds: Sequence[int], auxiliary: float, lessons: int, steps: int) -> None:
        self.seeds, self.lessons, self.steps = list(seeds), lessons, steps
        self.context = Context(game, tuple(seeds), fit=Fit(hidden=(16,)))
        self.rudder = Rudder(self.context, auxiliary)
        self.optimizer = adam(self.rudder.parameters(), self.context.fit.lr)
        self.kept: Trajectory | None = None
        self.fits = 0

    def begin(self, block: Block) -> None:
        S, A, K, _ = block.rewards.shape
        if self.fits:
            with torch.no_grad():
                told = self.rudder.forward(block.played, block.played.reward)[0]
            self.told = told.reshape(S, A, K).double().numpy()
        else:
            self.told = block.rewards[..., 0]

    def worth(self, k: int, action: NDArray[np.int64]) -> Array:
        return self.told[np.arange(len(action)), action, k]

    def end(self, block: Block, actions: NDArray[np.int64]) -> None:
        """Keep what was lived, and fit."""
        S, K = actions.shape
        lived = whole(block.played, torch.from_numpy(actions * K + np.arange(K)))
        self.kept = lived if self.kept is None else joined(self.kept, lived, S, self.lessons)
        count = self.kept.reward.shape[1] // S
        if count <= LESSONS:
            return
        for _ in range(self.steps):
            u = uniform("tables/lessons", self.seeds, self.fits, (MINIBATCH,))
            some = whole(self.kept, (u * count).long())
            self.optimizer.zero_grad(set_to_none=True)
            self.rudder.loss(some, some.reward).sum().backward()
            self.optimizer.step()
            self.fits += 1


@dataclass(frozen=True)
class TableLearning:
    """Episodes until `goal` of the last `window` decisions were right, for RUDDER, MC and TD.

    As in the authors' program: Q of (brand, action) begins far too high and moves by `step` towards what the action is
    said to be worth; the best action is taken but for a part `epsilon` of the time; RUDDER's network has 16 cells and
    is fitted every 25 episodes, once it has 256, to minibatches of 8 of the last `lessons`. They fit until a running
    loss is small; here always `fits` steps. A seed that does not get there within its budget counts as the budget: its
    ratio is then a lower bound. Numbers: "NAME", "NAME learned" (1 for a seed that got there) and "NAME / RUDDER".
    """

    exact: ClassVar[bool] = False
    budgets: tuple[tuple[str, int], ...]  # of each method
    step: float = 0.1
    epsilon: float = 0.1
    goal: float = 0.95
    window: int = 750
    auxiliary: float = 0.5
    lessons: int = 2048
    fits: int = 100

    def __call__(self, game: Env[Any], seeds: Sequence[int]) -> Found:
        assert isinstance(game, WatchRepair)
        teachers: dict[str, Callable[[], Teacher]] = {
            "RUDDER": lambda: RudderTable(game, seeds, self.auxiliary, self.lessons, self.fits),
            "MC": MonteCarloTable,
            "TD": lambda: OneStepTable(game, len(seeds), self.step),
        }
        taken = {name: self.learning_time(game, seeds, teachers[name](), most) for name, most in self.budgets}
        learned = {f"{name} learned": (taken[name] < most).astype(np.float64) for name, most in self.budgets}
        ratios = {f"{name} / RUDDER": taken[name] / taken["RUDDER"] for name in taken if name != "RUDDER"}
        return taken | learned | ratios

    def learning_time(self, game: WatchRepair, seeds: Sequence[int], teacher: Teacher, budget: int) -> Array:
        """[S] episodes until the goal, at most the budget."""
        S, K = len(seeds), teacher.per_block
        table = np.full((S, len(PRICES), len(ACTIONS)), HOPE)
        best = np.where(np.array(game.profits) > 0, REPAIR, LEAVE)
        found, past = np.full(S, float(budget)), np.zeros((S, 0), bool)
        for first in range(0, budget, K):
            now = block(game, seeds, first, K)
            teacher.begin(now)
            actions = self.decide(teacher, now, table, uniform("tables/explore", list(seeds), first, (K, 2)).numpy())
            past = np.concatenate((past, actions == best[now.brand]), 1)
            there = reached(past, self.window, self.goal)
            found = np.minimum(found, there)
            if (there < budget).all():
                break
            teacher.end(now, actions)
        return found

    def decide(self, teacher: Teacher, now: Block, table: Array, u: NDArray[np.float32]) -> NDArray[np.int64]:
        """[S,K] first actions of a block, learning from each; table [S,brands,2] is changed in place."""
        S, K = now.brand.shape
        seeds, actions = np.arange(S), np.zeros((S, K), np.int64)
        for k in range(K):
            q = table[seeds, now.brand[:, k]]
            guess = (u[:, k, 0] * 2).astype(np.int64)
            free = (u[:, k, 1] < self.epsilon) | (q[:, 0] == q[:, 1])
            actions[:, k] = np.where(free, guess, q.argmax(1))
            at = (seeds, now.brand[:, k], actions[:, k])
            table[at] += self.step * (teacher.worth(k, actions[:, k]) - table[at])
        return actions
