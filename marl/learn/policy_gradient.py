"""Credit is the weight on grad log pi: a policy-gradient learner is handed a tensor and follows it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from envs.base import Env
from marl.minibatch import orders, pick, schedule, subset
from marl.networks import clip_per_seed, fused_for
from marl.policy import Actor
from marl.types import Trajectory


@dataclass(frozen=True)
class PolicyGradient(ABC):
    """What all policy-gradient learners share: the actor, its optimiser, and how credit is scaled."""

    lr: float = 0.01  # Adam step size
    episodes: int = 32  # per seed and update
    entropy: float = 0.0  # bonus, in units of scaled credit
    max_grad_norm: float | None = None  # per seed; None: no clipping
    hidden: tuple[int, ...] = (32,)  # units of each hidden layer of the actor
    activation: str = "relu"
    shared: bool = False  # one network for all agents instead of one each
    scale: bool = True  # divide credit by its root mean square per (seed, agent)
    anneal: bool = False  # step size falls linearly to 0 over training
    normalize_obs: bool = False  # running normalisation of what the actor reads
    memory: int = 0  # units of a GRU with which each agent remembers what it saw; 0: it acts on what it sees now

    @property
    def follows(self) -> tuple[str, ...]:
        """The kinds of signal that it learns from."""
        return ("ADVANTAGE", "ACTIONS")

    def begin(self, game: Env[Any], seeds: Sequence[int]) -> Following:
        """New actors."""
        return Following(self, game, seeds)

    @abstractmethod
    def update(
        self, actor: Actor, optimizer: torch.optim.Optimizer, trajectory: Trajectory, credit: Tensor, update: int
    ) -> None:
        """Learn from one batch. credit: [T,B,N] for the action taken, or [T,B,N,A] for every action."""


class Following:
    """A population of actors on their way, with their optimiser."""

    def __init__(self, how: PolicyGradient, game: Env[Any], seeds: Sequence[int]) -> None:
        self.how = how
        self.policy = Actor(game, seeds, how.hidden, how.shared, how.activation, how.normalize_obs, memory=how.memory)
        self.optimizer = adam(self.policy.parameters(), how.lr)

    @property
    def evaluated(self) -> Actor:
        """What is judged is what acts."""
        return self.policy

    def update(self, trajectory: Trajectory, signal: Tensor, update: int, done: float) -> None:
        """Follow the credit of one batch; `done` is the part of training that lies behind."""
        set_lr(self.optimizer, self.how.lr, self.how.anneal, done)
        self.how.update(self.policy, self.optimizer, trajectory, signal, update)

    def credit(self, trajectory: Trajectory) -> None:
        """None: its credit is what the chain assigns."""

    def to(self, device: str) -> None:
        """Live there; the optimiser follows its parameters."""
        self.policy.to(device)

    def state(self) -> dict[str, Any]:
        """The actor and its optimiser."""
        return {"policy": self.policy.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from such a state."""
        self.policy.load_state_dict(state["policy"])
        self.optimizer.load_state_dict(state["optimizer"])


@dataclass(frozen=True)
class Reinforce(PolicyGradient):
    """REINFORCE (Williams 1992), one pass over a batch of whole episodes, so that credit is not confounded with re-use.

    maximise mean over live (t, b), summed over i:  c[t,b,i] log pi_i(a_it | o_it) + entropy H(pi_i(. | o_it)),
    with c divided by its root mean square per (seed, agent). Adam; each seed's own gradient norm is clipped.
    """

    def update(
        self, actor: Actor, optimizer: torch.optim.Optimizer, trajectory: Trajectory, credit: Tensor, update: int
    ) -> None:
        """One gradient step."""
        credit = scaled(credit, trajectory.alive, actor.n_seeds) if self.scale else credit
        _step(self, actor, optimizer, loss(actor, trajectory, credit, self.entropy))
        actor.track(trajectory.obs, trajectory.alive)


@dataclass(frozen=True)
class Ppo(PolicyGradient):
    """Proximal policy optimisation (Schulman et al. 2017): several passes over a batch, each kept near the old policy.

    maximise mean of min(rho c, clamp(rho, 1 - clip, 1 + clip) c) + entropy H(pi),  rho = pi(a|o) / pi_old(a|o),
    pi_old the behaviour policy of the trajectory. Minibatches are drawn by index for every seed by itself: steps, or
    whole episodes where agents remember. Needs the credit of the action taken (ADVANTAGE). With team + GAE on V(o_i)
    this is IPPO (de Witt et al. 2020), with V(critic_view) MAPPO (Yu et al. 2022).
    """

    clip: float = 0.2  # how far a probability ratio is followed
    passes: int = 4  # over the batch
    minibatches: int = 4

    @property
    def follows(self) -> tuple[str, ...]:
        """The credit of the action taken alone: a ratio needs one."""
        return ("ADVANTAGE",)

    def update(
        self, actor: Actor, optimizer: torch.optim.Optimizer, trajectory: Trajectory, credit: Tensor, update: int
    ) -> None:
        """passes x minibatches gradient steps."""
        credit = scaled(credit, trajectory.alive, actor.n_seeds) if self.scale else credit
        if descended(self, actor, optimizer, trajectory, credit, update):
            actor.track(trajectory.obs, trajectory.alive)
            return
        whole = self.memory > 0
        for index in schedule(actor.seeds, trajectory, update, self.passes, self.minibatches, "ppo", whole):
            rows = subset(trajectory, index)
            weight = credit if index is None else pick(credit, index)
            _step(self, actor, optimizer, loss(actor, rows, weight, self.entropy, self.clip))
        actor.track(trajectory.obs, trajectory.alive)


def descended(
    how: Ppo, actor: Actor, optimizer: torch.optim.Optimizer, trajectory: Trajectory, credit: Tensor, update: int
) -> bool:
    """Where the fused tier can, all of PPO's gradient steps in one call (`fused.descent`); False where it cannot."""
    if actor.gru is not None or fused_for(credit) is None:
        return False
    from marl.fused.descent import descend  # on use: compiled code takes its time to load

    action = trajectory.action[..., None]
    alive = trajectory.alive[..., None, None].expand_as(action)
    old = trajectory.probs.gather(-1, action).log()
    aim, old = actor.fold(credit[..., None]), actor.fold(old)
    alive, action = actor.fold(alive)[:, :, 0], actor.fold(action)[:, :, 0]
    legal = None if trajectory.mask is None else actor.fold(trajectory.mask)
    order = orders(actor.seeds, trajectory.alive.numel() // actor.n_seeds, update, how.passes, how.minibatches, "ppo")
    with torch.no_grad():
        net, x = actor.net, actor.inputs(trajectory.obs)
        about = (aim, old, alive, action, legal, how.entropy, how.clip, how.max_grad_norm)
        descend(net.layers, net.activation, optimizer, x, order, how.minibatches, *about)
    return True


def adam(parameters: Iterable[nn.Parameter], lr: float) -> torch.optim.Optimizer:
    """Adam over a population, perhaps an empty one: its state is elementwise, so seeds stay apart."""
    return torch.optim.Adam([{"params": list(parameters)}], lr=lr, fused=True)


def set_lr(optimizer: torch.optim.Optimizer, lr: float, anneal: bool, done: float) -> None:
    """Step size at a fraction `done` of training: lr, or with `anneal` lr (1 - done)."""
    for group in optimizer.param_groups:
        group["lr"] = lr * (1 - done) if anneal else lr


def _step(how: PolicyGradient, actor: Actor, optimizer: torch.optim.Optimizer, losses: Tensor) -> None:
    optimizer.zero_grad(set_to_none=True)
    losses.sum().backward()
    if how.max_grad_norm is not None:
        clip_per_seed(list(actor.parameters()), actor.n_seeds, how.max_grad_norm)
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


def loss(
    actor: Actor, trajectory: Trajectory, credit: Tensor, entropy: float = 0.0, clip: float | None = None
) -> Tensor:
    """[S] minus the objectives above, in the actor's own layout [S, C, A, R]; clip None: REINFORCE's.

    The ACTIONS kind enters as sum_c pi_i(c) w_c grad log pi_i(c) = sum_c w_c grad pi_i(c).
    """
    S, N = actor.n_seeds, trajectory.action.shape[-1]
    alive = trajectory.alive[..., None, None].expand(*trajectory.action.shape, 1)
    weight = actor.fold(alive).to(credit.dtype)
    weight = weight / (weight.sum((1, 2, 3), keepdim=True) / N).clamp(min=1)
    fused = fused_for(credit)
    if fused is not None and actor.gru is None and credit.dim() == trajectory.action.dim():
        old = None if clip is None else trajectory.probs.gather(-1, trajectory.action[..., None]).log()[..., 0]
        action, c, was = (
            None if x is None else actor.fold(x[..., None])[:, :, 0] for x in (trajectory.action, credit, old)
        )
        legal = None if trajectory.mask is None else actor.fold(trajectory.mask)
        layers, inputs = actor.net.layers, actor.inputs(trajectory.obs)
        found: Tensor = fused.policy_loss(
            inputs, layers, actor.net.activation, action, c, weight[:, :, 0], was, legal, entropy, clip
        )
        return found
    log_probs = actor.folded_logits(trajectory.obs, trajectory.mask).log_softmax(2)
    if credit.dim() == trajectory.action.dim():
        action, c = trajectory.action[..., None], actor.fold(credit[..., None])
        taken = log_probs.gather(2, actor.fold(action))
        if clip is None:
            gain = taken * c
        else:
            ratio = (taken - actor.fold(trajectory.probs.gather(-1, action)).log()).exp()
            gain = torch.minimum(ratio * c, ratio.clamp(1 - clip, 1 + clip) * c)
    else:
        gain = (log_probs.exp() * actor.fold(credit)).sum(2, keepdim=True)
    if entropy:
        finite = log_probs.masked_fill(log_probs == -torch.inf, 0.0)
        gain = gain - entropy * (log_probs.exp() * finite).sum(2, keepdim=True)
    return -(gain * weight).reshape(S, -1).sum(1)
