"""The bar problem: a night is worth nothing empty, nothing crowded, and most with `capacity` guests (congestion)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from envs.base import Env, Episode, Step, real, whole

HOME = 0


class ElFarolState(NamedTuple):
    """Nobody has chosen yet, or the week is over."""

    over: Tensor  # [B] bool
    attendance: Tensor  # [B,K] guests of each night; 0 before the choice


def best_attendance(n_agents: int, n_nights: int, capacity: float) -> tuple[float, ...]:
    """The best G when exactly n = 0..n_agents agents go out.

    V_k(n) = max_x f(x) + V_{k-1}(n - x), f(x) = x exp(-x/c).
    """
    return tuple(float(value) for value in _attendance_table(n_agents, n_nights, capacity)[0])


@lru_cache(maxsize=64)
def _attendance_table(n_agents: int, n_nights: int, capacity: float) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """(V_K [N+1], choice [K, N+1]): the values and how many guests each night takes of the n still to be placed."""
    guests = np.arange(n_agents + 1)
    worth = guests * np.exp(-guests / capacity)
    value = np.where(guests == 0, 0.0, -np.inf)
    choices = np.zeros((n_nights, n_agents + 1), dtype=np.int64)
    left = guests[:, None] - guests[None, :]  # [n, x]: how many remain when x of n come
    for night in range(n_nights):
        options = np.where(left >= 0, worth[None, :] + value[np.maximum(left, 0)], -np.inf)
        choices[night] = options.argmax(axis=1)
        value = options.max(axis=1)
    return value, choices


def best_nights(n_agents: int, n_nights: int, capacity: float) -> tuple[int, ...]:
    """Guests of each night in a best week in which staying home is allowed."""
    value, choices = _attendance_table(n_agents, n_nights, capacity)
    n = int(value.argmax())
    guests = []
    for night in reversed(range(n_nights)):
        guests.append(int(choices[night, n]))
        n -= guests[-1]
    return tuple(guests)


@dataclass(frozen=True)
class ElFarol(Env[ElFarolState]):
    """N agents choose one of K nights or stay home, once; the team is paid G = sum_k x_k exp(-x_k / c).

    x_k is how many chose night k. Action 0 is home (the default), action k = 1..K night k. All act at once (T = 1) and
    see a constant 1. With default home the true credit is known:

        difference  D_i   = f(x) - f(x - 1) on i's own night, f(x) = x exp(-x/c); 0 at home
        Shapley     phi_i = f(x) / x = exp(-x/c): the guests of a night are alike and share what it pays

    `local_rewards` are these equal shares ("uniform division"): never negative, so selfish agents overcrowd.

    Isolates: congestion, purely spatial credit. D turns negative past the capacity; the team reward hides who was one
    too many.
    Grows harder with n_agents / (n_nights * capacity) (most must stay home) and with n_agents (dilution).

    Source: Wolpert & Tumer, "Optimal payoff functions for members of collectives" (2001), after Arthur (1994).

    Raises:
        KnobError: a knob outside its range.
    """

    n_agents: int = 60  # N >= 1
    n_nights: int = 7  # K >= 1
    capacity: float = 6.0  # c >= 0.1 guests: where a night pays most

    def __post_init__(self) -> None:
        whole(self, 1, None, "n_agents", "n_nights")
        real(self, 0.1, None, "capacity")

    @property
    def n_actions(self) -> int:
        return self.n_nights + 1

    @property
    def obs_size(self) -> int:
        return 1

    @property
    def critic_size(self) -> int:
        return 1

    @property
    def horizon(self) -> int:
        return 1

    @property
    def reset_noise_size(self) -> int:
        return 0

    @property
    def step_noise_size(self) -> int:
        return 0

    @property
    def default_action(self) -> int:
        return HOME

    @property
    def bounds(self) -> tuple[float, float]:
        """Observations are the constant 1."""
        return 0.0, 1.0

    @property
    def optimal_return(self) -> float:
        """The best attendance, by dynamic programming over nights."""
        return max(best_attendance(self.n_agents, self.n_nights, self.capacity))

    @property
    def random_return(self) -> float:
        """x_k is Binomial(N, p), p = 1/(K+1), and E[x z^x] = N p z (1 - p + p z)^(N-1) with z = exp(-1/c)."""
        p, z = 1 / self.n_actions, math.exp(-1 / self.capacity)
        return self.n_nights * self.n_agents * p * z * (1 - p + p * z) ** (self.n_agents - 1)

    def reset(self, noise: Tensor) -> ElFarolState:
        batch = len(noise)
        over = torch.zeros(batch, dtype=torch.bool, device=noise.device)
        return ElFarolState(over, noise.new_zeros(batch, self.n_nights))

    def step(self, state: ElFarolState, action: Tensor, noise: Tensor) -> Step[ElFarolState]:
        guests = self._guests(action, torch.ones_like(action, dtype=state.attendance.dtype))
        reward = torch.where(state.over, 0, self._worth(guests).sum(-1))
        attendance = torch.where(state.over[:, None], state.attendance, guests)
        over = torch.ones_like(state.over)
        return Step(ElFarolState(over, attendance), reward, over)

    def observe(self, state: ElFarolState) -> Tensor:
        return state.attendance.new_ones(len(state.over), self.n_agents, 1)

    def critic_view(self, state: ElFarolState) -> Tensor:
        return state.attendance.new_ones(len(state.over), 1)

    def local_rewards(self, state: ElFarolState, action: Tensor, noise: Tensor) -> Tensor:
        """[B,N]: the equal share exp(-x/c) of one's own night, 0 at home; they sum to the team reward."""
        shares = self._shares(action, state.attendance.dtype)
        return torch.where(state.over[:, None], 0, shares)

    def reward_with(self, state: ElFarolState, action: Tensor, noise: Tensor, copies: Tensor) -> Tensor:
        """[B]: G with copies [B,N] of each guest."""
        worth = self._worth(self._guests(action, copies.to(state.attendance.dtype))).sum(-1)
        return torch.where(state.over, 0, worth)

    def unit_differences(self, episode: Episode, baseline: Tensor) -> Tensor:
        """[1,B,N]: [f(x_a) - f(x_a - 1)] - [f(x_b + 1) - f(x_b)] for a move from night a to b; home adds nothing."""
        action = episode.action
        guests = self._guests(action, torch.ones_like(action, dtype=episode.state.attendance.dtype))
        other = baseline.to(action.device).expand_as(action)
        here, there = self._at(guests, action), self._at(guests, other)
        leaving = torch.where(action == HOME, 0, self._worth(here) - self._worth(here - 1))
        arriving = torch.where(other == HOME, 0, self._worth(there + 1) - self._worth(there))
        return torch.where(action == other, 0, leaving - arriving)

    def unit_shapley(self, episode: Episode, baseline: Tensor) -> Tensor:
        """[1,B,N]: exp(-x/c) on one's own night (symmetry and additivity over nights), 0 at home.

        Raises:
            ValueError: a baseline other than staying home.
        """
        if bool((baseline != HOME).any()):
            raise ValueError(
                f"baseline={baseline.tolist()} has no closed Shapley value in el_farol; it must be home ({HOME})"
            )
        return self._shares(episode.action, episode.state.attendance.dtype)

    def optimal_value(self, state: ElFarolState) -> Tensor:
        """[B]: the best week while it is still to come, then 0."""
        return torch.where(state.over, 0, torch.full_like(state.attendance[:, 0], self.optimal_return))

    def scripted_action(self, state: ElFarolState) -> Tensor:
        """[B,N]: the first agents fill the nights of a best week in order, the others stay home."""
        plan = [1 + night for night, guests in enumerate(self._best_nights) for _ in range(guests)]
        plan += [HOME] * (self.n_agents - len(plan))
        return torch.tensor(plan, device=state.over.device).expand(len(state.over), -1)

    def text(self, state: ElFarolState) -> str:
        """Guests of each night, those at home, and the reward."""
        if not bool(state.over[0]):
            return f"el_farol: {self.n_agents} agents choose among {self.n_nights} nights and home"
        guests = [int(x) for x in state.attendance[0]]
        reward = float(self._worth(state.attendance[0]).sum())
        nights = ", ".join(f"night {k}: {x}" for k, x in enumerate(guests, 1))
        return f"el_farol: guests of {nights}; at home: {self.n_agents - sum(guests)}; reward {reward:.4f}"

    def draw(self, state: ElFarolState) -> NDArray[np.uint8]:
        """A bar a night against the capacity line; it turns once its last guest takes more than they bring (D < 0)."""
        from envs.drawing import ALERT, BAD, CALM, HEADER, INK, QUIET, Canvas

        guests = [int(x) for x in state.attendance[0]]
        over = bool(state.over[0])
        canvas = Canvas(520, 340)
        reward = float(self._worth(state.attendance[0]).sum())
        home = f"{self.n_agents - sum(guests)} at home" if over else "nobody has chosen yet"
        note = f"{self.n_agents} agents, {home}; a night with x guests pays x exp(-x / {self.capacity:g})"
        canvas.header("el_farol", int(over), 1, reward if over else None, note)
        worth = self._worth(torch.arange(self.n_agents + 1, dtype=torch.float64)).tolist()
        left, right, floor = 12.0, canvas.width - 92.0, 276.0
        scale = (floor - HEADER - 34) / max(2 * self.capacity, *guests)
        pitch = (right - left) / self.n_nights
        every = max(1, math.ceil(20 / pitch))  # narrow bars: label some nights only
        for night, x in enumerate(guests):
            bar, height = left + (night + 0.1) * pitch, x * scale
            middle = bar + 0.4 * pitch
            if x:
                fill = BAD if worth[x] < worth[x - 1] else CALM
                canvas.rectangle(bar, floor - height, 0.8 * pitch, height, fill)
            if night % every == 0:
                canvas.text(middle, floor - height - 4, x if over else "", 13, INK, "ms")
                canvas.text(middle, floor + 18, night + 1, 13, QUIET, "ms")
        canvas.line([(left, floor), (right, floor)], QUIET)
        level = floor - self.capacity * scale
        canvas.line([(left, level), (right, level)], ALERT)
        canvas.text(right + 4, level, f"capacity {self.capacity:g}", 12, INK, "lm")
        canvas.text(right + 4, floor + 18, "night", 13, QUIET, "ls")
        canvas.legend(320, [(CALM, "guests of a night"), (BAD, "crowded: one guest less would pay more")])
        return canvas.array()

    @property
    def _best_nights(self) -> tuple[int, ...]:
        return best_nights(self.n_agents, self.n_nights, self.capacity)

    def _worth(self, guests: Tensor) -> Tensor:
        """f(x) = x exp(-x/c)."""
        return guests * torch.exp(-guests / self.capacity)

    def _guests(self, action: Tensor, copies: Tensor) -> Tensor:
        """[...,K]: x_k, each agent counted `copies` times."""
        counts = copies.new_zeros(*action.shape[:-1], self.n_actions)
        return counts.scatter_add(-1, action, copies)[..., 1:]

    def _at(self, guests: Tensor, action: Tensor) -> Tensor:
        """[...,N]: how many are on the night that each agent names (0 for home)."""
        return torch.nn.functional.pad(guests, (1, 0)).gather(-1, action)

    def _shares(self, action: Tensor, dtype: torch.dtype) -> Tensor:
        guests = self._guests(action, torch.ones_like(action, dtype=dtype))
        return torch.where(action == HOME, 0, torch.exp(-self._at(guests, action) / self.capacity))
