"""Who deserves what of a joint result? The one division that is efficient, symmetric, additive and pays idlers nothing.

    phi_i = sum_{C not containing i} |C|! (n - |C| - 1)! / n! (v(C + i) - v(C))            (Shapley 1953)
          = E over orders of the players of v(those before i, and i) - v(those before i)   (Castro et al. 2009)

The first line asks about all 2^n coalitions, the second may be sampled. Everything is batched over R rows: independent
games of n players each. Whoever calls brings the worth of coalitions, and keeps R small enough for the memory there is.

Sources: Shapley, "A value for n-person games" (1953); Castro, Gomez & Tejada, "Polynomial calculation of the Shapley
value based on sampling" (2009); antithetic orders: Mitchell, Cooper, Frank & Holmes, "Sampling permutations for
Shapley value estimation" (2022).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import comb
from typing import NamedTuple

import torch
from torch import Tensor

from marl.oracle.moments import moments_of

EXACT = 12  # players up to whom all 2^n coalitions are asked about

Worth = Callable[[Tensor], Tensor]
"""Who is present, [R,K,n] bool (K coalitions a row) -> what each is worth, [R,K]."""


class Shares(NamedTuple):
    """A division, and how far it may be off."""

    values: Tensor  # [R,n]
    error: Tensor  # [R,n] standard errors, 0 where exact
    how: str  # in words: by all coalitions, or by how many orders


def exact(
    worth: Worth, rows: int, players: int, at_once: int = 1 << EXACT, device: torch.device | str = "cpu"
) -> Shares:
    """phi of n >= 1 players by all 2^n coalitions, `at_once` of each row at a time; sums are taken in float64.

    Cost: 2^n answers a row. A player who never changes anything gets exactly 0.
    """
    numbers = torch.arange(1 << players, device=device)
    value = torch.cat([_asked(worth, rows, players, some) for some in numbers.split(max(1, at_once))], 1)
    table = value.double().unflatten(1, (2,) * players)  # axis 1 + i: without i, with i
    half = numbers[: 1 << (players - 1)]  # coalitions of the other n - 1 players
    size = sum(((half >> bit & 1) for bit in range(players - 1)), torch.zeros_like(half))
    ways = [1 / (players * comb(players - 1, k)) for k in range(players)]  # k! (n - k - 1)! / n!
    weight = torch.tensor(ways, dtype=torch.float64, device=device)[size]
    added = [(table.select(1 + i, 1) - table.select(1 + i, 0)).reshape(rows, -1) @ weight for i in range(players)]
    values = torch.stack(added, 1).to(value.dtype)
    return Shares(values, torch.zeros_like(values), f"all {1 << players} coalitions")


def _asked(worth: Worth, rows: int, players: int, numbers: Tensor) -> Tensor:
    """[R,K]: coalition number c holds player i where bit n - 1 - i of c is set."""
    bits = torch.arange(players - 1, -1, -1, device=numbers.device)
    present = (numbers[:, None] >> bits & 1).bool()
    return worth(present.expand(rows, -1, -1))


def gains(worth: Worth, order: Tensor) -> Tensor:
    """[R,n]: what each player adds on joining in the order [R,n] (order[r, 0] is first). Cost: n + 1 answers a row."""
    rank = order.argsort(-1)
    n = order.shape[-1]
    joined = torch.arange(n + 1, device=order.device)[:, None]
    return worth(rank[:, None] < joined).diff(dim=1).gather(1, rank)


def antithetic_gains(worth: Worth, order: Tensor) -> Tensor:
    """[R,n]: mean of `gains` in an order and in its reverse, which share nobody's and everybody's worth.

    Cost: 2n answers a row (2 for n = 1).
    """
    rank, n = order.argsort(-1), order.shape[-1]
    joined = torch.arange(n + 1, device=order.device)[:, None]
    backward = (n - 1 - rank)[:, None] < joined[1:n]
    value = worth(torch.cat((rank[:, None] < joined, backward), 1))
    forth, inner = value.split((n + 1, n - 1), 1)
    back = torch.cat((forth[:, :1], inner, forth[:, -1:]), 1)
    return (forth.diff(dim=1).gather(1, rank) + back.diff(dim=1).gather(1, n - 1 - rank)) / 2


def permutations(worth: Worth, orders: Iterable[Tensor]) -> Shares:
    """Means of `antithetic_gains` over orders [R,n] drawn uniformly, with standard errors over the pairs.

    Unbiased for any number of orders; raises ValueError for fewer than 2, which have no standard error.
    """
    moments = None
    for order in orders:
        found = antithetic_gains(worth, order)
        moments = (moments_of(found) if moments is None else moments).add(found)
    if moments is None or moments.n < 2:
        raise ValueError(f"orders={0 if moments is None else 1} is not allowed; it must be 2 or more")
    return Shares(moments.mean, moments.error, f"{2 * moments.n} orders in {moments.n} antithetic pairs")


def shapley(
    worth: Worth,
    rows: int,
    players: int,
    orders: Iterable[Tensor],
    at_once: int = 1 << EXACT,
    device: torch.device | str = "cpu",
) -> Shares:
    """Exact for up to EXACT players, else by the given orders; `how` says which."""
    if players > EXACT:
        return permutations(worth, orders)
    return exact(worth, rows, players, at_once, device)
