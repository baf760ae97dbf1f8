"""What will this episode have paid? A recurrent network that adds up what it has seen and forgets nothing."""

from __future__ import annotations

from collections.abc import Sequence
from math import log

import torch
from torch import Tensor, nn

from envs.noise import uniform
from marl.networks import Population, from_per_seed, per_seed


class Memory(nn.Module):
    """S recurrent networks, one a seed: the LSTM of RUDDER (Arjona-Medina et al. 2019), which has no forget gate.

    (z_t, g_t) = f(x_t), f a multilayer perceptron;      i_t = sigmoid(g_t + U tanh(c_{t-1}) - log T);
    c_t = c_{t-1} + i_t tanh(z_t), c_{-1} = 0;           y_t = W c_t + b.
    What was written stays: an event is remembered over any delay. Gates start nearly closed, at about 1/T, so that a
    fresh network's T writings add up to one. All that does not depend on the past is one batched matmul over all
    steps; a step of the recurrence is one more.

    Args: sizes (inputs, hidden units ..., memory cells), all but the last those of f.
    """

    def __init__(
        self,
        name: str,
        seeds: Sequence[int],
        sizes: Sequence[int],
        outputs: int,
        horizon: int,
        activation: str = "relu",
    ) -> None:
        super().__init__()
        *layers, self.cells = sizes
        self.n_seeds, self.closed = len(seeds), log(horizon)
        self.see = Population(f"{name}/see", seeds, 1, (*layers, 2 * self.cells), activation)
        self.say = Population(f"{name}/say", seeds, 1, (self.cells, outputs))
        u = uniform(f"init/{name}/recall", list(seeds), 0, (self.cells, self.cells))
        self.recall = nn.Parameter((2 * u - 1) / self.cells**0.5)

    def forward(self, x: Tensor) -> Tensor:
        """[T,B,inputs] -> [T,B,outputs]; y_t depends on x_0 .. x_t of its own episode only."""
        T, B, _ = x.shape
        seen = self.see(per_seed(x, self.n_seeds))[:, 0]  # [S,2H,T*E], episodes fastest
        steps = seen.unflatten(2, (T, -1)).permute(2, 0, 1, 3).contiguous()
        write, gate = steps[:, :, : self.cells].tanh(), steps[:, :, self.cells :] - self.closed
        cell = torch.zeros_like(write[0])
        cells = []
        for t in range(T):
            opened = torch.baddbmm(gate[t], self.recall, cell.tanh()).sigmoid()
            cell = cell + opened * write[t]
            cells.append(cell)
        kept = torch.stack(cells, 2).flatten(2)[:, None]  # [S,1,H,T*E]
        return from_per_seed(self.say(kept), (T,), B)
