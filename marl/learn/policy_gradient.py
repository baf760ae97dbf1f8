"""Credit is the weight on grad log pi: a policy-gradient learner is handed a tensor and follows it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from marl.networks import clip_per_seed
from marl.policy import Actor
from marl.types import Trajectory


@dataclass(frozen=True)
class Reinforce:
    """REINFORCE (Williams 1992), one pass over a batch of whole episodes, so that credit is not confounded with re-use.

    maximise mean over live (t, b), summed over i:  c[t,b,i] log pi_i(a_it | o_it) + entropy H(pi_i(. | o_it)),
    with c divided by its root mean square per (seed, agent). Adam; each seed's own gradient norm is clipped.
    """

    lr: float = 0.01  # Adam step size
    episodes: int = 32  # per seed and update
    entropy: float = 0.0  # bonus, in units of scaled credit
    max_grad_norm: float | None = None  # per seed; None: no clipping
    hidden: tuple[int, ...] = (32,)  # units of each hidden layer of the actor
    activation: str = "relu"
    shared: bool = False  # one network for all agents instead of one each
    scale: bool = True  # divide credit by its root mean square per (seed, agent)

    def optimizer(self, actor: Actor) -> torch.optim.Optimizer:
        """Adam over a population: its state is elementwise, so seeds stay apart."""
        return torch.optim.Adam(actor.parameters(), lr=self.lr, fused=True)

    def update(self, actor: Actor, optimizer: torch.optim.Optimizer, trajectory: Trajectory, credit: Tensor) -> None:
        """One gradient step. credit: [T,B,N] for the action taken, or [T,B,N,A] for every action."""
        if self.scale:
            credit = scaled(credit, trajectory.alive, actor.n_seeds)
        optimizer.zero_grad(set_to_none=True)
        loss(actor, trajectory, credit, self.entropy).sum().backward()
        if self.max_grad_norm is not None:
            clip_per_seed(list(actor.parameters()), actor.n_seeds, self.max_grad_norm)
        optimizer.step()


def scaled(credit: Tensor, alive: Tensor, n_seeds: int) -> Tensor:
    """credit / sqrt(mean credit^2 over live steps) per (seed, agent); not centred. [T,B,N] or [T,B,N,A]."""
    T, B = alive.shape
    weight = alive.to(credit.dtype).reshape(T, n_seeds, B // n_seeds, *[1] * (credit.dim() - 2))
    c = credit.unflatten(1, (n_seeds, -1)) * weight
    axes = (0, 2) if credit.dim() == 3 else (0, 2, 4)
    actions = 1 if credit.dim() == 3 else credit.shape[-1]
    count = (weight.sum(axes, keepdim=True) * actions).clamp(min=1)
    rms = (c.square().sum(axes, keepdim=True) / count).sqrt()
    return (c / rms.clamp(min=1e-8)).flatten(1, 2)


def loss(actor: Actor, trajectory: Trajectory, credit: Tensor, entropy: float = 0.0) -> Tensor:
    """[S] minus the objective above, in the actor's own layout [S, C, A, R].

    The ACTIONS kind enters as sum_c pi_i(c) w_c grad log pi_i(c) = sum_c w_c grad pi_i(c).
    """
    S, N = actor.n_seeds, trajectory.action.shape[-1]
    alive = trajectory.alive[..., None, None].expand(*trajectory.action.shape, 1)
    weight = actor.fold(alive).to(credit.dtype)
    weight = weight / (weight.sum((1, 2, 3), keepdim=True) / N).clamp(min=1)
    log_probs = actor.folded_logits(trajectory.obs, trajectory.mask).log_softmax(2)
    if credit.dim() == trajectory.action.dim():
        taken = log_probs.gather(2, actor.fold(trajectory.action[..., None]))
        gain = taken * actor.fold(credit[..., None])
    else:
        gain = (log_probs.exp() * actor.fold(credit)).sum(2, keepdim=True)
    if entropy:
        finite = log_probs.masked_fill(log_probs == -torch.inf, 0.0)
        gain = gain - entropy * (log_probs.exp() * finite).sum(2, keepdim=True)
    return -(gain * weight).reshape(S, -1).sum(1)
