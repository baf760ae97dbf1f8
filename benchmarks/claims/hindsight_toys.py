"""Two tasks that tell why hindsight helps: an effect that comes late under noise, and a bandit whose arms mix."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from benchmarks.claims.watch_repair import normal
from envs.base import Env, Step, real, whole
from marl.types import Trajectory

RIGHT, WRONG = 0, 1


class ToyState(NamedTuple):
    """Where on its way an episode is, and which of two outcomes lies ahead."""

    t: Tensor  # [B] int64
    good: Tensor  # [B] bool, decided by the first step
    paid: Tensor  # [B] return so far; its dtype is the game's


@dataclass(frozen=True)
class DelayedEffect(Env[ToyState]):
    """The first action decides what the last step pays, 1 or -1; in between all looks the same and pays noise.

    Step 0 pays nothing; the `way` steps that follow look alike and pay N(0, sigma^2), whatever is done; at the last
    step the agent sees which end it has reached, and is paid.

    As published: two actions, an aliased chain (`way` is their n), white noise of deviation sigma, ends of 1 and -1.
    """

    way: int = 3  # steps that look alike
    sigma: float = 2.0  # deviation of what each of them pays

    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)
    exogenous: ClassVar[tuple[str, ...]] = ("t",)
    bookkeeping: ClassVar[tuple[str, ...]] = ("paid",)
    n_agents = property(lambda self: 1)
    n_actions = property(lambda self: 2)
    obs_size = property(lambda self: 4)
    critic_size = property(lambda self: 4)
    horizon = property(lambda self: self.way + 2)
    reset_noise_size = property(lambda self: 0)
    step_noise_size = property(lambda self: int(self.way > 0 and self.sigma > 0))
    default_action = property(lambda self: WRONG)
    optimal_return = property(lambda self: 1.0)
    random_return = property(lambda self: 0.0)

    def __post_init__(self) -> None:
        whole(self, 0, None, "way")
        real(self, 0, None, "sigma")

    def reset(self, noise: Tensor) -> ToyState:
        return start(noise)

    def step(self, state: ToyState, action: Tensor, noise: Tensor) -> Step[ToyState]:
        first, last = state.t == 0, state.t == self.horizon - 1
        good = torch.where(first, action[:, 0] == RIGHT, state.good)
        between = ~first & (state.t < self.horizon - 1)
        white = self.sigma * normal(noise[:, 0]) if self.step_noise_size else torch.zeros_like(state.paid)
        reward = torch.where(last, 2 * good.to(white.dtype) - 1, torch.where(between, white, 0))
        return Step(ToyState(state.t + 1, good, state.paid + reward), reward, torch.zeros_like(first))

    def observe(self, state: ToyState) -> Tensor:
        return self.critic_view(state)[:, None]

    def critic_view(self, state: ToyState) -> Tensor:
        """Start, on the way, the good end, the bad end: one-hot."""
        ended = state.t >= self.horizon - 1
        place = torch.where(state.t == 0, 0, torch.where(ended, 3 - state.good.long(), 1))
        return torch.nn.functional.one_hot(place, 4).to(state.paid.dtype)

    def scripted_action(self, state: ToyState) -> Tensor:
        return torch.full_like(state.t, RIGHT)[:, None]


@dataclass(frozen=True)
class AmbiguousBandit(Env[ToyState]):
    """Two arms lead to two states, each mostly to its own; the states pay alike, N(2, s^2) and N(1, s^2).

    With chance epsilon an arm leads to the other's state. `hidden` states look the same.

    As published: epsilon .1, means 1 and 2, deviation 1.5, with and without the state's identity. There the reward
    comes with the arrival; here it is paid by a step from the state, so that the state is observed before it.
    """

    epsilon: float = 0.1  # chance to end up in the other arm's state
    deviation: float = 1.5  # of what a state pays
    hidden: bool = False  # the two states look the same

    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)
    exogenous: ClassVar[tuple[str, ...]] = ("t",)
    bookkeeping: ClassVar[tuple[str, ...]] = ("paid",)
    n_agents = property(lambda self: 1)
    n_actions = property(lambda self: 2)
    obs_size = property(lambda self: 3)
    critic_size = property(lambda self: 3)
    horizon = property(lambda self: 2)
    reset_noise_size = property(lambda self: 0)
    step_noise_size = property(lambda self: 1)
    default_action = property(lambda self: WRONG)
    optimal_return = property(lambda self: 2.0 - self.epsilon)
    random_return = property(lambda self: 1.5)

    def __post_init__(self) -> None:
        real(self, 0, 0.5, "epsilon")
        real(self, 0, None, "deviation")

    def reset(self, noise: Tensor) -> ToyState:
        return start(noise)

    def step(self, state: ToyState, action: Tensor, noise: Tensor) -> Step[ToyState]:
        first = state.t == 0
        swapped = noise[:, 0] < self.epsilon
        good = torch.where(first, (action[:, 0] == RIGHT) != swapped, state.good)
        paid = 1 + good.to(noise.dtype) + self.deviation * normal(noise[:, 0])
        reward = torch.where(state.t == 1, paid, 0)
        return Step(ToyState(state.t + 1, good, state.paid + reward), reward, torch.zeros_like(first))

    def observe(self, state: ToyState) -> Tensor:
        return self.critic_view(state)[:, None]

    def critic_view(self, state: ToyState) -> Tensor:
        """Start, the better state (or any, where hidden), the other one: one-hot."""
        place = torch.where(state.t == 0, 0, 1 if self.hidden else 2 - state.good.long())
        return torch.nn.functional.one_hot(place, 3).to(state.paid.dtype)

    def scripted_action(self, state: ToyState) -> Tensor:
        return torch.full_like(state.t, RIGHT)[:, None]


def start(noise: Tensor) -> ToyState:
    """B episodes before their first step."""
    t = torch.zeros(len(noise), dtype=torch.int64, device=noise.device)
    return ToyState(t, torch.zeros_like(t, dtype=torch.bool), noise.new_zeros(len(noise)))


# Hindsight in closed form: only the first action matters to anything later, and only by the outcome.

Toy = DelayedEffect | AmbiguousBandit
Exact = Callable[[Trajectory, Tensor], Tensor]


def good_given(game: Toy) -> Tensor:
    """[2,A] chance of the worse and of the better outcome, given the first action."""
    epsilon = game.epsilon if isinstance(game, AmbiguousBandit) else 0.0
    return torch.tensor([[epsilon, 1 - epsilon], [1 - epsilon, epsilon]])


def exact_state(game: Toy) -> Exact:
    """h of `HcaState`: the last state tells the outcome, h(c | s_0, s_T) ~ pi(c) P(outcome | c)."""

    def h(trajectory: Trajectory, u: Tensor) -> Tensor:
        T = len(trajectory.reward)
        out = trajectory.probs[:, None].repeat(1, T, 1, 1, 1)
        likely = good_given(game)[trajectory.state.good[-1].long()][:, None] * trajectory.probs[0]
        out[0, -1] = likely / likely.sum(-1, keepdim=True)
        return out

    return h


def exact_return(game: Toy) -> Exact:
    """h of `HcaReturn`: h(c | s_0, Z) ~ pi(c) sum_outcome P(outcome | c) N(Z; mean of the outcome, deviation)."""
    bandit = isinstance(game, AmbiguousBandit)
    mean = torch.tensor([1.0, 2.0] if bandit else [-1.0, 1.0])
    deviation = game.deviation if isinstance(game, AmbiguousBandit) else game.sigma * game.way**0.5

    def h(trajectory: Trajectory, z: Tensor) -> Tensor:
        density = (-0.5 * ((z[0] - mean) / deviation).square()).softmax(-1)  # [B,2]: common factors cancel in h
        likely = (density @ good_given(game))[:, None] * trajectory.probs[0]
        first = likely / likely.sum(-1, keepdim=True)
        return torch.cat((first[None], trajectory.probs[1:]))

    return h
