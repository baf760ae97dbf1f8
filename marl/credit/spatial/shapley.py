"""Shares that add up: an agent's credit is what it adds on average when the team is put together in random order."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from envs.noise import uniform
from marl.credit.base import ChainError, Context, Credit, Signal, check_choice
from marl.credit.counterfactual import baseline_actions, episode_names
from marl.rollout import CACHE_ROWS, sample
from marl.types import Trajectory

EXACT = 8  # agents up to which all 2^N coalitions are asked by default
ROOM = 1 << 23  # actions of joint actions that are held at once
Worth = Callable[[slice, Tensor], Tensor]  # (K of the steps, joint actions [K,B,V,N] there) -> values [K,B,V]


class Shapley(Credit):
    """phi_i = sum over C without i of |C|! (N-|C|-1)!/N! (v(C+i) - v(C)) (Shapley 1953) of one step's reward.

    absent="default": v(C) = r(s, (a_C, default_-C), xi).
    absent="policy": v(C) = E_{a' ~ pi} r(s, (a_C, a'_-C), xi), estimated from one draw of a' an order (one draw for all
    coalitions where they are all asked).
    The shares sum to r(s, a, xi) - v({}). orders=None: exact over 2^N coalitions up to N = 8, beyond it 16 random
    orders of the agents; a number: so many random orders (Castro et al. 2009), unbiased.
    """

    signals = {Signal.RAW: Signal.AGENT}
    aligned, efficient = False, True
    needs = ("simulator", "policy")
    cost = "B T 2^N (exact), M B T (N+1) (M orders)"

    def __init__(self, context: Context, absent: str = "default", orders: int | None = None) -> None:
        super().__init__(context)
        check_choice(self, "absent", absent, ("default", "policy"))
        self.absent, self.default = absent, baseline_actions(self, context, "default")
        self.orders = orders_for(self, context, orders)

    def forward(self, trajectory: Trajectory, signal: Tensor) -> Tensor:
        """[T,B] -> [T,B,N]."""
        simulator, B = self.context.simulator, trajectory.action.shape[1]

        def worth(steps: slice, joint: Tensor) -> Tensor:
            alive = trajectory.alive[steps].flatten()
            out = trajectory.reward.new_zeros(len(alive), joint.shape[2])
            for cells in alive.nonzero()[:, 0].split(CACHE_ROWS):
                out[cells] = simulator.paid(trajectory, cells + steps.start * B, joint.flatten(0, 1)[cells])
            return out.unflatten(0, (-1, B))

        return shares(trajectory, worth, absentees(self.absent, self.default, trajectory), self.orders)


def orders_for(owner: Credit, context: Context, orders: int | None) -> int | None:
    """How many random orders are drawn; None: all coalitions are asked. Raises ChainError for less than one."""
    if orders is not None and orders < 1:
        raise ChainError(f"{type(owner).__name__}: orders={orders!r} is not allowed; it must be 1 or more")
    return 16 if orders is None and context.game.n_agents > EXACT else orders


def absentees(absent: str, default: Tensor, trajectory: Trajectory) -> Callable[[int], Tensor]:
    """draw k -> [T,B,N] what absent agents do: their default action, or an action of their policy."""
    if absent == "default":
        return lambda k: default.expand(trajectory.action.shape)
    return lambda k: sample(trajectory.probs, luck(trajectory, "absent", k))


def luck(trajectory: Trajectory, what: str, draw: int) -> Tensor:
    """[T,B,N] numbers named by the episode, so that asking twice gives the same answer."""
    T, _, N = trajectory.action.shape
    about = (f"shapley/{what}", draw, episode_names(trajectory), (T, N), trajectory.reward.dtype)
    return uniform(*about, trajectory.reward.device).transpose(0, 1)


def shares(trajectory: Trajectory, worth: Worth, absent: Callable[[int], Tensor], orders: int | None) -> Tensor:
    """Shapley shares [T,B,N] of a value of joint actions, exact (orders=None) or over random orders."""
    T, B, N = trajectory.action.shape
    out = torch.zeros_like(trajectory.probs[..., 0])
    count = torch.arange(N + 1, device=out.device)[:, None]
    member, weight = coalitions(N, out.device) if orders is None else (count, count)
    few = max(1, ROOM // (B * len(member) * N))
    for k in range(1 if orders is None else orders):
        instead, place = absent(k), luck(trajectory, "order", k).argsort(-1).argsort(-1)
        for t in range(0, T, few):
            now = slice(t, min(T, t + few))
            # By orders: the first v agents of the order are present, v = 0 .. N.
            present = member if orders is None else place[now][:, :, None] < count
            value = worth(now, torch.where(present, trajectory.action[now][:, :, None], instead[now][:, :, None]))
            if orders is None:
                # Weights sum to 0 up to rounding; where nobody matters the shares must be 0, not rounding scaled up.
                out[now] = (value - value[..., :1]) @ weight.to(value)
            else:
                out[now] += (value[..., 1:] - value[..., :-1]).gather(-1, place[now]) / orders
    return out


def coalitions(n: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(member [2^n, n] bool, weight [2^n, n]): phi = v @ weight, each coalition with i counted up, without i down."""
    member = (torch.arange(2**n, device=device)[:, None] >> torch.arange(n, device=device)) & 1 == 1
    size = member.sum(1, keepdim=True)
    with_i = [0.0] + [1 / (n * math.comb(n - 1, s - 1)) for s in range(1, n + 1)]
    without_i = [1 / (n * math.comb(n - 1, s)) for s in range(n)] + [0.0]
    up, down = (torch.tensor(w, dtype=torch.float64, device=device)[size] for w in (with_i, without_i))
    return member, torch.where(member, up, -down)
