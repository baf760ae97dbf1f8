"""A mean over replays and how far it may be off, kept up to date without keeping the replays."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Moments(NamedTuple):
    """Running mean and sum of squared distances from it, elementwise (Welford 1962)."""

    n: int
    mean: Tensor
    square: Tensor

    def add(self, x: Tensor) -> Moments:
        """With one more sample."""
        gap = x - self.mean
        mean = self.mean + gap / (self.n + 1)
        return Moments(self.n + 1, mean, self.square + gap * (x - mean))

    @property
    def error(self) -> Tensor:
        """Standard error of the mean: sqrt(sum (x - mean)^2 / (n (n - 1))); needs n >= 2 independent samples."""
        return (self.square / (self.n * (self.n - 1))).sqrt()


def moments_of(like: Tensor) -> Moments:
    """Of no samples yet, shaped like `like`."""
    return Moments(0, torch.zeros_like(like), torch.zeros_like(like))
