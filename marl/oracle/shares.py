"""Who deserves what of a step's reward, and which (agent, step) of a whole return: Shapley values by replays.

Absent players do what the baseline says; the noise is the recorded one, so that an answer by all coalitions has no
error. Orders are sampled where players are too many for that.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from marl.oracle.sampled import Progress, numbered, order_keys, tell
from marl.oracle.shapley import EXACT, Shares, Worth, exact, permutations
from marl.rollout import Simulator
from marl.types import Trajectory


def reward_shapley(
    simulator: Simulator,
    trajectory: Trajectory,
    baseline: Tensor,
    orders: int = 0,
    seed: int = 0,
    progress: Progress | None = None,
) -> Shares:
    """O1 Shapley of v(C) = rho(s_t, a_C and the baseline elsewhere, xi_t); [T,B,N] each.

    By all coalitions (orders = 0; cost: at most B T 2^N steps), or by antithetic pairs of orders (2 N B T a pair).
    """
    T, B, N = trajectory.action.shape
    action = trajectory.action.flatten(0, 1)
    values = trajectory.reward.new_zeros(T * B, N)
    error, how = torch.zeros_like(values), "no live step"
    parts = simulator.live_cells(trajectory, 2 * N if orders else 1 << N)
    for done, cells in enumerate(parts, 1):

        def worth(present: Tensor, cells: Tensor = cells) -> Tensor:
            return simulator.paid(trajectory, cells, torch.where(present, action[cells][:, None], baseline))

        found = _divided(worth, cells, N, orders, seed)
        values[cells], error[cells], how = found
        tell(progress, done, len(parts))
    return Shares(values.reshape(T, B, N), error.reshape(T, B, N), how)


def _divided(worth: Worth, rows: Tensor, players: int, orders: int, seed: int) -> Shares:
    """Exactly if `orders` is 0, else by that many pairs of orders, drawn for each of the numbered rows [R]."""
    if not orders:
        return exact(worth, len(rows), players, device=rows.device)
    return permutations(worth, (order_keys(seed, numbered(rows, m), (players,)).argsort(-1) for m in range(orders)))


def unit_shapley(
    simulator: Simulator,
    trajectory: Trajectory,
    baseline: Tensor,
    orders: int,
    seed: int = 0,
    limit: int = EXACT,
    progress: Progress | None = None,
) -> Shares:
    """O8 Shapley of v(C) = return with the units (t,i) in C as recorded and all others on the baseline, [T,B,N].

    Units that are on the baseline anyway change nothing and get 0. An episode with u <= limit others is divided
    exactly (cost: at most 2^u T steps), one with more by `orders` antithetic pairs of orders (2 u T steps a pair).
    Units after an early end are players too: in another plan the episode may go on.
    """
    T, B, N = trajectory.action.shape
    plan = trajectory.action.transpose(0, 1).flatten(1)  # [B, T N]
    idle = baseline.repeat(T)
    differs = plan != idle
    values = trajectory.reward.new_zeros(B, T * N)
    error = torch.zeros_like(values)
    groups = list(_alike(differs.sum(1), limit, simulator.memory))
    for done, (u, b) in enumerate(groups, 1):
        units = differs[b].nonzero()[:, 1].reshape(len(b), u)
        acts = plan[b].gather(1, units)

        def worth(present: Tensor, b: Tensor = b, units: Tensor = units, acts: Tensor = acts) -> Tensor:
            return _plans_worth(simulator, trajectory, b, idle, acts, units, present)

        found = _divided(worth, b, u, 0 if u <= limit else orders, seed)
        values[b] = values[b].scatter(1, units, found.values)
        error[b] = error[b].scatter(1, units, found.error)
        tell(progress, done, len(groups))
    exactly, sampled = int((differs.sum(1) <= limit).sum()), f"{2 * orders} orders in {orders} antithetic pairs"
    how = f"all coalitions in {exactly} of {B} episodes, {sampled} in the others"
    how = sampled if not exactly else "all coalitions" if exactly == B else how
    return Shares(values.reshape(B, T, N).transpose(0, 1), error.reshape(B, T, N).transpose(0, 1), how)


def _alike(players: Tensor, limit: int, memory: int) -> Iterator[tuple[int, Tensor]]:
    """(u, rows with u players), u >= 1, so many rows at a time as their coalitions, a byte a player, fit in memory."""
    for u in players.unique().tolist():
        if u:
            coalitions = 1 << u if u <= limit else 2 * u
            for rows in (players == u).nonzero()[:, 0].split(max(1, memory // (4 * coalitions * (u + 8)))):
                yield u, rows


def _plans_worth(
    simulator: Simulator, trajectory: Trajectory, b: Tensor, idle: Tensor, acts: Tensor, units: Tensor, present: Tensor
) -> Tensor:
    """[R,K]: returns of episodes b [R] in which, of the units [R,u] that did acts [R,u], only present [R,K,u] act."""
    R, K, _ = present.shape
    T, _, N = trajectory.action.shape
    out = trajectory.reward.new_zeros(R * K)
    number = torch.arange(R * K, device=b.device)
    for part in number.split(simulator.at_once(trajectory, 4 * T * N * idle.element_size())):
        r = part // K
        doing = torch.where(present[r, part % K], acts[r], idle[units[r]])
        plans = idle.repeat(len(r), 1).scatter(1, units[r], doing).reshape(-1, T, N).transpose(0, 1)
        out[part] = simulator.lives(trajectory, b[r], plans)
    return out.reshape(R, K)
