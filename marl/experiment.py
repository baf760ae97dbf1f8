"""From a question to rows: play, assign credit, learn from it, and hold the credit against the truth.

Read this page first. `learn` is the whole loop: rollout -> chain.trace -> learner.update -> chain.fit; `run` holds it
against the oracle and yields rows. Everything else in the project is called from here.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import marl.metrics as metrics
from envs.base import Env, HasUnitDifferences, MayRefuseBranches
from marl.checkpoint import Checkpoint, Unusable
from marl.credit.base import (
    Chain,
    Context,
    Operator,
    Signal,
    check_chain,
    operator_class,
    operator_knobs,
)
from marl.critic import Fit
from marl.learn.base import Learner, Training
from marl.learn.policy_gradient import Reinforce, adam, set_lr
from marl.oracle import oracle
from marl.results import Row
from marl.rollout import greedy, rollout
from marl.types import Policy, Trajectory

PRIVILEGES = (
    "simulator",
    "local rewards",
    "safe action",
    "light cone",
    "optimal value",
    "noise",
    "exact hindsight",
    "truth",
)
TRUTH_STEPS = 2_000_000  # the truth is simulated when B N T^2 / 2 steps stay below this
SLOW_TRUTH_STEPS = 10_000  # ... of a game that is stepped one episode at a time


@dataclass(frozen=True)
class Method:
    """A learner and the chain of operators that turns the team's reward into its credit. A value, not a class."""

    chain: tuple[Operator, ...]
    family: str  # baseline, spatial, temporal, joint or reference: its hue in every figure
    learner: Learner = Reinforce()
    fit: Fit = Fit()  # how whatever the chain learns is fitted

    def __post_init__(self) -> None:
        """Raise ChainError if the operators do not fit, or end in a kind that the learner cannot follow."""
        check_chain(self.chain, self.ends)

    @property
    def ends(self) -> tuple[Signal, ...]:
        """The kinds that the learner follows: what the chain may end in."""
        return tuple(Signal[kind] for kind in self.learner.follows)

    def credit(
        self, game: Env[Any], seeds: Sequence[int] = (0,), policy: Policy | None = None, device: str = "cpu"
    ) -> Chain:
        """The chain, built for a game: `method.credit(game).assign(trajectory)` is [T,B,N] (or [T,B,N,A]).

        The chain of a Q-learner ends in the reward that it learns from.
        """
        context = Context(game, tuple(seeds), policy, device=torch.device(device), fit=self.fit)
        return Chain(self.chain, context, self.ends).to(device)

    @property
    def needs(self) -> tuple[str, ...]:
        """What it must be given: critic, model, policy, or one of PRIVILEGES."""
        found = {need: None for op in self.chain for need in operator_class(op).needs}
        if any("safe" in operator_knobs(op).values() for op in self.chain):
            found["safe action"] = None
        if any(operator_knobs(op).get("exact") is not None for op in self.chain):
            found["exact hindsight"] = None
        return tuple(found)

    @property
    def privileged(self) -> bool:
        """Does it use what an agent in the world would not have?"""
        return any(need in PRIVILEGES for need in self.needs)

    @property
    def cost(self) -> str:
        """Counterfactual simulator steps for B episodes, in the letters of the axes."""
        return " + ".join(c for op in self.chain if (c := operator_class(op).cost) != "0") or "0"

    def describe(self) -> dict[str, Any]:
        """Its full configuration as JSON values."""
        chain = [[operator_class(op).__name__, _plain(operator_knobs(op))] for op in self.chain]
        return {"chain": chain, "needs": list(self.needs), "fit": _settings(self.fit)}


def _plain(knobs: dict[str, Any]) -> dict[str, Any]:
    """Knobs as JSON values; a function by its name."""
    return {k: getattr(v, "__name__", None) or v if callable(v) else v for k, v in knobs.items()}


def _settings(record: Any) -> dict[str, Any]:
    """Fields of a learner or a fit; a memory that is off is not named, so that methods without one keep their cells."""
    return {k: v for k, v in asdict(record).items() if k != "memory" or v}


@dataclass(frozen=True)
class Experiment:
    """One game, one method, all seeds."""

    game: Env[Any]
    method: Method
    seeds: Sequence[int] = field(default_factory=lambda: range(10))
    steps: int = 500_000  # environment steps per seed, counted as whole episodes (horizon x episodes)
    points: int = 16  # evaluation points after the first, evenly spaced over updates
    episodes: int = 32  # a seed and evaluation point, on noise that all methods share
    final_episodes: int = 320  # fresh episodes a seed for the final figures
    judge: bool = True  # score credit against the truth where the game has one
    device: str = "cpu"  # where states, networks and buffers live

    def __post_init__(self) -> None:
        """Refuse counts that mean nothing, one sentence each."""
        for knob in ("steps", "points", "episodes", "final_episodes"):
            value = getattr(self, knob)
            if value < 1:
                raise ValueError(f"{knob}={value} is not allowed; it must be 1 or more")
        if not len(self.seeds) or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds={list(self.seeds)} is not allowed; give at least one seed, each once")

    @property
    def updates(self) -> int:
        """Batches of whole episodes that the budget pays for, at least one."""
        return max(1, round(self.steps / (self.game.horizon * self.method.learner.episodes)))

    def describe(self) -> dict[str, Any]:
        """Everything its results depend on, as JSON values; the method's name and the game's id are the caller's."""
        evaluation = {"points": self.points, "episodes": self.episodes, "final_episodes": self.final_episodes}
        return {
            "learner": {"name": type(self.method.learner).__name__, **_plain(_settings(self.method.learner))},
            "seeds": [int(s) for s in self.seeds],
            "steps": self.steps,
            "evaluation": {**evaluation, "judge": self.judge},
        }


class Stage(NamedTuple):
    """A population on its way: what `learn` shows at every evaluation point and at the end."""

    update: int  # batches learned from so far
    training: Training
    chain: Chain
    seconds: float  # since the beginning

    @property
    def actor(self) -> Any:
        """Who is judged now."""
        return self.training.evaluated


class Run:
    """What a run changes while it goes on: the learner's training, the chain, and the optimiser of what it learns."""

    def __init__(self, experiment: Experiment) -> None:
        game, method, seeds = experiment.game, experiment.method, list(experiment.seeds)
        self.training = method.learner.begin(game, seeds)
        self.training.to(experiment.device)
        self.chain = method.credit(game, seeds, self.training.policy, experiment.device)
        self.optimizer = adam(self.chain.parameters(), method.fit.lr) if self.chain.learns else None

    def state(self) -> dict[str, Any]:
        """All that the next update depends on."""
        fitted = None if self.optimizer is None else self.optimizer.state_dict()
        spent = self.chain.context.simulator.steps
        return {"training": self.training.state(), "chain": self.chain.state_dict(), "fit": fitted, "spent": spent}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from such a state."""
        self.training.load(state["training"])
        self.chain.load_state_dict(state["chain"])
        if self.optimizer is not None:
            self.optimizer.load_state_dict(state["fit"])
        self.chain.context.simulator.steps = state["spent"]


def begin(experiment: Experiment, kept: Checkpoint | None) -> tuple[Run, int, float]:
    """A run, the updates behind it and the seconds it has taken: as kept, or new."""
    now = Run(experiment)
    try:
        return (now, 0, 0.0) if kept is None else (now, *kept.restore(now.load))
    except Unusable:
        return Run(experiment), 0, 0.0


def learn(experiment: Experiment, kept: Checkpoint | None = None) -> Iterator[Stage]:
    """Train all seeds of an experiment at once; stop at every evaluation point and at the end to be looked at.

    With a checkpoint it goes on where that left off, and keeps itself there whenever that is due.
    """
    game, method, seeds = experiment.game, experiment.method, list(experiment.seeds)
    started = time.perf_counter()
    now, first, spent = begin(experiment, kept)
    training, chain, started = now.training, now.chain, started - spent
    E, marks = method.learner.episodes, evaluation_marks(experiment)
    for update in range(first, experiment.updates):
        if update in marks:
            yield Stage(update, training, chain, time.perf_counter() - started)
        trajectory = rollout(game, training.policy, E, seeds, first_episode=update * E, device=experiment.device)
        signal, incoming = chain.trace(trajectory)
        training.update(trajectory, signal, update, update / experiment.updates)
        if now.optimizer is not None:
            # After the actor: no actor ever reads a critic that was fitted to the very actions it is judged by.
            set_lr(now.optimizer, method.fit.lr, method.fit.anneal, update / experiment.updates)
            chain.fit(now.optimizer, trajectory, incoming, update)
        if kept is not None and kept.due:
            kept.write(update + 1, time.perf_counter() - started, now.state())
    yield Stage(experiment.updates, training, chain, time.perf_counter() - started)


def run(experiment: Experiment, kept: Checkpoint | None = None) -> Iterator[Row]:
    """Train, and yield every measurement of every seed: what a results file holds."""
    seeds, per_update = list(experiment.seeds), experiment.game.horizon * experiment.method.learner.episodes
    rows: list[Row] = []
    told = 0
    for stage in learn(experiment, kept):
        rows = rows if kept is None else kept.rows  # those from before it was interrupted come first
        measured = measure(experiment, stage)
        if stage.update == experiment.updates:
            measured |= final_measure(experiment, stage.actor)
        spent = stage.chain.context.simulator.steps
        for metric, values in measured.items():
            at = (stage.update * per_update, stage.seconds)
            rows += [Row(seeds[s], at[0], int(spent[s]), at[1], metric, float(v)) for s, v in enumerate(values)]
        yield from rows[told:]
        told = len(rows)


def evaluation_marks(experiment: Experiment) -> set[int]:
    """The updates before which we measure: the first, and evenly spaced ones."""
    return {round(k * experiment.updates / experiment.points) for k in range(experiment.points)}


def score(game: Env[Any], returns: Tensor) -> Tensor | None:
    """(G - G_random) / (G_reachable - G_random), reachable being optimal where not given; None where unknown."""
    best = game.optimal_return if game.reachable_return is None else game.reachable_return
    if best is None or game.random_return is None or best == game.random_return:
        return None
    return (returns - game.random_return) / (best - game.random_return)


def measure(experiment: Experiment, stage: Stage) -> dict[str, Any]:
    """Return, score and credit quality on evaluation noise; [S] each. Nothing measured here touches training."""
    game, seeds = experiment.game, list(experiment.seeds)
    trajectory = rollout(game, stage.actor, experiment.episodes, seeds, purpose="evaluation", device=experiment.device)
    out = _returns(game, trajectory, len(seeds), "")
    if experiment.judge:
        out |= judge(game, stage.chain, trajectory, stage.training)
    return out


def final_measure(experiment: Experiment, actor: Policy) -> dict[str, Any]:
    """Return and score of the sampled and of the greedy policy on fresh episodes, [S] each."""
    game, seeds = experiment.game, list(experiment.seeds)
    out: dict[str, Any] = {}
    policies: dict[str, Policy] = {"final_": actor, "final_greedy_": greedy(actor)}
    for prefix, policy in policies.items():
        trajectory = rollout(game, policy, experiment.final_episodes, seeds, purpose="final", device=experiment.device)
        out |= _returns(game, trajectory, len(seeds), prefix)
    return out


def _returns(game: Env[Any], trajectory: Trajectory, n_seeds: int, prefix: str) -> dict[str, Any]:
    returns = trajectory.reward.sum(0).reshape(n_seeds, -1).mean(1)
    normalised = score(game, returns)
    return {f"{prefix}return": returns} | ({} if normalised is None else {f"{prefix}score": normalised})


def has_truth(game: Env[Any], episodes: int) -> bool:
    """Is the frozen unit truth (O8) known in closed form, or cheap enough to simulate?"""
    if isinstance(game, HasUnitDifferences):
        return True
    if isinstance(game, MayRefuseBranches) and game.counterfactuals is None:
        return False
    allowed = SLOW_TRUTH_STEPS if isinstance(game, MayRefuseBranches) else TRUTH_STEPS
    return episodes * game.n_agents * game.horizon**2 / 2 <= allowed


def judge(game: Env[Any], chain: Chain, trajectory: Trajectory, training: Training) -> dict[str, Any]:
    """Scores of the chain's credit against O8 on given episodes, averaged over the episodes where each is defined."""
    B, n_seeds = trajectory.action.shape[1], chain.context.n_seeds
    if not has_truth(game, B):
        return {}
    credit, truth = assign_uncounted(chain, trajectory, training), oracle(game, None, trajectory, "O8").values
    credit, truth, alive = (x.cpu() for x in (credit, truth, trajectory.alive))
    found = metrics.scores(credit.numpy(), truth.numpy(), alive.numpy(), failed(trajectory, truth))
    return {name: [metrics.average(v).value for v in values.reshape(n_seeds, -1)] for name, values in found.items()}


def failed(trajectory: Trajectory, truth: Tensor) -> np.ndarray:
    """[B] bool: the episode ended early, or, in a game that never does, some unit cost the team something."""
    ended = trajectory.done[:-1].any(0) | trajectory.done[-1] & (trajectory.reward[-1] < 0)
    truth = truth.to(ended.device)
    return (ended if bool(ended.any()) else (truth < 0).any(0).any(-1)).cpu().numpy()


def assign_uncounted(chain: Chain, trajectory: Trajectory, training: Training | None = None) -> Tensor:
    """Credit of the actions taken [T,B,N], for measuring: what it asks of the simulator is not charged to training."""
    own = None if training is None else training.credit(trajectory)
    if own is not None:
        return own
    simulator = chain.context.simulator
    before = simulator.steps
    credit = chain.assign(trajectory)
    simulator.steps = before
    if credit.dim() != 4:
        return credit
    # Of every action: what multiplies grad log pi of the one taken is pi(a) w_a.
    return (trajectory.probs * credit).gather(-1, trajectory.action[..., None])[..., 0]


@dataclass(frozen=True)
class JudgedWalks:
    """Every method's credit for the same stored episodes of the uniformly random policy, beside the truth."""

    trajectory: Trajectory
    credit: Tensor  # [T,B,N]
    truth: Tensor  # [T,B,N]
    scores: dict[str, Any]  # name -> [S]


def judge_walks(
    game: Env[Any], method: Method, episodes: int = 64, batches: int = 100, seeds: Sequence[int] = (0,)
) -> JudgedWalks | None:
    """Credit is a function of the policy, so that methods are compared on one: uniformly random play.

    What a method learns is first fitted on `batches` batches of that policy's episodes; then all methods judge the
    same `episodes` episodes a seed. Each seed has episodes and networks of its own. None where the game has no truth.
    """
    if not has_truth(game, episodes * len(seeds)):
        return None
    chain, training, E = method.credit(game, seeds), method.learner.begin(game, seeds), method.learner.episodes
    own = training.credit(rollout(game, None, 1, seeds, purpose="judge")) is not None
    optimizer = adam(chain.parameters(), method.fit.lr) if chain.learns else None
    for k in range(batches if own or chain.learns else 0):
        batch = rollout(game, None, E, seeds, k * E, "judge/fit")
        signal, incoming = chain.trace(batch)
        if own:
            training.update(batch, signal, k, 0.0)
        if optimizer is not None:
            chain.fit(optimizer, batch, incoming, k)
    trajectory = rollout(game, None, episodes, seeds, purpose="judge")
    credit = assign_uncounted(chain, trajectory, training)
    truth = oracle(game, None, trajectory, "O8").values
    return JudgedWalks(trajectory, credit, truth, judge(game, chain, trajectory, training))
