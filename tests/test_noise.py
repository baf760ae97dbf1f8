"""Noise is a table: uniform, the same whoever asks and in whatever batch, unrelated between neighbouring indices."""

from __future__ import annotations

import hashlib

import pytest
import torch
from torch import Tensor

from envs.noise import BITS, uniform

MASK = (1 << 64) - 1


def splitmix(x: int) -> int:
    """The SplitMix64 finaliser on Python's whole numbers (Steele, Lea & Flood 2014)."""
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def reference(purpose: str, seed: int, episode: int, k: int) -> float:
    """One number of the table, without torch and without 64-bit overflow."""
    golden = 0x9E3779B97F4A7C15
    start = int.from_bytes(hashlib.blake2b(purpose.encode(), digest_size=8).digest(), "little")
    key = splitmix(splitmix((splitmix((start + seed) & MASK) + episode * golden) & MASK))
    return (splitmix((key + (k + 1) * golden) & MASK) >> (64 - BITS)) * 2.0**-BITS


def test_equals_the_hash_in_exact_arithmetic() -> None:
    """Signed 64-bit tricks are the unsigned hash they stand for."""
    for purpose, seed, episode in [("rollout/reset", 0, 0), ("step", 7, 123), ("x", 2**62, 5), ("x", -3, 10**9)]:
        table = uniform(purpose, seed, episode, (5,), torch.float64)[0]
        assert table.tolist() == [reference(purpose, seed, episode, k) for k in range(5)]


def correlation(x: Tensor, y: Tensor) -> float:
    x, y = x.flatten() - x.mean(), y.flatten() - y.mean()
    return float((x * y).sum() / (x.norm() * y.norm()))


def test_moments_and_bins_are_uniform() -> None:
    """Mean 1/2, variance 1/12, fourth central moment 1/80, and 256 equally full bins, each within its interval."""
    u = uniform("moments", torch.arange(50), 0, (4000,), torch.float64).flatten()
    n = len(u)
    assert float(u.min()) >= 0 and float(u.max()) < 1
    for power, expected, spread in [(1, 0.0, 1 / 12), (2, 1 / 12, 1 / 180), (4, 1 / 80, 1 / 2304 - 1 / 6400)]:
        moment = float(((u - 0.5) ** power).mean())
        assert abs(moment - expected) < 5 * (spread / n) ** 0.5
    counts = torch.histc(u, 256, 0, 1)
    chi_square = float(((counts - n / 256) ** 2 / (n / 256)).sum())
    assert abs(chi_square - 255) < 5 * (2 * 255) ** 0.5
    low = (u * 2**BITS).long() & 255  # the low bits too, which a poor hash leaves patterned
    chi_square = float(((torch.bincount(low, minlength=256) - n / 256) ** 2 / (n / 256)).sum())
    assert abs(chi_square - 255) < 5 * (2 * 255) ** 0.5


def test_neighbours_are_unrelated() -> None:
    """No correlation between neighbouring seeds, episodes, indices or purposes: a sweep over seeds 0..9 is fair."""
    seeds = uniform("pairs", torch.arange(400), 0, (500,), torch.float64)
    episodes = uniform("pairs", 0, torch.arange(400), (500,), torch.float64)
    other = uniform("pairs2", torch.arange(400), 0, (500,), torch.float64)
    limit = 5 / (400 * 499) ** 0.5
    pairs = {
        "seed": (seeds[1:], seeds[:-1]),
        "episode": (episodes[1:], episodes[:-1]),
        "index": (seeds[:, 1:], seeds[:, :-1]),
        "purpose": (seeds, other),
        "seed and episode swapped": (seeds[1:], episodes[1:]),
    }
    for name, (x, y) in pairs.items():
        assert abs(correlation(x, y)) < limit, name
    assert correlation(seeds, seeds) == pytest.approx(1)  # the control: the measure sees what is there


def test_pairs_fill_the_square() -> None:
    """Neighbouring seeds fill 16 x 16 cells evenly: no relation beyond correlation either."""
    u = uniform("square", torch.arange(2000), 0, (100,), torch.float64)
    cell = (u[1:] * 16).long() * 16 + (u[:-1] * 16).long()
    counts = torch.bincount(cell.flatten(), minlength=256).double()
    mean = counts.sum() / 256
    assert abs(float(((counts - mean) ** 2 / mean).sum()) - 255) < 5 * (2 * 255) ** 0.5


def test_no_batch_layout_changes_a_number() -> None:
    """Row (seed, episode) is the same alone, in any batch, in any order, and when the horizon grows."""
    seeds, episodes = torch.tensor([3, 1, 3, 0]), torch.tensor([0, 5, 1, 5])
    table = uniform("layout", seeds, episodes, (7, 3))
    for b in range(4):
        assert torch.equal(table[b : b + 1], uniform("layout", int(seeds[b]), int(episodes[b]), (7, 3)))
    order = torch.tensor([2, 0, 3, 1])
    assert torch.equal(table[order], uniform("layout", seeds[order], episodes[order], (7, 3)))
    assert torch.equal(uniform("layout", seeds, episodes, (9, 3))[:, :7], table)
    assert torch.equal(uniform("layout", seeds, episodes, (21,)).reshape(4, 7, 3), table)
    assert torch.equal(uniform("layout", [3, 1, 3, 0], [0, 5, 1, 5], (7, 3)), table)


def test_both_precisions_meet_the_same_luck() -> None:
    """float32 holds all 24 bits: training and the float64 identities see one table."""
    single, double = (uniform("dtype", range(9), 2, (50,), dtype) for dtype in (torch.float32, torch.float64))
    assert single.dtype == torch.float32 and torch.equal(single.double(), double)


def test_purposes_and_repeats() -> None:
    """The same question has the same answer; another purpose another."""
    assert torch.equal(uniform("a", 0, 0, (64,)), uniform("a", 0, 0, (64,)))
    assert not torch.equal(uniform("a", 0, 0, (64,)), uniform("b", 0, 0, (64,)))


def test_games_without_noise_ask_for_none() -> None:
    """Empty tables keep their batch axis."""
    assert uniform("none", range(4), 0, (0,)).shape == (4, 0)
    assert uniform("none", 0, range(4), (7, 0)).shape == (4, 7, 0)
