"""Adam's steps on numbers that lie together, seed by seed, and the way from torch's optimiser and back."""

# mypy: allow-untyped-defs

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from marl.fused.blocks import inner


@inner
def adam_step(parameters, gradient, mean, square, rate, fade, lift, fresh, fresh2, epsilon):
    """One step of Adam (Kingma & Ba 2015): rate = lr / (1 - beta1^t), lift = sqrt(1 - beta2^t), fresh = 1 - beta."""
    for k in range(len(parameters)):
        g = gradient[k] * fade
        mean[k] += fresh * (g - mean[k])
        square[k] += fresh2 * (g * g - square[k])
        parameters[k] -= rate * mean[k] / (np.sqrt(square[k]) / lift + epsilon)


@inner
def follow(parameters, gradients, S, norm, rates, step, mean, square):
    """Adam's step from gradients [P,G,.], summed over G and clipped seed by seed; S seeds, rates as of `in_steps`."""
    lr, beta1, beta2, epsilon, t = rates[0], rates[1], rates[2], rates[3], rates[4] + step + 1
    rate, lift, C = lr / (1 - beta1**t), np.sqrt(1 - beta2**t), len(parameters) // S
    for s in range(S):
        total = np.float32(0)
        for p in range(s * C, (s + 1) * C):
            for g in range(1, gradients.shape[1]):
                gradients[p, 0] += gradients[p, g]
            total += (gradients[p, 0] * gradients[p, 0]).sum()
        fade = np.float32(min(1.0, norm / (np.sqrt(total) + 1e-6))) if norm > 0 else np.float32(1)
        for p in range(s * C, (s + 1) * C):
            adam_step(
                parameters[p], gradients[p, 0], mean[p], square[p], np.float32(rate), fade, np.float32(lift),
                np.float32(1 - beta1), np.float32(1 - beta2), np.float32(epsilon),
            )  # fmt: skip


def in_steps(
    optimizer: torch.optim.Optimizer,
    layers: Sequence[Tensor],
    count: int,
    pack: Callable[[Sequence[Tensor]], Tensor],
    unpack: Callable[[Tensor], Sequence[Tensor]],
    work: Callable[[Tensor, Tensor, Tensor, Tensor], None],
) -> None:
    """Let work(parameters, rates, mean, square) take `count` of Adam's steps in place, on tables that pack makes.

    rates: lr, beta1, beta2, epsilon and the steps taken before. `unpack` turns a table into what `layers` are.
    """
    group, memory = optimizer.param_groups[0], [optimizer.state[p] for p in layers]
    for p, kept in zip(layers, memory, strict=True):
        if not kept:
            kept |= {"step": torch.zeros(()), "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
    tables = [[p.detach() for p in layers], *([kept[k] for kept in memory] for k in ("exp_avg", "exp_avg_sq"))]
    parameters, mean, square = map(pack, tables)
    numbers = [group["lr"], *group["betas"], group["eps"], float(memory[0]["step"])]
    work(parameters, torch.tensor(numbers, dtype=torch.float64), mean, square)
    for table, new in zip(tables, (parameters, mean, square), strict=True):
        for kept, changed in zip(table, unpack(new), strict=True):
            kept.copy_(changed)
    for kept in memory:
        kept["step"] += count
