"""A game is a structural causal model: pure batched functions of (state, joint action, exogenous noise).

Because nothing else moves a game, "what if agent i had done c at step t?" has one answer: call `step` again with one
action changed and the noise kept. Every counterfactual, replay and oracle of this project rests on that sentence.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Generic, NamedTuple, NoReturn, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from envs.noise import Atoms

StateT = TypeVar("StateT", bound=tuple[Any, ...])
"""A game's state: a NamedTuple of tensors, each with the batch axis first."""


class KnobError(ValueError):
    """A game was asked for with a knob outside its range; the message names the knob, its value and what is allowed."""


class Step(NamedTuple, Generic[StateT]):
    """What one step gives back."""

    state: StateT  # the next state, [B, ...] in every field
    reward: Tensor  # [B] the team reward of this step
    done: Tensor  # [B] bool: the episode has really ended (reaching the horizon is not an end)


class Episode(Protocol):
    """What a closed form of the truth reads: any record with these fields, time first."""

    @property
    def state(self) -> Any: ...  # [T, B, ...] the state each step began in
    @property
    def action(self) -> Tensor: ...  # [T, B, N] as recorded at all T steps, those after an early end included
    @property
    def noise(self) -> Tensor: ...  # [T, B, step_noise_size]
    @property
    def alive(self) -> Tensor: ...  # [T, B] bool: the episode had not ended before this step


class Env(ABC, Generic[StateT]):
    """The contract of a game. Subclasses are frozen dataclasses whose fields are the knobs (each with a default).

    Every function is pure and batched: inputs are never changed, equal inputs give bitwise equal outputs, row b never
    depends on another row. Device and dtype follow the state (float32 to train, float64 for identities). A step from
    a state in which the episode has ended pays 0 and reports done again; time and exogenous draws go on, so that an
    action plan is defined at all `horizon` steps.
    """

    @property
    @abstractmethod
    def n_agents(self) -> int:
        """N."""

    @property
    @abstractmethod
    def n_actions(self) -> int:
        """A: discrete actions of one agent."""

    @property
    @abstractmethod
    def obs_size(self) -> int:
        """O: features that one agent sees."""

    @property
    @abstractmethod
    def critic_size(self) -> int:
        """Features of `critic_view`."""

    @property
    @abstractmethod
    def horizon(self) -> int:
        """T: no episode is longer."""

    @property
    @abstractmethod
    def reset_noise_size(self) -> int:
        """How many uniform numbers `reset` reads."""

    @property
    @abstractmethod
    def step_noise_size(self) -> int:
        """How many uniform numbers one `step` reads (0 for a deterministic game)."""

    @property
    @abstractmethod
    def default_action(self) -> int | tuple[int, ...]:
        """What "agent i had done nothing" means here: one action, or one an agent."""

    @property
    def optimal_return(self) -> float | None:
        """Expected return of the best joint policy that sees the full state; None where unknown."""
        return None

    @property
    def reachable_return(self) -> float | None:
        """Best expected return given what agents observe, where that is lower and known; else None."""
        return None

    @property
    def random_return(self) -> float | None:
        """Expected return of uniformly random (legal) actions; None where unknown."""
        return None

    @abstractmethod
    def reset(self, noise: Tensor) -> StateT:
        """The first state of B episodes. noise [B, reset_noise_size] in [0,1)."""

    @abstractmethod
    def step(self, state: StateT, action: Tensor, noise: Tensor) -> Step[StateT]:
        """One step of B episodes. action [B,N] int64; noise [B, step_noise_size] in [0,1)."""

    @abstractmethod
    def observe(self, state: StateT) -> Tensor:
        """[B,N,O]: what each agent sees."""

    @abstractmethod
    def critic_view(self, state: StateT) -> Tensor:
        """[B, critic_size]: all that a central critic may see; also the face's `state()`."""


@runtime_checkable
class HasActionMask(Protocol):
    """Some actions are illegal in some states."""

    def action_mask(self, state: Any) -> Tensor:
        """[B,N,A] bool: True where the action is legal; at least one an agent."""


@runtime_checkable
class HasLocalRewards(Protocol):
    """The field gives this game natural rewards of single agents."""

    def local_rewards(self, state: Any, action: Tensor, noise: Tensor) -> Tensor:
        """[B,N]."""


@runtime_checkable
class HasRewardWith(Protocol):
    """Agents can be removed or cloned for one step's reward."""

    def reward_with(self, state: Any, action: Tensor, noise: Tensor, copies: Tensor) -> Tensor:
        """[B]: the reward with copies [B,N] of each agent acting (0 removes, 1 keeps, 1+n clones)."""


@runtime_checkable
class HasStepWith(Protocol):
    """Agents can be removed or cloned for whole episodes."""

    def step_with(self, state: Any, action: Tensor, noise: Tensor, copies: Tensor) -> Step[Any]:
        """`step` with copies [B,N] of each agent acting alike (0 removes, 1 keeps, 1+n clones)."""


@runtime_checkable
class HasUnitDifferences(Protocol):
    """The frozen unit difference (O8) is known in closed form."""

    def unit_differences(self, episode: Episode, baseline: Tensor) -> Tensor:
        """[T,B,N]: G_t - G_t[a_it <- baseline_i], every other recorded action kept; baseline [N] int.

        Raises ValueError naming a baseline for which no closed form holds; the caller then simulates.
        """


@runtime_checkable
class HasUnitShapley(Protocol):
    """The Shapley value over (agent, step) units is known in closed form."""

    def unit_shapley(self, episode: Episode, baseline: Tensor) -> Tensor:
        """[T,B,N]: Shapley value of v(C) = return with the units in C as recorded and all others on the baseline."""


@runtime_checkable
class HasOptimalValue(Protocol):
    """The best expected return from a state is known."""

    def optimal_value(self, state: Any) -> Tensor:
        """[B]."""


@runtime_checkable
class HasFiniteNoise(Protocol):
    """The luck of a reset and of a step has finitely many cases (`envs.noise.atoms`): exact oracles enumerate them.

    A game without any noise need not say so.
    """

    def reset_atoms(self) -> Atoms:
        """All that `reset` can meet."""

    def step_atoms(self) -> Atoms:
        """All that one `step` can meet, from whatever state (cases that only some states tell apart included)."""


@runtime_checkable
class HasLightCone(Protocol):
    """The rules tell which rewards an action can reach at all."""

    def light_cone(self) -> Tensor:
        """[T,T,N] bool: cone[t,k,i] is False only where the action of agent i at step t can never move r_k.

        Not through the state, and not through what others see of it and then do.
        """


@runtime_checkable
class HasTimeLimit(Protocol):
    """Episodes can be cut short from outside; their value does not end there, so critics bootstrap."""

    def truncated(self, state: Any) -> Tensor:
        """[B] bool: this state was reached by a time limit, not by an end."""


@runtime_checkable
class MayRefuseBranches(Protocol):
    """A game from outside, stepped one episode at a time, that perhaps cannot be taken back."""

    @property
    def counterfactuals(self) -> str | None:
        """How the game is taken back; None where it cannot be."""

    @property
    def why(self) -> str:
        """A sentence on why so."""


@runtime_checkable
class HasScriptedPolicy(Protocol):
    """A hand-written policy attains `reachable_return` (`optimal_return` where none is given), or is good at least."""

    def scripted_action(self, state: Any) -> Tensor:
        """[B,N] int64; reads of the state only what each agent can observe, unless the game says otherwise."""


@runtime_checkable
class HasSafeAction(Protocol):
    """The game knows the action that is right when it matters: a privileged baseline."""

    @property
    def safe_action(self) -> tuple[int, ...]:
        """One action an agent."""


@runtime_checkable
class Drawable(Protocol):
    """A person can see what happens."""

    def text(self, state: Any) -> str:
        """A few lines that describe row 0."""

    def draw(self, state: Any) -> Any:
        """Row 0 as a picture, uint8 [height, width, 3] numpy array."""


CAPABILITIES: dict[str, type] = {
    "action_mask": HasActionMask,
    "local_rewards": HasLocalRewards,
    "reward_with": HasRewardWith,
    "step_with": HasStepWith,
    "unit_differences": HasUnitDifferences,
    "unit_shapley": HasUnitShapley,
    "optimal_value": HasOptimalValue,
    "step_atoms": HasFiniteNoise,
    "light_cone": HasLightCone,
    "truncated": HasTimeLimit,
    "scripted_action": HasScriptedPolicy,
    "safe_action": HasSafeAction,
    "draw": Drawable,
}


def capabilities(env: Env[Any]) -> tuple[str, ...]:
    """Names of the optional parts of the contract that this game has."""
    return tuple(name for name, protocol in CAPABILITIES.items() if isinstance(env, protocol))


def default_actions(env: Env[Any], device: torch.device | str = "cpu") -> Tensor:
    """[N] int64: the declared default action of each agent."""
    default = env.default_action
    actions = (default,) * env.n_agents if isinstance(default, int) else default
    return torch.tensor(actions, dtype=torch.int64, device=device)


def refuse_knob(env: object, knob: str, allowed: str) -> NoReturn:
    """Raise KnobError: 'WalkingRobot: delay=90 is not allowed; it must be ...'."""
    raise KnobError(f"{type(env).__name__}: {knob}={getattr(env, knob)!r} is not allowed; it must be {allowed}")


def whole(env: object, low: int, high: int | None = None, *knobs: str) -> None:
    """Refuse each named knob that is not a whole number in low..high (None: no upper end)."""
    allowed = f"a whole number, {low} or more" if high is None else f"a whole number in {low}..{high}"
    for knob in knobs:
        value = getattr(env, knob)
        if isinstance(value, bool) or not isinstance(value, int) or value < low or (high is not None and value > high):
            refuse_knob(env, knob, allowed)


def real(env: object, low: float, high: float | None = None, *knobs: str) -> None:
    """Refuse each named knob that is not a finite number in low..high (None: no upper end)."""
    allowed = f"a number, {low} or more" if high is None else f"a number in {low}..{high}"
    for knob in knobs:
        value = getattr(env, knob)
        ok = isinstance(value, int | float) and not isinstance(value, bool) and low <= value < float("inf")
        if not ok or (high is not None and value > high):
            refuse_knob(env, knob, allowed)


def choice(env: object, allowed: Sequence[str], *knobs: str) -> None:
    """Refuse each named knob that is not one of the allowed words."""
    for knob in knobs:
        if getattr(env, knob) not in allowed:
            refuse_knob(env, knob, "one of " + ", ".join(allowed))


def map_state(function: Callable[..., Tensor], *states: StateT) -> StateT:
    """Apply `function` to corresponding fields of states of one type."""
    return type(states[0])(*(function(*fields) for fields in zip(*states, strict=True)))


def take(state: StateT, index: Tensor) -> StateT:
    """The rows `index` (int or bool) of a state."""
    return map_state(lambda x: x[index], state)


def repeat(state: StateT, times: int) -> StateT:
    """Every row `times` times in a row: [B, ...] -> [B * times, ...]."""
    return map_state(lambda x: x.repeat_interleave(times, dim=0), state)


def stack(states: Sequence[StateT]) -> StateT:
    """T states [B, ...] as one [T, B, ...]."""
    return map_state(lambda *x: torch.stack(x), *states)


def concatenate(states: Sequence[StateT]) -> StateT:
    """States one after the other along the batch axis."""
    return map_state(lambda *x: torch.cat(x), *states)


def flatten(state: StateT) -> StateT:
    """[T, B, ...] -> [T * B, ...]."""
    return map_state(lambda x: x.flatten(0, 1), state)
