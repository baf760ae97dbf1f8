"""Credit is an algebra: operators on typed signals, chained from the environment's reward to the weight on grad log pi.

The kinds keep a chain honest. Only RAW, the environment's own reward, is what a simulator's counterfactual may be
subtracted from; a chain in which an operator does not take what the one before it gives is refused when it is built.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from typing import Any, ClassVar, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor, nn

from envs.base import Env, MayRefuseBranches
from marl.critic import Fit, Value, error, mean_over_live
from marl.minibatch import orders, pick, schedule, subset
from marl.networks import clip_per_seed
from marl.rollout import Simulator, uniform_policy
from marl.types import Policy, Trajectory


class Signal(Enum):
    """What a tensor in a chain means."""

    RAW = "RAW"  # [T,B] the environment's own team reward
    TEAM = "TEAM"  # [T,B] a redistributed team reward
    AGENT = "AGENT"  # [T,B,N] a reward stream per agent
    ADVANTAGE = "ADVANTAGE"  # [T,B,N] credit of the action taken
    ACTIONS = "ACTIONS"  # [T,B,N,A] credit of every action


class ChainError(ValueError):
    """Operators that do not fit; the message names both."""


@dataclass(frozen=True)
class Context:
    """What operators may use: the game, its simulator, the seeds that train, and the policy that acts."""

    game: Env[Any]
    seeds: tuple[int, ...] = (0,)
    policy: Policy | None = None  # the behaviour policy; None: uniformly random
    simulator: Simulator = field(default=None)  # type: ignore[assignment]  # filled below
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    fit: Fit = Fit()  # how critics and models are fitted

    def __post_init__(self) -> None:
        """Give every context a simulator with a meter of its own, and a policy."""
        if self.simulator is None:
            object.__setattr__(self, "simulator", Simulator(self.game, len(self.seeds)))
        if self.policy is None:
            object.__setattr__(self, "policy", uniform_policy(self.game.n_actions))

    @property
    def n_seeds(self) -> int:
        """S."""
        return len(self.seeds)


class Credit(nn.Module, ABC):
    """One operator, signal in, signal out. Subclasses are final and are built with (context, **knobs)."""

    signals: ClassVar[Mapping[Signal, Signal]]  # what it takes -> what it then gives
    aligned: bool  # its mean gradient is the team's, where what it takes is; does not compose, hence we measure
    efficient: bool  # agents' shares sum to what came in
    needs: ClassVar[tuple[str, ...]] = ()  # see `Method.needs`
    cost: ClassVar[str] = "0"  # simulator steps for B whole episodes, in the letters of the axes

    def __init__(self, context: Context) -> None:
        super().__init__()
        self.context = context
        game = context.game
        asks = "simulator" in self.needs or "truth" in self.needs
        if asks and isinstance(game, MayRefuseBranches) and game.counterfactuals is None:
            raise ChainError(f"{type(self).__name__} needs counterfactuals, which this game cannot give: {game.why}")

    @abstractmethod
    def forward(self, trajectory: Trajectory, signal: Tensor) -> Tensor:
        """The outgoing signal; values at dead steps do not matter."""


@runtime_checkable
class Learned(Protocol):
    """An operator that fits something to its incoming signal."""

    def target(self, trajectory: Trajectory, signal: Tensor) -> Tensor:
        """[T,B,N] what it is fitted to; asked for once a batch, and held fixed while the fit lasts."""

    def predict(self, trajectory: Trajectory) -> Tensor:
        """[T,B,N] what it says now, each row by itself."""


@runtime_checkable
class ValueLearner(Protocol):
    """A learned operator whose prediction is what a `Value` says of each step (`Value.raw`), and nothing else."""

    value: Value


@runtime_checkable
class Descends(Protocol):
    """What fits one prediction to a target, all gradient steps in one call where the fused tier can."""

    def descended(
        self, optimizer: torch.optim.Optimizer, trajectory: Trajectory, target: Tensor, old: Tensor, order: Tensor
    ) -> bool:
        """False where it cannot, and then nothing has changed; see `Value.descended`."""


@runtime_checkable
class LearnsEpisodes(Protocol):
    """An operator that fits whole episodes by a loss of its own."""

    def loss(self, trajectory: Trajectory, signal: Tensor) -> Tensor:
        """[S] what each seed's gradient steps make smaller; signal: what came in. Asked anew at every step."""


@runtime_checkable
class Tracks(Protocol):
    """An operator that keeps something of every batch it is trained on, besides what gradient steps fit."""

    def track(self, trajectory: Trajectory, signal: Tensor) -> None:
        """Take a training batch in, once, after its credit was given out and before anything is fitted to it."""


Operator: TypeAlias = Callable[..., Credit]
"""An operator yet to be built: a class, or functools.partial(class, knob=value)."""


def operator_class(operator: Operator) -> type[Credit]:
    """The class behind an operator."""
    cls = operator.func if isinstance(operator, partial) else operator
    assert isinstance(cls, type)
    return cls


def operator_knobs(operator: Operator) -> dict[str, Any]:
    """All knobs of an operator, defaults included. Raises ChainError for a knob it does not have."""
    cls = operator_class(operator)
    knobs = operator.keywords if isinstance(operator, partial) else {}
    signature = inspect.signature(cls)
    unknown = set(knobs) - set(signature.parameters)
    if unknown:
        known = ", ".join(name for name in signature.parameters if name != "context") or "none"
        raise ChainError(f"{cls.__name__} has no knob {sorted(unknown)[0]!r}; its knobs are: {known}")
    bound = signature.bind(None, **knobs)
    bound.apply_defaults()
    return {name: value for name, value in bound.arguments.items() if name != "context"}


CREDIT = (Signal.ADVANTAGE, Signal.ACTIONS)


def check_chain(operators: Sequence[Operator], ends: Sequence[Signal] = CREDIT) -> Signal:
    """The kind that comes out at the end, one of `ends`.

    Raises ChainError, one sentence, naming the two operators that do not fit. A learner that follows RAW needs none.
    """
    wanted = " or ".join(s.value for s in ends)
    if not operators and Signal.RAW not in ends:
        raise ChainError(f"a chain needs at least one operator, from RAW to {wanted}")
    kind, before = Signal.RAW, "the environment's reward"
    for operator in operators:
        cls = operator_class(operator)
        operator_knobs(operator)
        if kind not in cls.signals:
            takes = " or ".join(s.value for s in cls.signals)
            raise ChainError(f"{cls.__name__} takes {takes} and cannot follow {before}, which gives {kind.value}")
        kind, before = cls.signals[kind], cls.__name__
    if kind not in ends:
        raise ChainError(f"a chain must end in {wanted}, but {before} gives {kind.value}")
    return kind


class Chain(nn.Module):
    """Operators that fit, built for one game and its seeds."""

    def __init__(self, operators: Sequence[Operator], context: Context, ends: Sequence[Signal] = CREDIT) -> None:
        super().__init__()
        self.gives = check_chain(operators, ends)
        self.context = context
        self.parts = nn.ModuleList(operator(context) for operator in operators)

    def assign(self, trajectory: Trajectory) -> Tensor:
        """Credit [T,B,N] (or [T,B,N,A] for ACTIONS), 0 at dead steps."""
        return self.trace(trajectory)[0]

    def trace(self, trajectory: Trajectory) -> tuple[Tensor, list[Tensor]]:
        """The credit, and the signal that came in at each part: what its learned parts are fitted to."""
        incoming, signal = [], trajectory.reward
        with torch.no_grad():
            for part in self.parts:
                incoming.append(signal)
                signal = live_only(part(trajectory, signal), trajectory.alive)
        return signal, incoming

    def fit(
        self, optimizer: torch.optim.Optimizer, trajectory: Trajectory, incoming: list[Tensor], update: int
    ) -> None:
        """Fit every learned part to the signal that came in at it, as `context.fit` says; seeds do not meet.

        Targets are computed once, before the first step, as if by a target network refreshed every update. A part with
        a loss of its own takes the same number of steps, each on the whole episodes. The simulator is not asked again.
        """
        how, S = self.context.fit, self.context.n_seeds
        pairs = list(zip(self.parts, incoming, strict=True))
        for part, signal in pairs:
            if isinstance(part, Tracks):
                part.track(trajectory, signal)
        if not any(True for _ in self.parameters()):
            return
        parts = [(part, signal) for part, signal in pairs if isinstance(part, Learned)]
        wholes = [(part, signal) for part, signal in pairs if isinstance(part, LearnsEpisodes)]
        with torch.no_grad():
            aims = [(part, part.target(trajectory, signal), part.predict(trajectory)) for part, signal in parts]
        if len(aims) == 1 and not wholes:
            learner: Any = aims[0][0].value if isinstance(aims[0][0], ValueLearner) else aims[0][0]
            if isinstance(learner, Descends):
                cells = trajectory.alive.numel() // S
                order = orders(self.context.seeds, cells, update, how.passes, how.minibatches, "fit")
                if learner.descended(optimizer, trajectory, *aims[0][1:], order):
                    return
        for index in schedule(
            self.context.seeds, trajectory, update, how.passes, how.minibatches, "fit", whole=how.memory > 0
        ):
            rows = subset(trajectory, index)
            optimizer.zero_grad(set_to_none=True)
            loss = trajectory.reward.new_zeros(S)
            for part, target, old in aims:
                aim, was = (target, old) if index is None else (pick(target, index), pick(old, index))
                loss = loss + mean_over_live(error(part.predict(rows), aim, was, how.clip), rows.alive, S)
            for whole, signal in wholes:
                loss = loss + whole.loss(trajectory, signal)
            loss.sum().backward()
            if how.max_grad_norm is not None:
                clip_per_seed(list(self.parameters()), S, how.max_grad_norm)
            optimizer.step()

    @property
    def learns(self) -> bool:
        """Does any part take something from the batches it is trained on?"""
        return any(True for _ in self.parameters()) or any(isinstance(part, Tracks) for part in self.parts)


def live_only(x: Tensor, alive: Tensor) -> Tensor:
    """x [T,B,...], 0 at dead steps; alive [T,B]."""
    live = alive.reshape(*alive.shape, *[1] * (x.dim() - 2))
    return torch.where(live, x, torch.zeros((), dtype=x.dtype, device=x.device))


def as_signal(heads: Tensor, like: Tensor) -> Tensor:
    """N heads of a network [T,B,N] as a signal of the kind of `like`: per agent each its own, for a team their mean."""
    return heads.mean(-1) if like.dim() == 2 else heads


def mean_over_episodes(x: Tensor, n_seeds: int) -> Tensor:
    """[S] mean over a seed's episodes (and agents): x [B] or [B,N]."""
    return x.unflatten(0, (n_seeds, -1)).flatten(1).mean(1)


def centred(x: Tensor, alive: Tensor, n_seeds: int) -> Tensor:
    """x minus its mean over the seed's live episodes at each t: x [T,B,N]."""
    x_ = x.unflatten(1, (n_seeds, -1))
    weight = alive.unflatten(1, (n_seeds, -1))[..., None].to(x.dtype)
    mean = (x_ * weight).sum(2, keepdim=True) / weight.sum(2, keepdim=True).clamp(min=1)
    return (x_ - mean).flatten(1, 2)


def reward_to_go(x: Tensor, discount: float = 1.0) -> Tensor:
    """G_t = sum_{k >= 0} discount^k x_{t+k} along the first axis."""
    if discount == 1.0:
        return x.flip(0).cumsum(0).flip(0)
    out = torch.empty_like(x)
    total = torch.zeros_like(x[0])
    for t in reversed(range(len(x))):
        total = x[t] + discount * total
        out[t] = total
    return out


BASELINES = ("mean", "none")


def check_choice(owner: object, knob: str, value: object, allowed: Sequence[object]) -> None:
    """Refuse a knob's value with one sentence."""
    if value not in allowed:
        names = ", ".join(str(a) for a in allowed)
        raise ChainError(f"{type(owner).__name__}: {knob}={value!r} is not allowed; it must be one of {names}")


def check_fraction(owner: object, knob: str, value: float) -> None:
    """Refuse a knob outside [0, 1]."""
    if not 0 <= value <= 1:
        raise ChainError(f"{type(owner).__name__}: {knob}={value!r} is not allowed; it must be a number in 0..1")
