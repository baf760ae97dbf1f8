"""The same episodes for every method: policies at stages of training, their episodes, and the truth about each unit."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import marl
from benchmarks.methods import METHODS
from envs.base import Env, HasUnitDifferences, map_state
from envs.noise import uniform
from marl.credit.base import Chain
from marl.experiment import Experiment, Method, failed, learn
from marl.gradient import fit
from marl.learn.q_learning import QLearning, QTraining
from marl.oracle import oracle
from marl.policy import Actor
from marl.rollout import draw_noise, play, rollout, some
from marl.types import Trajectory, Truth

NEUTRAL = "team + return"  # unbiased, and nobody's favourite: trains the policies that all methods are asked about
TUNING = 1_000_000  # policies come from seeds that no other question reports
PROGRESS = (0.5, 0.9)  # later stages: that much of what training gains in return is gained
MARKS = 40  # points of training among which stages are found
PURPOSE = "credit"


class Stage(NamedTuple):
    """One population of policies, its episodes, and what is true of them. B = S * E rows, seed-major."""

    steps: int  # environment steps each policy was trained for
    actor: Actor
    trajectory: Trajectory
    truths: dict[str, Truth]  # by kind: learning, attribution, this episode
    failed: NDArray[np.bool_]  # [B]
    changes: Changes


class Changes(NamedTuple):
    """One unit (t, i) of each episode [B], and the episode lived again with it, or all others at t, drawn anew."""

    t: Tensor
    agent: Tensor
    lives: Trajectory  # 3 B rows: each seed's episodes as they were, then with its own, then with the others' changed


def kinds(game: Env[Any]) -> tuple[str, str, str]:
    """The truths of learning, of attribution, and of this episode: O8 where the game knows it, else O6."""
    return "O3", "O5", "O8" if isinstance(game, HasUnitDifferences) else "O6"


@lru_cache(maxsize=1)
def stages(
    game: str, knobs: str, updates: int, seeds: int, episodes: int, replays: int, memory: int = 1024
) -> tuple[Stage, ...]:
    """Before training, half-way and nearly trained (`PROGRESS`); the same for all methods. knobs: JSON; memory: MiB."""
    loaded = marl.load(game, **json.loads(knobs))
    names = list(range(TUNING, TUNING + seeds))
    ask = partial(oracle, replays=replays, memory=memory << 20)
    return tuple(_stage(loaded, steps, actor, episodes, ask) for steps, actor in policies(loaded, names, updates))


def policies(game: Env[Any], seeds: list[int], updates: int) -> list[tuple[int, Actor]]:
    """(environment steps, policies) of each stage: the marks of training whose mean return is nearest to PROGRESS."""
    method = METHODS[NEUTRAL]
    each = game.horizon * method.learner.episodes
    points = min(MARKS, updates)
    found, returns = [], []
    for stage in learn(Experiment(game, method, seeds, updates * each, points=points, judge=False)):
        found.append((stage.update * each, copy.deepcopy(stage.actor)))
        returns.append(float(rollout(game, stage.actor, 64, seeds, purpose="evaluation").reward.sum(0).mean()))
    chosen, gain = [0], np.array(returns) - returns[0]
    for k, part in enumerate(PROGRESS):
        first, last = chosen[-1] + 1, len(found) - len(PROGRESS) + k  # later stages need marks of their own
        off = np.abs(gain - part * gain[-1])
        chosen.append(first + int(np.argmin(off[first : last + 1])) if first <= last else len(found) - 1)
    return [found[k] for k in chosen]


def _stage(game: Env[Any], steps: int, actor: Actor, episodes: int, ask: Callable[..., Truth]) -> Stage:
    trajectory = rollout(game, actor, episodes, list(actor.seeds), purpose=PURPOSE)
    truths = {kind: ask(game, actor, trajectory, kind) for kind in kinds(game)}
    bad = failed(trajectory, truths[kinds(game)[2]].values)
    return Stage(steps, actor, trajectory, truths, bad, changes(game, actor, trajectory))


def changes(game: Env[Any], actor: Actor, trajectory: Trajectory) -> Changes:
    """Draw one live unit of each episode, and live on with fresh policy noise there: its own, and all others' at t."""
    T, B, N = trajectory.action.shape
    S = actor.n_seeds
    seed = torch.tensor(actor.seeds).repeat_interleave(B // S)
    episode = torch.arange(B // S).repeat(S)
    noise = draw_noise(game, seed, episode, PURPOSE, trajectory.reward.dtype)
    fresh = draw_noise(game, seed, episode, f"{PURPOSE}/changed", trajectory.reward.dtype).policy
    u = uniform(f"{PURPOSE}/unit", seed, episode, (2,))
    t = (u[:, 0] * trajectory.alive.sum(0)).long().clamp(max=T - 1)
    agent = (u[:, 1] * N).long().clamp(max=N - 1)
    rows = torch.arange(B)
    at = torch.zeros(T, B, N, dtype=torch.bool)
    at[t, rows] = True
    mine = torch.zeros_like(at)
    mine[t, rows, agent] = True
    own, others = (
        play(game, actor, noise._replace(policy=torch.where(where, fresh, noise.policy)))
        for where in (mine, at & ~mine)
    )
    return Changes(t, agent, beside((trajectory, own, others), S))


def beside(trajectories: tuple[Trajectory, ...], n_seeds: int) -> Trajectory:
    """Recordings of equally many episodes as one, seed-major: each seed's rows of the first, of the second, ..."""

    def join(*x: Any) -> Any:
        return None if x[0] is None else torch.cat(x, 1)

    fields = {name: join(*(getattr(tau, name) for tau in trajectories)) for name in Trajectory._fields[2:]}
    state = map_state(lambda *x: torch.cat(x, 1), *(tau.state for tau in trajectories))
    final = map_state(lambda *x: torch.cat(x), *(tau.final for tau in trajectories))
    B = trajectories[0].action.shape[1]
    order = torch.arange(len(trajectories) * B).reshape(len(trajectories), n_seeds, -1).transpose(0, 1).flatten()
    return some(Trajectory(state, final, **fields), order)


class Fitted(NamedTuple):
    """A method that has learned from one population of policies all that it is to know."""

    chain: Chain
    training: QTraining | None  # of a Q-learner, whose own credit counts

    def credit(self, trajectory: Trajectory) -> tuple[Tensor, Tensor]:
        """[T,B,N] credit of the actions taken, and the simulator steps [S] that it asked for.

        Credit w of every action counts by what multiplies grad log pi_i of the action taken, pi_i(a) w_a.
        """
        before = self.chain.context.simulator.steps
        if self.training is not None:
            return self.training.credit(trajectory), torch.zeros_like(before)
        credit = self.chain.assign(trajectory)
        if credit.dim() == 4:
            taken = trajectory.action[..., None]
            credit = (trajectory.probs * credit).gather(-1, taken)[..., 0]
        return credit, self.chain.context.simulator.steps - before


def fitted(method: Method, game: Env[Any], actor: Actor, episodes: int, batches: int) -> Fitted:
    """Fit whatever the method learns on `batches` batches of the frozen policies' episodes."""
    chain = method.credit(game, actor.seeds, actor)
    fit(chain, game, actor, episodes, batches)
    if not isinstance(method.learner, QLearning):
        return Fitted(chain, None)
    training = method.learner.begin(game, actor.seeds)
    for k in range(batches):
        batch = rollout(game, actor, episodes, list(actor.seeds), k * episodes, f"{PURPOSE}/fit")
        training.update(batch, chain.assign(batch), k, 0.0)
    return Fitted(chain, training)


# Wrong on purpose: what every score that is meant to see it must rank below the truth.


def wrong_agent(truth: Tensor, alive: Tensor) -> Tensor:
    """Each agent gets its neighbour's credit."""
    return truth.roll(1, -1)


def one_step_late(truth: Tensor, alive: Tensor) -> Tensor:
    """Each step gets the credit of the step before."""
    return torch.cat((torch.zeros_like(truth[:1]), truth[:-1])) * alive[..., None]


def noise(truth: Tensor, alive: Tensor) -> Tensor:
    """Gaussian numbers of the truth's size."""
    drawn = torch.from_numpy(np.random.default_rng(0).normal(size=truth.shape)).to(truth.dtype)
    return drawn * truth.square().mean().sqrt() * alive[..., None]


CONTROLS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "truth itself": lambda truth, alive: truth,
    "truth, wrong agent": wrong_agent,
    "truth, one step late": one_step_late,
    "noise": noise,
}
"""Name -> what it makes of the truth [T,B,N] that it is then scored against."""


def control_fits(name: str, game: Env[Any]) -> bool:
    """Is there another agent, an earlier step, to give the credit to?"""
    return {"truth, wrong agent": game.n_agents > 1, "truth, one step late": game.horizon > 1}.get(name, True)
