"""Exogenous noise is a table looked up by (purpose, seed, episode, index), so a counterfactual meets the same luck.

A stream of random numbers remembers how often it was asked; a branch that asks once more shifts everything behind it.
Here every number is a hash of its indices. A counterfactual that changes one action keeps every cue, apple and
disturbance; no worker, batch layout or neighbouring seed changes any of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor


class Atoms(NamedTuple):
    """All the luck there is, where a game tells only finitely many cases apart: one noise vector a case."""

    noise: Tensor  # [K, size] float64 in [0,1): a representative of each case
    probability: Tensor  # [K] float64, sums to 1


MOST_ATOMS = 1 << 24  # numbers in a list of cases: 128 MiB
BITS = 24  # a float32 holds 24 bits exactly, so float32 and float64 runs meet equal noise


def _signed(value: int) -> int:
    """The 64-bit two's complement reading of `value` (torch has no unsigned 64-bit arithmetic)."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >= 1 << 63 else value


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_FIRST = _signed(0xBF58476D1CE4E5B9)
_SECOND = _signed(0x94D049BB133111EB)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical (unsigned) right shift of int64."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    """The SplitMix64 finaliser (Steele, Lea & Flood 2014): every input bit moves every output bit."""
    x = (x ^ _shift(x, 30)) * _FIRST
    x = (x ^ _shift(x, 27)) * _SECOND
    return x ^ _shift(x, 31)


@lru_cache(maxsize=256)
def _purpose_key(purpose: str) -> int:
    return _signed(int.from_bytes(hashlib.blake2b(purpose.encode(), digest_size=8).digest(), "little"))


@lru_cache(maxsize=256)
def _counter(size: int, device: torch.device) -> Tensor:
    return torch.arange(1, size + 1, dtype=torch.int64, device=device) * _GOLDEN


def uniform(
    purpose: str,
    seed: int | Sequence[int] | Tensor,
    episode: int | Sequence[int] | Tensor,
    shape: Sequence[int],
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Numbers in [0,1), one table for each (purpose, seed, episode).

    u[b, k] = top 24 bits of mix(mix(mix(mix(purpose + seed_b) + episode_b * golden)) + (k + 1) * golden), after
    SplitMix64.

    Args:
        purpose: what the numbers are for ("init", "reset", "step", "policy", ...); different names never share numbers.
        seed, episode: an int for all rows, or one a row [B].
        shape: of one row's table. A longer first axis keeps the numbers of a shorter one, so a horizon can grow.
    Returns:
        [B, *shape] (B = 1 when both `seed` and `episode` are ints), multiples of 2**-24.
    """
    seeds = torch.as_tensor(seed, dtype=torch.int64, device=device).reshape(-1)
    episodes = torch.as_tensor(episode, dtype=torch.int64, device=device).reshape(-1)
    key = _mix(_mix(_mix(seeds + _purpose_key(purpose)) + episodes * _GOLDEN))
    table = _mix(key[:, None] + _counter(prod(shape), key.device))
    return (_shift(table, 64 - BITS).to(dtype) * 2.0**-BITS).reshape(len(table), *shape)


def atoms(*cuts: Sequence[float]) -> Atoms:
    """The cases of independent uniform numbers, number j being told apart only at the points cuts[j] of (0,1).

    K = prod_j (len(cuts[j]) + 1); the representative of a cell is its middle, its probability its width.
    Example: atoms([0.2], [1/3, 2/3]) has 6 cases of a pair of numbers; atoms() is the one case of no noise.
    Raises ValueError where the list would be too long (`few_enough`).
    """
    few_enough(prod(len(set(points)) + 1 for points in cuts), len(cuts))
    middles, widths = [], []
    for points in cuts:
        edges = torch.tensor([0.0, *sorted(set(points)), 1.0], dtype=torch.float64)
        middles.append((edges[1:] + edges[:-1]) / 2)
        widths.append(edges[1:] - edges[:-1])
    if not cuts:
        return Atoms(torch.zeros(1, 0, dtype=torch.float64), torch.ones(1, dtype=torch.float64))
    noise, width = (
        torch.stack([x.reshape(-1) for x in torch.meshgrid(*columns, indexing="ij")], dim=-1)
        for columns in (middles, widths)
    )
    return Atoms(noise, width.prod(-1))


def few_enough(cases: int, size: int) -> None:
    """Raise ValueError where `cases` vectors of `size` numbers are too many to list."""
    if cases * size > MOST_ATOMS:
        shown = f"{cases:,}" if cases < 10**12 else f"about 10^{len(str(cases)) - 1}"
        raise ValueError(f"its luck has {shown} cases of {size} numbers; {MOST_ATOMS:,} numbers at most are listed")
