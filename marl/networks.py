"""A population of networks is one network with a seed axis: every layer is one batched matmul for all of them.

Seed k's first weights come from noise indexed by seed k, so that they never depend on which seeds train beside it;
nothing in a forward or backward pass mixes seeds, so gradients, clipping and optimiser state stay apart as well.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import cache, partial
from importlib.util import find_spec
from itertools import pairwise
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from envs.noise import uniform

CACHE_ROWS = 1 << 15  # (network, row) pairs whose hidden units fit the cache of one core
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": torch.relu, "tanh": torch.tanh}
TIERS = ("fused", "torch")


@cache
def tier() -> str:
    """Who computes networks on a CPU: "fused" (`marl.fused`, where numba is installed) or "torch", the reference.

    MARL_TIER in the environment chooses. Numbers differ in rounding, so the tier is part of a cell's configuration.
    Raises ValueError for a tier that there is not, or not here.
    """
    there = find_spec("numba") is not None
    chosen = os.environ.get("MARL_TIER") or ("fused" if there else "torch")
    if chosen not in TIERS:
        raise ValueError(f"MARL_TIER={chosen} is not allowed; it must be one of {', '.join(TIERS)}")
    if chosen == "fused" and not there:
        raise ValueError("MARL_TIER=fused needs numba, which is not installed; pip install 'credit-sandbox[fast]'")
    return chosen


def fused_for(x: Tensor) -> ModuleType | None:
    """The fused tier where it is chosen and can take x: float32 on a CPU. None: torch takes it."""
    if x.dtype != torch.float32 or x.device.type != "cpu" or tier() == "torch":
        return None
    import marl.fused  # on use: compiled code takes its time to load

    return marl.fused


class Population(nn.Module):
    """S * C multilayer perceptrons of one shape, C of them to a seed (one an agent, or one that is shared).

    x [S, C, in, R] -> [S, C, out, R]. Features come before rows: y = W x + b with W [S * C, out, in]. A batched
    matmul with the rows last is about three times as fast on a CPU when a head has only a few outputs, and softmax
    over few actions is contiguous in the rows. First weights and biases are uniform in +-sqrt(6/fan_in) (He et al.
    2015), those of the last layer in +-last_gain/sqrt(fan_in) (small for a policy, so that it starts near uniform).
    """

    def __init__(
        self,
        name: str,
        seeds: Sequence[int],
        copies: int,
        sizes: Sequence[int],
        activation: str = "relu",
        last_gain: float = 1.0,
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation={activation!r} is not allowed; it must be one of {', '.join(ACTIVATIONS)}")
        self.seeds, self.copies, self.activation = tuple(seeds), copies, activation
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for layer, (fan_in, fan_out) in enumerate(pairwise(sizes)):
            u = uniform(f"init/{name}/{layer}", list(seeds), 0, (copies, fan_out, fan_in + 1))
            gain = last_gain if layer == len(sizes) - 2 else 6**0.5
            table = ((2 * u - 1) * gain / fan_in**0.5).flatten(0, 1)
            self.weights.append(nn.Parameter(table[:, :, :-1].contiguous()))
            self.biases.append(nn.Parameter(table[:, :, -1:].contiguous()))
        self.layers = [*self.weights, *self.biases]  # the same parameters: walking a ParameterList takes its time

    def forward(self, x: Tensor) -> Tensor:
        """[S, C, in, R] -> [S, C, out, R]; a network that is alone in its seed serves any number of groups C."""
        fused = fused_for(x)
        if fused is not None:
            out: Tensor = fused.network(x, self.layers, self.activation)
            return out
        shape = x.shape[:2]
        groups = shape[1] // self.copies
        layers = [p.repeat_interleave(groups, 0) for p in self.layers] if groups > 1 else self.layers
        x = x.flatten(0, 1)
        mlp = partial(multilayer, activation=self.activation)
        return in_pieces(mlp, (x,), layers, CACHE_ROWS // x.shape[0]).unflatten(0, shape)


def multilayer(rows: Sequence[Tensor], layers: Sequence[Tensor], activation: str) -> Tensor:
    """W_L squash(... W_1 x + b_1 ...) + b_L; rows: (x [P, in, R],); layers: all W [P, out, in], then all b."""
    (x,), depth = rows, len(layers) // 2
    for k, (weight, bias) in enumerate(zip(layers[:depth], layers[depth:], strict=True)):
        x = torch.baddbmm(bias, weight, x)
        if k < depth - 1:
            x = ACTIVATIONS[activation](x)
    return x


Network = Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor]
"""(tensors with the rows last, parameters) -> outputs with the rows last; no row depends on another."""


def in_pieces(network: Network, rows: Sequence[Tensor], parameters: Sequence[Tensor], piece: int) -> Tensor:
    """network(rows, parameters), its rows taken `piece` at a time, hidden units recomputed in the backward pass.

    Writing all hidden units of a population to memory and reading them back costs more than computing them twice:
    on one core 240 networks of 32 units and 3,200 rows take 85 to 105 ms instead of 240. Outputs and gradients are
    the same up to the order of summation.
    """
    if rows[0].shape[-1] <= piece:
        return network(rows, parameters)
    if not torch.is_grad_enabled():
        return _forward(network, max(1, piece), rows, parameters)
    return _InPieces.apply(network, max(1, piece), len(rows), *rows, *parameters)


def _forward(network: Network, piece: int, rows: Sequence[Tensor], parameters: Sequence[Tensor]) -> Tensor:
    parts = zip(*(x.split(piece, -1) for x in rows), strict=True)
    return torch.cat([network(part, parameters) for part in parts], -1)


class _InPieces(torch.autograd.Function):
    """See `in_pieces`."""

    @staticmethod
    def forward(ctx: Any, network: Network, piece: int, n_rows: int, *tensors: Tensor) -> Tensor:
        """Keep the inputs only."""
        ctx.network, ctx.piece, ctx.n_rows = network, piece, n_rows
        ctx.save_for_backward(*tensors)
        return _forward(network, piece, tensors[:n_rows], tensors[n_rows:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """The chain rule, piece by piece."""
        rows, parameters = ctx.saved_tensors[: ctx.n_rows], ctx.saved_tensors[ctx.n_rows :]
        wants = ctx.needs_input_grad[3 : 3 + ctx.n_rows]
        totals = [torch.zeros_like(p) for p in parameters]
        grads_rows: list[list[Tensor]] = [[] for _ in rows]
        for *part, g in zip(*(x.split(ctx.piece, -1) for x in (*rows, grad)), strict=True):
            with torch.enable_grad():
                part = [x.detach().requires_grad_(w) for x, w in zip(part, wants, strict=True)]
                copies = [p.detach().requires_grad_() for p in parameters]
                out = ctx.network(part, copies)
            asked = [k for k, w in enumerate(wants) if w]
            found = torch.autograd.grad(out, [*copies, *(part[k] for k in asked)], g)
            for total, new in zip(totals, found, strict=False):
                total.add_(new)
            for k, new in zip(asked, found[len(copies) :], strict=True):
                grads_rows[k].append(new)
        return None, None, None, *(torch.cat(g, -1) if g else None for g in grads_rows), *totals


class Running(nn.Module):
    """Running mean and variance of each feature, per seed and copy: x -> (x - mean) / std, at most 10 either way.

    Welford's update in batches (Chan, Golub & LeVeque 1983). Before the first batch it changes nothing.
    """

    mean: Tensor
    square: Tensor
    count: Tensor

    def __init__(self, n_seeds: int, copies: int, features: int) -> None:
        super().__init__()
        shape = (n_seeds, copies, features, 1)
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("square", torch.zeros(shape))  # sum of squared distances from the mean
        self.register_buffer("count", torch.zeros(n_seeds, 1, 1, 1))

    @property
    def std(self) -> Tensor:
        """[S, C, F, 1]; 1 before the first batch, at least 1e-4 after it."""
        spread = (self.square / self.count.clamp(min=1)).sqrt().clamp(min=1e-4)
        return torch.where(self.count > 0, spread, torch.ones_like(spread))

    def forward(self, x: Tensor) -> Tensor:
        """[S, C, F, R] normalised."""
        return ((x - self.mean) / self.std).clamp(-10, 10)

    def track(self, x: Tensor, weight: Tensor) -> None:
        """Take a batch in: x [S, C, F, R], weight [S, C, 1, R] (1 for rows that count, 0 for dead ones)."""
        with torch.no_grad():
            n = weight.sum(-1, keepdim=True)
            mean = (x * weight).sum(-1, keepdim=True) / n.clamp(min=1)
            square = ((x - mean).square() * weight).sum(-1, keepdim=True)
            n = n[:, :1]
            total = (self.count + n).clamp(min=1)
            gap = mean - self.mean
            self.square += square + gap.square() * self.count * n / total
            self.mean += gap * n / total
            self.count += n


def per_agent(x: Tensor, n_seeds: int) -> Tensor:
    """[..., B, N, F] -> [S, N, F, R], R running over the leading axes and a seed's episodes: one network an agent."""
    *_, B, N, F = x.shape
    x = x.reshape(-1, n_seeds, B // n_seeds, N, F)
    return x.permute(1, 3, 4, 0, 2).reshape(n_seeds, N, F, -1)


def from_per_agent(y: Tensor, lead: Sequence[int], B: int) -> Tensor:
    """The inverse of `per_agent`: [S, N, F, R] -> [..., B, N, F] (a view where it can be)."""
    S, N, F, _ = y.shape
    y = y.reshape(S, N, F, -1, B // S).permute(3, 0, 4, 1, 2)
    return y.reshape(*lead, B, N, F)


def per_seed(x: Tensor, n_seeds: int) -> Tensor:
    """[..., B, F] -> [S, 1, F, R]: one network a seed."""
    *_, B, F = x.shape
    return x.reshape(-1, n_seeds, B // n_seeds, F).permute(1, 3, 0, 2).reshape(n_seeds, 1, F, -1)


def from_per_seed(y: Tensor, lead: Sequence[int], B: int) -> Tensor:
    """The inverse of `per_seed`: [S, 1, F, R] -> [..., B, F]."""
    S, _, F, _ = y.shape
    return y.reshape(S, F, -1, B // S).permute(2, 0, 3, 1).reshape(*lead, B, F)


def clip_per_seed(parameters: Sequence[nn.Parameter], n_seeds: int, max_norm: float) -> None:
    """Scale each seed's gradient so that its own norm over all `parameters` is at most max_norm."""
    grads = [p.grad for p in parameters if p.grad is not None]
    if not grads:
        return
    squares = torch.stack([g.reshape(n_seeds, -1).square().sum(1) for g in grads]).sum(0)
    scale = (max_norm / (squares.sqrt() + 1e-6)).clamp(max=1.0)
    for g in grads:
        g.mul_(scale.repeat_interleave(g.shape[0] // n_seeds).reshape(-1, *[1] * (g.dim() - 1)))
