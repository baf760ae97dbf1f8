"""A critic predicts what will come: V from one agent's view or the team's, Q with one agent's action left open."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from envs.base import Env, HasTimeLimit, flatten
from marl.networks import (
    ACTIVATIONS,
    CACHE_ROWS,
    Population,
    Running,
    from_per_agent,
    from_per_seed,
    fused_for,
    in_pieces,
    multilayer,
    per_agent,
    per_seed,
)
from marl.recurrent import Gru
from marl.types import Trajectory


@dataclass(frozen=True)
class Fit:
    """How whatever a chain learns is fitted: networks, optimiser, passes."""

    lr: float = 0.01  # Adam step size
    passes: int = 1  # over the batch after each update of the actor, the target held fixed
    minibatches: int = 4  # a pass takes this many gradient steps
    hidden: tuple[int, ...] = (32,)  # units of each hidden layer
    activation: str = "relu"
    max_grad_norm: float | None = None  # per seed; None: no clipping
    anneal: bool = False  # step size falls linearly to 0 over training
    clip: float | None = None  # value clipping: predictions move at most this far from the old ones; None: off
    normalize_obs: bool = False  # running normalisation of what the critic reads
    normalize_returns: bool = False  # the network predicts returns in units of their running mean and deviation
    memory: int = 0  # units of a GRU with which V remembers what it read; 0: it judges what it reads now


class Value(nn.Module):
    """V for every agent's reward stream, S seeds at once.

    central=False: V_i(o_i), one network an agent (independent learners). central=True: one network a seed reads
    `critic_view` and has N outputs. With return normalisation V = mean + std f, f the network (van Hasselt et al.
    2016, without rescaling the last layer). how.memory=H: f reads what a GRU of H units, behind the hidden layers, has
    kept of the episode so far, and is asked about whole episodes from their first step on.
    """

    def __init__(self, game: Env[Any], seeds: tuple[int, ...], central: bool, how: Fit) -> None:
        super().__init__()
        self.game, self.n_seeds, self.central, self.how = game, len(seeds), central, how
        copies, inputs = (1, game.critic_size) if central else (game.n_agents, game.obs_size)
        self.outputs = game.n_agents if central else 1
        kept = (inputs, *how.hidden, how.memory)
        self.gru = Gru("value/memory", seeds, copies, kept, how.activation) if how.memory else None
        sizes = (how.memory, self.outputs) if how.memory else (inputs, *how.hidden, self.outputs)
        self.net = Population("value", seeds, copies, sizes, how.activation)
        self.norm = Running(self.n_seeds, copies, inputs) if how.normalize_obs else None
        self.scale = Running(self.n_seeds, copies, self.outputs) if how.normalize_returns else None
        self.said: tuple[Trajectory, list[Tensor], Tensor] | None = None  # episodes, what it then was, its answer

    def raw(self, trajectory: Trajectory) -> Tensor:
        """[T,B,N] what the network itself says of the states in which each step began."""
        T, B, _ = trajectory.action.shape
        return self._unfold(self._says(trajectory), (T,), B)

    def _says(self, trajectory: Trajectory) -> Tensor:
        """The network's outputs; asked about the same episodes again, unchanged and not to learn, what it said then.

        Credit, targets and clipping ask for the same numbers one after the other. On a GPU answering again is cheaper
        than looking.
        """
        if torch.is_grad_enabled() or trajectory.obs.device.type != "cpu":
            out: Tensor = self.net(self._read(trajectory))
            return out
        now = [*self.parameters(), *self.buffers()]
        kept = self.said
        if kept is None or kept[0] is not trajectory or not all(map(torch.equal, now, kept[1])):
            kept = (trajectory, [x.detach().clone() for x in now], self.net(self._read(trajectory)))
            self.said = kept
        return kept[2]

    def forward(self, trajectory: Trajectory) -> Tensor:
        """[T,B,N] values, in units of return."""
        T, B, _ = trajectory.action.shape
        return self._unfold(self._scaled(self._says(trajectory)), (T,), B)

    def final(self, state: Any, before: Trajectory | None = None) -> Tensor:
        """[B,N] values of one batch of states; a critic that remembers must know the live steps `before` them."""
        x = self.game.critic_view(state) if self.central else self.game.observe(state)
        folded = self._normal(per_seed(x, self.n_seeds) if self.central else per_agent(x, self.n_seeds))
        if self.gru is not None:
            if before is None:
                raise ValueError("a critic with a memory cannot judge a state alone; give the episodes before it")
            folded = self.gru.step(folded, self._closing(before))
        return self._unfold(self._scaled(self.net(folded)), (), x.shape[0])

    def track(self, trajectory: Trajectory, returns: Tensor) -> Tensor:
        """Take a batch into the running statistics and give back its returns in the network's units, [T,B,N]."""
        T, B, N = trajectory.action.shape
        alive = trajectory.alive[..., None].expand(T, B, N).to(returns.dtype)
        weight = self._fold(alive)
        if self.norm is not None:
            self.norm.track(self._inputs(trajectory), weight[:, :, :1])
        if self.scale is None:
            return returns
        folded = self._fold(returns)
        self.scale.track(folded, weight[:, :, :1])
        return self._unfold((folded - self.scale.mean) / self.scale.std, (T,), B)

    def descended(
        self, optimizer: torch.optim.Optimizer, trajectory: Trajectory, target: Tensor, old: Tensor, order: Tensor
    ) -> bool:
        """All gradient steps of one fit in one call, where the fused tier can (`fused.descent`); False where it cannot.

        target and old [T,B,N] in the network's units, order as of `minibatch.orders`.
        """
        if self.gru is not None or fused_for(target) is None:
            return False
        from marl.fused.descent import descend  # on use: compiled code takes its time to load

        how, alive = self.how, trajectory.alive[..., None].expand(target.shape)
        with torch.no_grad():
            about = (self._fold(target), self._fold(old), self._fold(alive)[:, :, 0])
            batch = (self._read(trajectory), order, how.minibatches, *about)
            descend(self.net.layers, self.net.activation, optimizer, *batch, clip=how.clip, max_norm=how.max_grad_norm)
        return True

    def _inputs(self, trajectory: Trajectory) -> Tensor:
        T, B, _ = trajectory.action.shape
        if not self.central:
            return per_agent(trajectory.obs, self.n_seeds)
        return per_seed(self.game.critic_view(flatten(trajectory.state)).unflatten(0, (T, B)), self.n_seeds)

    def _normal(self, x: Tensor) -> Tensor:
        return x if self.norm is None else self.norm(x)

    def _read(self, trajectory: Trajectory) -> Tensor:
        """What the network makes a value of: what is read at each step, or what is remembered of it."""
        x = self._normal(self._inputs(trajectory))
        return x if self.gru is None else self.gru(x, len(trajectory.action))

    def _closing(self, trajectory: Trajectory) -> Tensor:
        """[S,C,H,E] what is remembered after the last live step of each episode."""
        kept = self._read(trajectory).unflatten(3, (len(trajectory.action), -1))
        last = (trajectory.alive.sum(0) - 1).reshape(self.n_seeds, 1, 1, 1, -1)
        return kept.gather(3, last.expand(*kept.shape[:3], 1, -1))[:, :, :, 0]

    def _scaled(self, out: Tensor) -> Tensor:
        return out if self.scale is None else self.scale.mean + self.scale.std * out

    def _fold(self, y: Tensor) -> Tensor:
        """[T,B,N] -> the layout of the network's outputs."""
        return per_seed(y, self.n_seeds) if self.central else per_agent(y[..., None], self.n_seeds)

    def _unfold(self, y: Tensor, lead: tuple[int, ...], B: int) -> Tensor:
        return from_per_seed(y, lead, B) if self.central else from_per_agent(y, lead, B)[..., 0]


def next_values(value: Value, trajectory: Trajectory, now: Tensor) -> Tensor:
    """[T,B,N] value of the state after each step: 0 after a real end and at the horizon of a built-in game.

    Only a time limit that the game itself reports as a truncation bootstraps.
    """
    done = trajectory.done[..., None]
    after = torch.cat((now[1:], torch.zeros_like(now[:1])))
    out = torch.where(done, torch.zeros_like(after), after)
    game = value.game
    if not isinstance(game, HasTimeLimit):
        return out
    last = trajectory.done.clone()
    last[-1] = True
    # The step in which an episode closed; `final` keeps the state that it closed in.
    cut = last & trajectory.alive & game.truncated(trajectory.final)
    return torch.where(cut[..., None], value.final(trajectory.final, trajectory), out)


def lambda_returns(reward: Tensor, after: Tensor, done: Tensor, gamma: float, lam: float) -> Tensor:
    """y_t = r_t + gamma ((1 - lam) v_{t+1} + lam y_{t+1}), with y beyond an end replaced by v (Sutton & Barto 2018).

    reward, after [T,B,N] (after: value of the next state, 0 where there is none), done [T,B].
    """
    last = done[..., None].to(reward.dtype)
    last[-1] = 1
    further = (1 - last) * (gamma * lam)  # y_t = alone_t + further_t y_{t+1}
    alone = torch.addcmul(reward, gamma - further, after)
    out = torch.empty_like(reward)
    follow = torch.zeros_like(reward[0])
    for t in reversed(range(len(reward))):
        follow = torch.addcmul(alone[t], further[t], follow)
        out[t] = follow
    return out


def error(prediction: Tensor, target: Tensor, old: Tensor, clip: float | None) -> Tensor:
    """(prediction - target)^2, or with `clip` the larger of it and that of old + clamp(prediction - old, +-clip)."""
    plain = (prediction - target).square()
    if clip is None:
        return plain
    return torch.maximum(plain, (old + (prediction - old).clamp(-clip, clip) - target).square())


def mean_over_live(x: Tensor, alive: Tensor, n_seeds: int) -> Tensor:
    """[S] mean of x [T,B,N] over live steps and agents."""
    weight = alive[..., None].to(x.dtype).expand_as(x).unflatten(1, (n_seeds, -1))
    return (x.unflatten(1, (n_seeds, -1)) * weight).sum((0, 2, 3)) / weight.sum((0, 2, 3)).clamp(min=1)


class ActionValue(nn.Module):
    """Q_i(s, (a_-i, c)) for every own action c: the critic of COMA (Foerster et al. 2018), S seeds at once.

    A network reads (critic_view, the others' actions, one-hot i). Its first layer is linear in these, so it is
    computed once for all agents, h = W_v view + sum_j W_a[j, a_j], and agent i's own action is subtracted again:
    h_i = relu(h - W_a[i, a_i] + b_i). The same function, N times cheaper.
    """

    def __init__(self, game: Env[Any], seeds: tuple[int, ...], how: Fit) -> None:
        super().__init__()
        self.game, self.n_seeds, self.activation = game, len(seeds), how.activation
        N, A, H = game.n_agents, game.n_actions, how.hidden[0]
        self.first = Population("q/first", seeds, 1, (game.critic_size + N * A, H))
        self.agent = Population("q/agent", seeds, 1, (N, H))
        self.rest = Population("q/rest", seeds, 1, (*how.hidden, A))
        self.layers = [*self.first.layers, *self.agent.layers, *self.rest.layers]
        self.how = how

    def forward(self, trajectory: Trajectory) -> Tensor:
        """[T,B,N,A]."""
        game, S = self.game, self.n_seeds
        T, B, N = trajectory.action.shape
        view = game.critic_view(flatten(trajectory.state)).unflatten(0, (T, B))
        if not torch.is_grad_enabled() and fused_for(view) is not None:
            from marl.fused.action_descent import judge  # on use: compiled code takes its time to load

            found = judge(self.layers, self.activation, self._rows(view), self._rows(trajectory.action))
            return found.unflatten(1, (T, B // S)).transpose(0, 1).flatten(1, 2)
        taken = nn.functional.one_hot(trajectory.action, game.n_actions).to(view.dtype)
        rows = (per_seed(torch.cat((view, taken.flatten(2)), -1), S)[:, 0], per_agent(taken, S))
        who = self.agent(torch.eye(N, dtype=view.dtype, device=view.device).expand(S, 1, N, N))[:, 0]
        rest = [p.repeat_interleave(N, 0) for p in (*self.rest.weights, *self.rest.biases)]
        parameters = (self.first.weights[0], self.first.biases[0], who.transpose(1, 2)[..., None], *rest)
        return from_per_agent(in_pieces(self._answers, rows, parameters, CACHE_ROWS // (S * N)), (T,), B)

    def descended(
        self, optimizer: torch.optim.Optimizer, trajectory: Trajectory, target: Tensor, old: Tensor, order: Tensor
    ) -> bool:
        """As `Value.descended`, for Q of the actions taken; target and old [T,B,N]."""
        if fused_for(target) is None:
            return False
        from marl.fused.action_descent import descend  # on use: compiled code takes its time to load

        how, (T, B) = self.how, trajectory.alive.shape
        view = self.game.critic_view(flatten(trajectory.state)).unflatten(0, (T, B))
        x, action, aim, was, alive = (self._rows(y) for y in (view, trajectory.action, target, old, trajectory.alive))
        about = (aim, was, alive, how.clip, how.max_grad_norm)
        descend(self.layers, self.activation, optimizer, x, action, order, how.minibatches, *about)
        return True

    def _rows(self, x: Tensor) -> Tensor:
        """[T,B,...] -> [S, T * B / S, ...], rows of a seed together."""
        return x.unflatten(1, (self.n_seeds, -1)).transpose(0, 1).flatten(1, 2).contiguous()

    def _answers(self, rows: Sequence[Tensor], parameters: Sequence[Tensor]) -> Tensor:
        """rows: (view and joint action [S,F,R], own action [S,N,A,R]); returns [S,N,A,R]."""
        (x, taken), (weight, bias, who, *rest) = rows, parameters
        S, N, A, _ = taken.shape
        joint = torch.baddbmm(bias, weight, x)  # [S,H,R]
        table = weight[:, :, self.game.critic_size :].unflatten(2, (N, A)).transpose(1, 2)  # [S,N,H,A]
        hidden = ACTIVATIONS[self.activation](joint[:, None] - table @ taken + who)
        return multilayer((hidden.flatten(0, 1),), rest, self.activation).unflatten(0, (S, N))


class JointValue(nn.Module):
    """Q(s, a) of the whole joint action, S seeds at once: a network a seed reads (critic_view, one-hot actions)."""

    def __init__(self, game: Env[Any], seeds: tuple[int, ...], how: Fit) -> None:
        super().__init__()
        self.game, self.n_seeds = game, len(seeds)
        inputs = game.critic_size + game.n_agents * game.n_actions
        self.net = Population("joint value", seeds, 1, (inputs, *how.hidden, 1), how.activation)

    def of(self, view: Tensor, joint: Tensor) -> Tensor:
        """Q of V joint actions each: view [K,B,critic_size], joint [K,B,V,N] -> [K,B,V]."""
        K, B, V, _ = joint.shape
        taken = nn.functional.one_hot(joint, self.game.n_actions).to(view.dtype).flatten(-2).transpose(1, 2)
        rows = torch.cat((view[:, None].expand(-1, V, -1, -1), taken), -1)  # [K,V,B,F]
        return from_per_seed(self.net(per_seed(rows, self.n_seeds)), (K, V), B)[..., 0].transpose(1, 2)

    def forward(self, trajectory: Trajectory) -> Tensor:
        """[T,B] at the actions taken."""
        T, B, _ = trajectory.action.shape
        view = self.game.critic_view(flatten(trajectory.state)).unflatten(0, (T, B))
        return self.of(view, trajectory.action[:, :, None])[..., 0]


def situation(game: Env[Any], trajectory: Trajectory) -> Tensor:
    """[T,B,critic_size + N A]: what a central network may read of each step, critic_view and one-hot actions."""
    T, B, _ = trajectory.action.shape
    view = game.critic_view(flatten(trajectory.state)).unflatten(0, (T, B))
    taken = nn.functional.one_hot(trajectory.action, game.n_actions).to(view.dtype)
    return torch.cat((view, taken.flatten(2)), -1)
