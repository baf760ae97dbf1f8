"""Where one more helper would have been needed, a plain difference is blind: ask what clones of the agent would add."""

from __future__ import annotations

import torch
from torch import Tensor

from envs.base import HasRewardWith
from marl.credit.base import ChainError, Context, Credit, Signal
from marl.types import Trajectory


class DPlusPlus(Credit):
    """D++ (Rahmattalabi, Chung, Colby & Tumer 2016): [f(a with n clones of i) - f(a)] / n for the first n that helps.

    f is the step's reward, same noise. "Helps" means exceeds D_i = f(a) - f(a without i); where no n of 1..N-1 does,
    the credit is D_i. In a threshold game that needs m agents of which k are there, D_i is the worth for k = m and 0
    elsewhere; D++ is the worth / (m - k) for k < m, so that agents are paid for coming close.
    """

    signals = {Signal.RAW: Signal.AGENT}
    aligned, efficient = False, False
    needs = ("simulator",)
    cost = "B N^2 T"

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        if not isinstance(context.game, HasRewardWith):
            raise ChainError(f"DPlusPlus needs reward_with, and {type(context.game).__name__} does not have it")

    def forward(self, trajectory: Trajectory, signal: Tensor) -> Tensor:
        """[T,B] -> [T,B,N]."""
        T, B, N = trajectory.action.shape
        simulator, fact = self.context.simulator, signal.flatten()
        copies = clone_counts(N, signal.device)
        out = signal.new_zeros(T * B, N)
        for cells in simulator.live_cells(trajectory, N * N):
            found = simulator.paid_with(trajectory, cells, copies).unflatten(1, (N, N))
            difference = fact[cells, None] - found[..., 0]
            out[cells] = first_that_helps(difference, found[..., 1:] - fact[cells, None, None])
        return out.reshape(T, B, N)


def first_that_helps(difference: Tensor, gain: Tensor) -> Tensor:
    """gain[..., n-1] / n for the first n with gain / n > difference, else the difference; [...] and [..., N-1]."""
    each = gain / torch.arange(1, gain.shape[-1] + 1, device=gain.device, dtype=gain.dtype)
    helps = each > difference[..., None] + 1e-9 * difference.abs().amax().clamp(min=1)
    first = each.gather(-1, helps.int().argmax(-1, keepdim=True))[..., 0] if gain.shape[-1] else difference
    return torch.where(helps.any(-1), first, difference)


def clone_counts(n_agents: int, device: torch.device) -> Tensor:
    """[N * N, N] copies of each agent: agent i removed, then with 1 .. N-1 clones; i after i."""
    numbers = torch.tensor([0, *range(2, n_agents + 1)], device=device)
    me = torch.eye(n_agents, dtype=torch.int64, device=device)
    return (1 + me * (numbers[:, None, None] - 1)).transpose(0, 1).flatten(0, 1)
